"""Decides when the share of rejections of one entity is an incident. Pure.

An incident opens when the last 15 s, 60 s or 10 min pass three tests against all before them: the
share is far above the usual one (`opens_at`), chance does not explain it, and ten rejections
remain once the largest clump is set aside.

A clump is what arrives within two adjacent buckets. Up to 20 rejections of one clump are set
aside. So a faulty file of 20 alone opens no incident; one of 30 does in a slow and clean stream.
A fast stream takes more: with 1 % rejected, 55 at 100 records/s and 350 at 1,000 records/s.
A stream whose rejections usually come in clumps needs more evidence, by the size of its clumps.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from math import log
from typing import Final, NamedTuple

import msgspec

BUCKET_MS: Final = 5_000
_MINUTE: Final = 12
"""In buckets, as are all lengths of time below."""
_WINDOW: Final = 10 * _MINUTE
_SUFFIXES: Final = (_WINDOW, _MINUTE, 3)
_CALM: Final = 2 * _MINUTE
_SILENT: Final = 5 * _MINUTE
_KEPT: Final = 0.5 ** (1 / (6 * 60 * _MINUTE))
"""What each bucket leaves of the past."""
_CLUMP: Final = 20
"""In rejections, as is the next."""
_LEAST: Final = 10
_OPENS: Final = 20.0
"""The evidence that opens an incident. Chance gives as much in about one of 10**8 windows."""
_CLOSES: Final = 10.0
"""The evidence that the last two minutes differ from the incident before them."""


class Verdicts(NamedTuple):
    """How many records of a bucket, or of several, were accepted and rejected."""

    accepted: int
    rejected: int

    @property
    def share(self) -> float:
        """The share of rejections; 0 without records."""
        return _share(self.accepted, self.rejected)


class Past(NamedTuple):
    """What has left the window. Its weight halves in six hours of buckets that had records."""

    accepted: float = 196.0
    rejected: float = 4.0
    """A new entity starts as if 2 % of 200 records had been rejected. If 3 % are, nothing opens;
    if 30 % are, an incident does."""
    scatter: float = 6.0
    """The sum of squares of how far the rejections of each bucket were from the usual share."""

    @property
    def share(self) -> float:
        """The share of rejections."""
        return _share(self.accepted, self.rejected)

    @property
    def clump(self) -> float:
        """How many rejections usually arrive together, 1 to 20: the index of dispersion."""
        independent = self.rejected * (1 - self.share)
        return min(max(1.0, self.scatter / independent), _CLUMP) if independent else 1.0


class Incident(msgspec.Struct, frozen=True):
    """A share of rejections that is far above the usual one. Times are in ms since 1970."""

    since: int
    """The start of the bucket in which the share most likely rose, at most ten minutes before."""
    opened: int
    """The end of the bucket that opened the incident."""
    usual: float
    """The share of rejections before the incident. It stays as it was at the opening."""
    share: float
    """The share of the last minute that had ten records."""
    rejected: int
    """Rejections from `since` to the latest bucket, the calm before the closing included."""
    seen: int
    """Records from `since`, accepted or rejected."""


class IncidentOpened(NamedTuple):
    """An incident has opened."""

    incident: Incident


class IncidentClosed(NamedTuple):
    """An incident has closed at the end of a bucket."""

    incident: Incident
    at: int


class Watch(msgspec.Struct, frozen=True):
    """The state of one entity between buckets. Its JSON is below 4 KiB (10**9 records a bucket)."""

    bucket: int = -1
    """The number of the last bucket."""
    window: tuple[Verdicts, ...] = ()
    """The last ten minutes, oldest first, without leading empty buckets. While an incident is
    open, nothing from before it; after its closing, nothing of it."""
    past: Past = Past()
    """Without anything that an incident covers, from `since` to its closing."""
    incident: Incident | None = None


def advance(
    watch: Watch, bucket: int, verdicts: Verdicts
) -> tuple[Watch, tuple[IncidentOpened | IncidentClosed, ...]]:
    """The state after bucket number `bucket` (ms // BUCKET_MS), and what opened or closed.

    Missing buckets count as empty: a silent entity needs an empty bucket now and then, lest its
    incident stays open. After a gap one call may both close an incident and open the next.

    An incident closes when each of the last two minutes is below the middle between the usual
    share and `opens_at`, and chance does not explain it. Where two minutes have too few records to
    tell, the last ten must be below it together. Five minutes without records also close it.
    While the share stays up, the incident stays open, for days if need be.

    Raises ValueError unless `bucket` is above the last one.
    """
    if bucket <= watch.bucket:
        raise ValueError("buckets come in increasing order")
    events: list[IncidentOpened | IncidentClosed] = []
    # Nothing changes any more once the window is empty and the incident closed.
    while watch.bucket < bucket - 1 and (watch.window or watch.incident):
        watch, event = _step(watch, watch.bucket + 1, Verdicts(0, 0))
        events += [event] if event else []
    watch, event = _step(watch, bucket, verdicts)
    return watch, (*events, *([event] if event else []))


def opens_at(usual: float) -> float:
    """The share that is far above the usual one: three times its odds, and two points more.

    Three times the odds is three times a small share: 3 % for 1 %, 25 % for 10 %, 75 % for 50 %.
    """
    return max(3 * usual / (1 + 2 * usual), usual + 0.02)


def _step(
    watch: Watch, bucket: int, verdicts: Verdicts
) -> tuple[Watch, IncidentOpened | IncidentClosed | None]:
    window, past = (*watch.window, verdicts), watch.past
    if len(window) > _WINDOW:
        past = past if watch.incident else _learn(past, window[:1])
        window = window[1:]
    first = next((at for at, one in enumerate(window) if one != (0, 0)), len(window))
    window = window[first:]
    if watch.incident:
        return _during(watch.incident, Watch(bucket, window, past), verdicts)
    if not verdicts.rejected or not _risen(window, past):
        return Watch(bucket, window, past), None
    start = max(
        reversed(range(len(window))), key=lambda start: _evidence(*_cut(window, start, past))
    )
    past, window = _learn(past, window[:start]), window[start:]
    covered = _total(window)
    incident = Incident(
        since=(bucket + 1 - len(window)) * BUCKET_MS,
        opened=(bucket + 1) * BUCKET_MS,
        usual=past.share,
        share=_total(window[-_MINUTE:]).share,
        rejected=covered.rejected,
        seen=sum(covered),
    )
    return Watch(bucket, window, past, incident), IncidentOpened(incident)


def _during(
    incident: Incident, watch: Watch, verdicts: Verdicts
) -> tuple[Watch, IncidentClosed | None]:
    end = (watch.bucket + 1) * BUCKET_MS
    minute = _total(watch.window[-_MINUTE:])
    incident = msgspec.structs.replace(
        incident,
        share=minute.share if sum(minute) >= _LEAST else incident.share,
        rejected=incident.rejected + verdicts.rejected,
        seen=incident.seen + sum(verdicts),
    )
    if _is_over(incident, watch, (end - incident.opened) // BUCKET_MS):
        return Watch(watch.bucket, (), watch.past), IncidentClosed(incident, end)
    return msgspec.structs.replace(watch, incident=incident), None


def _is_over(incident: Incident, watch: Watch, age: int) -> bool:
    window = watch.window
    if not sum(_total(window[-_SILENT:])):
        return True
    closes_at = (incident.usual + opens_at(incident.usual)) / 2
    if age >= _WINDOW and _total(window).share < closes_at:
        return True
    minutes = _total(window[-_CALM:-_MINUTE]), _total(window[-_MINUTE:])
    if age < _CALM or any(minute.share >= closes_at for minute in minutes):
        return False
    calm = _total(minutes)
    rejected = incident.rejected - calm.rejected
    before = Verdicts(incident.seen - sum(calm) - rejected, rejected)
    return _evidence(before, calm) >= _CLOSES * watch.past.clump


def _risen(window: tuple[Verdicts, ...], past: Past) -> bool:
    for size in _SUFFIXES:
        suffix, rest = _cut(window, max(0, len(window) - size), past)
        least = opens_at(rest.share)
        if suffix.rejected < _LEAST:
            return False
        if suffix.share < least:
            continue
        pairs = pairwise((Verdicts(0, 0), *window[-size:]))
        clump = max(one.rejected + other.rejected for one, other in pairs)
        spread = Verdicts(suffix.accepted, suffix.rejected - min(_CLUMP, clump))
        if (
            spread.rejected >= _LEAST
            and spread.share >= least
            and _evidence(spread, rest) >= _OPENS * past.clump
        ):
            return True
    return False


def _cut(window: tuple[Verdicts, ...], start: int, past: Past) -> tuple[Verdicts, Past]:
    """The window from `start`, and all before it."""
    rest = _total(window[:start])
    accepted, rejected = past.accepted + rest.accepted, past.rejected + rest.rejected
    return _total(window[start:]), Past(accepted, rejected, past.scatter)


def _learn(past: Past, buckets: Iterable[Verdicts]) -> Past:
    for accepted, rejected in buckets:
        if accepted or rejected:  # silence forgets nothing
            kept = Past(*(_KEPT * value for value in past))
            past = Past(kept.accepted + accepted, kept.rejected + rejected)
            excess = rejected - (accepted + rejected) * past.share
            past = past._replace(scatter=kept.scatter + excess * excess)
    return past


def _total(buckets: Iterable[Verdicts]) -> Verdicts:
    accepted, rejected = zip((0, 0), *buckets, strict=True)
    return Verdicts(sum(accepted), sum(rejected))


def _share(accepted: float, rejected: float) -> float:
    return rejected / ((accepted + rejected) or 1)


def _evidence(part: Verdicts, rest: Verdicts | Past) -> float:
    """How clearly the share of `part` is above that of `rest`, as a log-likelihood ratio.

    If both had one share, a value of x would be about as likely as exp(-x), however small the
    share is. Zero if it is not above.
    """
    if part.share <= rest.share:
        return 0.0
    both = part.accepted + rest.accepted, part.rejected + rest.rejected
    return _fit(*part) + _fit(rest.accepted, rest.rejected) - _fit(*both)


def _fit(*counts: float) -> float:
    total = sum(counts)
    return sum(count * log(count / total) for count in counts if count > 0)
