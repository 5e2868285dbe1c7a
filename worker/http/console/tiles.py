"""The figures of the overview, each with its chart. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple

from worker.http.console import charts
from worker.http.console.history import HistoryColumn, Window
from worker.http.console.texts import duration, number, percent

_UNKNOWN: Final = "-"


class Tile(NamedTuple):
    """A figure, and its chart. `kind` names the colours."""

    kind: str
    title: str
    figure: str
    unit: str
    note: str
    label: str
    """The chart in words."""
    area: str
    line: str


class _Measure(NamedTuple):
    """What a tile shows of a column, and how it is written with its unit."""

    kind: str
    title: str
    value: Callable[[HistoryColumn], float | None]
    text: Callable[[float], str]


def _rate(value: float) -> str:
    return f"{number(value)} a second"


def _records(value: float) -> str:
    return f"{number(value)} records"


_ARRIVING: Final = _Measure("arrived", "Arriving", lambda column: column.arrived, _rate)
_ACCEPTED: Final = _Measure("accepted", "Accepted", lambda column: column.accepted, _rate)
_REJECTED: Final = _Measure("rejected", "Rejected", lambda column: column.rejected, _rate)
_PARKED: Final = _Measure("parked", "Parked", lambda column: column.parked, _records)
_LAG: Final = _Measure("lag", "Lag", lambda column: column.lag, _records)
_LATENCY: Final = _Measure("latency", "Latency", lambda column: column.median, duration)


def tiles(window: Window) -> list[Tile]:
    """The figures over the window."""
    return [
        _tile(window, _ARRIVING, _peak(window, _ARRIVING)),
        _tile(window, _ACCEPTED, _peak(window, _ACCEPTED)),
        _tile(window, _REJECTED, _share(window.now) or _peak(window, _REJECTED)),
        _tile(window, _PARKED, "wait for a reference or an address"),
        _tile(window, _LAG, "are still to be read"),
        _tile(window, _LATENCY, _slowest(window.now) or "from arrival to verdict, the median"),
    ]


def _tile(window: Window, measure: _Measure, note: str) -> Tile:
    values = [measure.value(column) for column in window.columns]
    known = [value for value in values if value is not None]
    words = "nothing is known yet"
    if known:
        words = f"from {measure.text(min(known))} to {measure.text(max(known))}"
    now = measure.value(window.now)
    figure, _, unit = (_UNKNOWN if now is None else measure.text(now)).partition(" ")
    top = charts.top_of(values)
    return Tile(
        measure.kind,
        measure.title,
        figure,
        unit,
        note,
        f"{measure.title}, the last {window.seconds // 60} minutes: {words}",
        charts.area(values, top),
        charts.line(values, top),
    )


def _peak(window: Window, measure: _Measure) -> str:
    top = charts.top_of([measure.value(column) for column in window.columns])
    return f"peak {measure.text(top)}" if top else "none in this time"


def _share(now: HistoryColumn) -> str | None:
    """The share of rejections among the verdicts; None without verdicts."""
    if now.accepted is None or now.rejected is None or not now.accepted + now.rejected:
        return None
    return f"{percent(now.rejected / (now.accepted + now.rejected))} of the verdicts"


def _slowest(now: HistoryColumn) -> str | None:
    return None if now.slowest is None else f"99 % within {duration(now.slowest)}"
