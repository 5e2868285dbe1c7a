"""How many rejections are open, by entity, and since when."""

from __future__ import annotations

from typing import Final, NamedTuple

from schemas import ENTITIES
from worker.desk.buckets import WIDTHS_MS
from worker.desk.store import RejectionStore

_OPEN: Final = (
    "SELECT k.entity, sum(c.open), min(c.bucket) FROM counts c JOIN kinds k ON k.id = c.kinds"
    " WHERE c.level = ? AND c.open > 0 GROUP BY k.entity"
)
_FIRST: Final = (
    "SELECT min(c.bucket) FROM counts c JOIN kinds k ON k.id = c.kinds"
    " WHERE c.level = ? AND c.bucket >= ? AND c.bucket < ? AND c.open > 0 AND k.entity = ?"
)


class OpenCount(NamedTuple):
    """The open rejections of an entity."""

    records: int = 0
    oldest: int | None = None
    """The minute in which the broker appended the oldest, in milliseconds since 1970."""


def still_open(store: RejectionStore) -> dict[str, OpenCount]:
    """What is open of every entity. Its cost does not grow with the number of rejections.

    Raises StateError.
    """
    found = dict.fromkeys(ENTITIES, OpenCount())
    level = len(WIDTHS_MS) - 1
    with store.database.guard():
        for entity, records, bucket in store.database.rows(_OPEN, (level,)):
            found[entity] = OpenCount(records, _oldest(store, entity, level, bucket))
    return found


def _oldest(store: RejectionStore, entity: str, level: int, bucket: int) -> int:
    """Go down from the first day with an open one to its first hour, and first minute."""
    while level:
        parts = WIDTHS_MS[level] // WIDTHS_MS[level - 1]
        level -= 1
        span = (bucket * parts, (bucket + 1) * parts)
        ((bucket,),) = store.database.rows(_FIRST, (level, *span, entity))
    return bucket * WIDTHS_MS[0]
