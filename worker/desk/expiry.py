"""Removes rejections that their topics no longer have from the desk's store, with their counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from worker.desk.buckets import WIDTHS_MS
from worker.desk.counts import OPEN, RejectionRow, add_counts
from worker.desk.database import DeskDatabase
from worker.stream import Partition

MOST_REJECTIONS: Final = 20_000_000
"""Some 2 GB. Topics keep rejections for 30 days; this holds where one keeps them for longer."""
_REMOVED_AT_ONCE: Final = 20_000

_log = structlog.get_logger(__name__)


def expire(
    database: DeskDatabase, starts: Mapping[Partition, int], most: int = MOST_REJECTIONS
) -> int:
    """Remove rejections that their topics no longer have, with their counts.

    `starts` has the start of each partition of rejections. Of more than `most` rejections the
    oldest are removed as well. Returns how many were removed. Raises `StateError`.
    """
    removed = 0
    with database.guard():
        for partition, start in starts.items():
            known = database.execute(
                "SELECT id FROM partitions WHERE topic = ? AND number = ? AND start < ?",
                (*partition, start),
            ).fetchone()
            if known is not None:
                removed += _remove(
                    database, 'topic_partition = ? AND "offset" < ?', (*known, start)
                )
                with database.transaction():
                    database.execute(
                        "UPDATE partitions SET start = ? WHERE id = ?", (start, *known)
                    )
        (there,) = database.execute(
            "SELECT coalesce(sum(records), 0) FROM counts WHERE level = ?",
            (len(WIDTHS_MS) - 1,),
        ).fetchone()
        if there > most:
            _log.warning("desk_full", removed=there - most)
            limit = database.execute(
                "SELECT id FROM rejections ORDER BY id LIMIT 1 OFFSET ?", (there - most,)
            ).fetchone()
            removed += _remove(database, "id < ?", limit)
        if removed:
            with database.transaction():
                database.execute("DELETE FROM counts WHERE records = 0")
    return removed


def _remove(database: DeskDatabase, where: str, values: tuple[int, ...]) -> int:
    """Remove rejections and their counts, some at a time. Returns how many."""
    some = f"SELECT id FROM rejections WHERE {where} LIMIT {_REMOVED_AT_ONCE}"
    removed = 0
    while True:
        with database.transaction():
            rows = database.execute(
                f"DELETE FROM rejections WHERE id IN ({some}) RETURNING *",
                values,
            )
            gone = list(map(RejectionRow._make, rows))
            add_counts(database, ((row, -1, -1 if row.state == OPEN else 0) for row in gone))
        if not gone:
            return removed
        removed += len(gone)
