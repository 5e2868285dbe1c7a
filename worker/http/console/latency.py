"""The time from a record's arrival to its verdict, from the metrics of the services. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

_BUCKET: Final = re.compile(
    rb'^buddy_verdict_seconds_bucket\{le="([^"]+)"\} ([0-9.e+]+)$', re.MULTILINE
)


class LatencyBucket(NamedTuple):
    """How many verdicts took at most so many seconds."""

    seconds: float
    verdicts: float


def buckets_of(metrics: bytes) -> tuple[LatencyBucket, ...]:
    """The histogram of verdicts in a page of metrics; empty if it has none."""
    return tuple(LatencyBucket(float(le), float(count)) for le, count in _BUCKET.findall(metrics))


def between(
    before: Sequence[LatencyBucket], after: Sequence[LatencyBucket]
) -> tuple[LatencyBucket, ...]:
    """The verdicts of the time between two histograms.

    Empty if they do not belong together: a process that starts anew counts from 0.
    """
    if [one.seconds for one in before] != [one.seconds for one in after]:
        return ()
    found = tuple(
        LatencyBucket(new.seconds, new.verdicts - old.verdicts)
        for old, new in zip(before, after, strict=True)
    )
    return () if any(one.verdicts < 0 for one in found) else found


def added(
    one: Sequence[LatencyBucket], other: Sequence[LatencyBucket]
) -> tuple[LatencyBucket, ...]:
    """The verdicts of both histograms; either may be empty. The bounds of the later one count."""
    if [each.seconds for each in one] != [each.seconds for each in other]:
        return tuple(other or one)
    return tuple(
        LatencyBucket(left.seconds, left.verdicts + right.verdicts)
        for left, right in zip(one, other, strict=True)
    )


def quantile(buckets: Sequence[LatencyBucket], share: float) -> float | None:
    """The seconds within which that share of the verdicts came, interpolated within a bucket.

    None without verdicts. Beyond the last finite bound, that bound.
    """
    total = buckets[-1].verdicts if buckets else 0.0
    if not total:
        return None
    wanted, lower, below = share * total, 0.0, 0.0
    for bucket in buckets:
        if bucket.verdicts >= wanted and bucket.verdicts > below:
            if bucket.seconds == float("inf"):
                return lower
            part = (wanted - below) / (bucket.verdicts - below)
            return lower + part * (bucket.seconds - lower)
        lower, below = bucket.seconds, bucket.verdicts
    return lower
