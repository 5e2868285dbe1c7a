"""Counts verdicts by entity and bucket of time, for `worker.desk.incidents`. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Final, NamedTuple

from worker.desk.detection import BUCKET_MS
from worker.desk.seen import RejectionSeen, Settling

REJECTIONS: Final = "rejections"
UNKNOWN_FIELDS: Final = "unknown_fields"
"""What incidents are about: records that are rejected, and records with fields that no column is
for."""


class VerdictCount(NamedTuple):
    """How many verdicts of a bucket are such (`found`), and how many are not (`others`)."""

    entity: str
    what: str
    bucket: int
    others: int
    found: int


def verdict_counts(
    rejections: Sequence[RejectionSeen], settlings: Sequence[Settling], since: int, now: int
) -> list[VerdictCount]:
    """The counts of verdicts from `since` on, in ms. What is later than `now` counts as now."""
    counts: Counter[tuple[str, int, bool, bool]] = Counter()
    for seen in rejections:
        if seen.at >= since:
            bucket = min(seen.at, now) // BUCKET_MS
            counts[seen.entity, bucket, True, bool(seen.unknown_names)] += 1
    for row in settlings:
        if row.at >= since:
            bucket = min(row.at, now) // BUCKET_MS
            counts[row.entity, bucket, False, bool(row.unknown_names)] += 1
    return [
        VerdictCount(entity, what, bucket, 0 if is_so else count, count if is_so else 0)
        for (entity, bucket, rejected, unknown), count in counts.items()
        for what, is_so in ((REJECTIONS, rejected), (UNKNOWN_FIELDS, unknown))
    ]
