"""What the last hour brought, from samples of the status. Pure.

The samples are in memory alone. So a process shows what it has seen since its start, and says since
when. The topics hold no history of these figures.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from worker.http.console.latency import LatencyBucket, added, between, quantile
from worker.status.report import Figures, Report

SAMPLE_SECONDS: Final = 5.0
"""The time between two samples."""
COLUMNS: Final = 60
"""The parts of a window."""
WINDOWS: Final = (600, 1_800, 3_600)
"""In seconds. The shortest one is shown that reaches back to the first sample."""
_NOW_SECONDS: Final = 15.0
"""What counts as now."""


class Sample(NamedTuple):
    """The status at one moment, in seconds since 1970. Counts are since ever; None is unknown."""

    at: float
    arrived: int | None
    accepted: int | None
    """Rows and deletions."""
    rejected: int | None
    parked: int | None
    lag: int
    verdicts: tuple[LatencyBucket, ...] = ()


class HistoryColumn(NamedTuple):
    """A part of the window: records a second, records that wait, seconds. None is unknown."""

    arrived: float | None = None
    accepted: float | None = None
    rejected: float | None = None
    parked: float | None = None
    lag: float | None = None
    median: float | None = None
    slowest: float | None = None
    """The time within which 99 % of the verdicts came."""


class Window(NamedTuple):
    """The shown time: its length in seconds, its columns, the oldest first, and what is now.

    `since` is the time of the first sample.
    """

    seconds: int
    columns: list[HistoryColumn]
    now: HistoryColumn
    since: float | None


class History:
    """The samples of the last hour."""

    def __init__(self) -> None:
        self._samples: deque[Sample] = deque(maxlen=int(WINDOWS[-1] / SAMPLE_SECONDS) + 1)

    def add(self, sample: Sample) -> None:
        """Keep the next sample. If the clock was set back, the later ones are forgotten."""
        while self._samples and self._samples[-1].at >= sample.at:
            self._samples.pop()
        self._samples.append(sample)

    def window(self, now: float) -> Window:
        """What the samples show at this time."""
        samples = [one for one in self._samples if one.at > now - WINDOWS[-1]]
        since = samples[0].at if samples else None
        reach = 0.0 if since is None else now - since
        seconds = next((each for each in WINDOWS if reach <= each), WINDOWS[-1])
        width = seconds / COLUMNS
        last = int(now // width)
        parts: dict[int, list[tuple[Sample, Sample]]] = {}
        for pair in pairwise(samples):
            parts.setdefault(int(pair[1].at // width), []).append(pair)
        columns = [_column(parts.get(i, ())) for i in range(last - COLUMNS + 1, last + 1)]
        recent = [pair for pair in pairwise(samples) if pair[1].at > now - _NOW_SECONDS]
        current = _column(recent)
        if samples and samples[-1].at > now - _NOW_SECONDS:  # one sample tells what waits
            current = current._replace(parked=samples[-1].parked, lag=samples[-1].lag)
        return Window(seconds, columns, current, since)


def sample_of(report: Report, at: float, verdicts: tuple[LatencyBucket, ...]) -> Sample:
    """The sample of a status report, with the histogram of the services' process."""

    def total(figure: Callable[[Figures], int | None]) -> int | None:
        found = [figure(each) for each in report.entities.values()]
        known = [each for each in found if each is not None]
        return sum(known) if len(known) == len(found) else None

    return Sample(
        at,
        arrived=total(lambda f: None if f.read is None else f.read + f.lag),
        accepted=total(lambda f: _sum(f.accepted, f.deleted)),
        rejected=total(lambda f: f.rejected),
        parked=total(lambda f: f.parked),
        lag=sum(figures.lag for figures in report.entities.values()),
        verdicts=verdicts,
    )


def _sum(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _column(pairs: Sequence[tuple[Sample, Sample]]) -> HistoryColumn:
    """The column of samples that follow each other. Each pair belongs to where it ends."""
    if not pairs:
        return HistoryColumn()
    verdicts: tuple[LatencyBucket, ...] = ()
    for before, after in pairs:
        verdicts = added(verdicts, between(before.verdicts, after.verdicts))
    last = pairs[-1][1]
    return HistoryColumn(
        arrived=_rate(pairs, lambda sample: sample.arrived),
        accepted=_rate(pairs, lambda sample: sample.accepted),
        rejected=_rate(pairs, lambda sample: sample.rejected),
        parked=last.parked,
        lag=last.lag,
        median=quantile(verdicts, 0.5),
        slowest=quantile(verdicts, 0.99),
    )


def _rate(
    pairs: Sequence[tuple[Sample, Sample]], count: Callable[[Sample], int | None]
) -> float | None:
    """Records a second. A count falls if topics were made anew: that counts as none."""
    gained, seconds = 0, 0.0
    for before, after in pairs:
        old, new = count(before), count(after)
        if old is not None and new is not None:
            gained += max(0, new - old)
            seconds += after.at - before.at
    return gained / seconds if seconds else None
