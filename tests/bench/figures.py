"""A figure, how it is timed, and the table of all of them."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.table import Table

ROUNDS = 5


class Figure(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the table. `beside` are figures of the same unit from the same run."""

    section: str
    name: str
    value: float
    unit: str
    aim: float | None = None
    at_most: bool = False
    beside: dict[str, float] = {}
    note: str = ""

    @property
    def met(self) -> bool | None:
        """Whether the aim is met; None where there is none."""
        if self.aim is None:
            return None
        return self.value <= self.aim if self.at_most else self.value >= self.aim


class Skipped(Exception):
    """A section cannot be measured here; the text says in one line why."""


class Timing(NamedTuple):
    """Seconds: on the clock, and of this process's CPU."""

    wall: float
    cpu: float


class Cost(NamedTuple):
    """What so many records took: seconds on the clock, and CPU seconds of the processes."""

    records: int
    seconds: float
    cpu: float

    @property
    def rate(self) -> float:
        """Records a second."""
        return self.records / self.seconds

    @property
    def micros(self) -> float:
        """CPU a record, in microseconds."""
        return self.cpu / self.records * 1e6

    def without(self, idle: float, seconds: float) -> Cost:
        """Less what the processes use anyway: `idle` CPU seconds a second, for so long."""
        return self._replace(cpu=self.cpu - idle * seconds)


class Aims(NamedTuple):
    """Beside the bare loop: at least this share of its rate (%), at most so often its CPU."""

    share: float
    cpu: float


def beside_bare(
    section: str, title: str, rounds: Sequence[tuple[Cost, Cost]], aims: Aims, note: str = ""
) -> list[Figure]:
    """Rate and CPU of the first of each pair beside the bare copy loop of the same round."""
    ours, loops = [pair[0] for pair in rounds], [pair[1] for pair in rounds]
    shares = [100 * our.rate / loop.rate for our, loop in rounds]
    times = [our.micros / loop.micros for our, loop in rounds]
    loop = "bare copy loop"
    return [
        Figure(
            section=section,
            name=title,
            value=middle([cost.rate for cost in ours]),
            unit="records/s",
            beside={loop: middle([cost.rate for cost in loops])},
            note=note,
        ),
        Figure(
            section=section,
            name=f"{title}: share of the bare loop's rate",
            value=middle(shares),
            unit="%",
            aim=aims.share,
            note=f"from {number(min(shares))} to {number(max(shares))}",
        ),
        Figure(
            section=section,
            name=f"{title}: CPU a record",
            value=middle([cost.micros for cost in ours]),
            unit="µs",
            beside={loop: middle([cost.micros for cost in loops])},
        ),
        Figure(
            section=section,
            name=f"{title}: CPU, times the bare loop's",
            value=middle(times),
            unit="×",
            aim=aims.cpu,
            at_most=True,
            note=f"from {number(min(times))} to {number(max(times))}",
        ),
    ]


def alternate(works: Sequence[Callable[[], object]], rounds: int = ROUNDS) -> list[Timing]:
    """The median time of each, all of them run one after the other `rounds` times.

    So that a machine that drifts does so for all of them alike.
    """
    timings: list[list[Timing]] = [[] for _ in works]
    with settled_memory():
        for _ in range(rounds):
            for work, found in zip(works, timings, strict=True):
                wall, cpu = time.perf_counter(), time.process_time()
                work()
                found.append(Timing(time.perf_counter() - wall, time.process_time() - cpu))
    return [
        Timing(statistics.median(t.wall for t in found), statistics.median(t.cpu for t in found))
        for found in timings
    ]


@contextmanager
def settled_memory() -> Iterator[None]:
    """What is in memory already is left alone by the garbage collector, which goes on for the rest.

    The bench holds hundreds of thousands of records, a worker does not.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def middle(values: Sequence[float]) -> float:
    """The median."""
    return statistics.median(values)


def quantile(ordered: Sequence[float], share: float) -> float:
    """That quantile of values in order."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def show(console: Console, head: Mapping[str, str], figures: Sequence[Figure]) -> None:
    """Print the machine and the table."""
    for name, value in head.items():
        console.print(f"{name + ':':<16}{value}", highlight=False, soft_wrap=True)
    table = Table(title="Buddy Stream: figures", title_justify="left")
    for title in ("", "figure", "unit", "aim", "met", "beside", "note"):
        table.add_column(title, justify="right" if title in ("figure", "aim") else "left")
    section = ""
    for figure in figures:
        if figure.section != section:
            table.add_section()
            table.add_row(f"[bold]{figure.section}[/bold]")
            section = figure.section
        table.add_row(*_cells(figure))
    console.print(table)


def _cells(figure: Figure) -> list[str]:
    aim = ""
    if figure.aim is not None:
        aim = ("≤ " if figure.at_most else "≥ ") + number(figure.aim)
    met = {True: "[green]yes[/green]", False: "[red]no[/red]", None: ""}[figure.met]
    beside = "\n".join(
        f"{name}: {number(value)} (we: {figure.value / value:.0%})" if value else name
        for name, value in figure.beside.items()
    )
    return [figure.name, number(figure.value), figure.unit, aim, met, beside, figure.note]


def number(value: float) -> str:
    """For people: no decimals where they mean nothing."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
