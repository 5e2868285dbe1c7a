"""The rejections in the order in which the store has read them, for those who follow it."""

from __future__ import annotations

from worker.desk.queries import RejectionPage, listed_where
from worker.desk.store import RejectionStore


def since_number(store: RejectionStore, number: int, limit: int) -> RejectionPage:
    """The rejections behind this number, whatever became of them, in order of numbers."""
    found = listed_where(store, "r.id > ?", (number,), limit + 1, order="ASC")
    return RejectionPage(found[:limit], len(found) > limit)


def last_read(store: RejectionStore) -> tuple[int, int]:
    """Number and append time of the rejection that was read last; zeros if there is none."""
    rows = store.database.rows("SELECT id, at FROM rejections ORDER BY id DESC LIMIT 1")
    return rows[0] if rows else (0, 0)


def number_before(store: RejectionStore, at: int) -> int:
    """The number behind which all rejections are that were appended at this time or later."""
    ((number,),) = store.database.rows("SELECT min(id) FROM rejections WHERE at >= ?", (at,))
    return last_read(store)[0] if number is None else number - 1
