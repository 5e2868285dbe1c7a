"""Charts as the paths of an SVG, drawn on the server. Pure.

A chart is `WIDTH` by `HEIGHT` units and is stretched to its place. Each value takes one unit of
width: a level step, so nothing is drawn between two values that was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

WIDTH: Final = 60
HEIGHT: Final = 20
_LEAST: Final = 0.6
"""The height of a value that is small and not zero: it must be seen."""


def top_of(*series: Sequence[float | None]) -> float:
    """The largest value, which reaches the top; 0 if there is none."""
    return max((value for each in series for value in each if value is not None), default=0.0)


def line(values: Sequence[float | None], top: float) -> str:
    """The path of a line. Where a value is unknown, the line has a gap."""
    parts: list[str] = []
    is_open = False
    for x, value in enumerate(values):
        if value is None:
            is_open = False
            continue
        y = _y(value, top)
        parts.append(f"{'V' if is_open else f'M{x} '}{y}H{x + 1}")
        is_open = True
    return "".join(parts)


def area(values: Sequence[float | None], top: float) -> str:
    """The path of the area below that line."""
    return "".join(
        f"M{first} {HEIGHT}" + "".join(f"V{_y(v, top)}H{x + 1}" for x, v in run) + f"V{HEIGHT}Z"
        for first, run in _runs(values)
    )


def bars(values: Sequence[int], top: float) -> str:
    """The path of bars with gaps between them; none for 0."""
    return "".join(
        f"M{x}.1 {HEIGHT}V{_y(value, top)}H{x}.9V{HEIGHT}Z"
        for x, value in enumerate(values)
        if value
    )


def _runs(values: Sequence[float | None]) -> Iterator[tuple[int, list[tuple[int, float]]]]:
    """The values without gaps: where each run begins, and its places and values."""
    run: list[tuple[int, float]] = []
    for x, value in enumerate((*values, None)):
        if value is not None:
            run.append((x, value))
        elif run:
            yield run[0][0], run
            run = []


def _y(value: float, top: float) -> str:
    height = 0.0 if top <= 0 or value <= 0 else max(_LEAST, value / top * HEIGHT)
    return f"{HEIGHT - height:.2f}".rstrip("0").rstrip(".")
