"""The rows of rejections in the desk's database, and their counts by time."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, NamedTuple

from worker.desk.buckets import WIDTHS_MS
from worker.desk.database import DeskDatabase

OPEN, ACCEPTED, DELETED, REPLAYED = range(4)
"""What became of a rejection: nothing yet, or its key was accepted or deleted since, or its record
was sent again, whatever else."""
STATES: Final = ("open", "accepted", "deleted", "replayed")

_COUNT: Final = (
    "INSERT INTO counts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET records = records + excluded.records,"
    " open = open + excluded.open, first = min(first, excluded.first),"
    " last = max(last, excluded.last)"
)


class RejectionRow(NamedTuple):
    """A row of the table `rejections`, with its columns in order."""

    id: int | None
    at: int
    key: int | None
    kinds: int
    topic_partition: int
    offset: int
    source_partition: int
    source_offset: int
    producer: int
    state: int
    cause: int | None
    cause_kinds: int
    judged: int


def add_counts(database: DeskDatabase, changes: Iterable[tuple[RejectionRow, int, int]]) -> None:
    """Add to the counts of rejections, and of open ones, at every level."""
    sums: dict[tuple[int, ...], list[int]] = {}
    for row, records, open_ in changes:
        for level, width in enumerate(WIDTHS_MS):
            bucket = (
                level,
                row.at // width,
                row.kinds,
                row.source_partition,
                row.producer,
                row.cause_kinds,
            )
            at = row.at % width // 1000
            found = sums.setdefault(bucket, [0, 0, at, at])
            found[0] += records
            found[1] += open_
            found[2] = min(found[2], at)
            found[3] = max(found[3], at)
    database.executemany(_COUNT, [(*bucket, *found) for bucket, found in sums.items()])
