"""Reads the batches of a partition in order, checks their seals, and finds holes left by damage.

Batches cover a partition's offsets without gaps: compaction leaves an empty batch where it drops
every message. So a vanished batch is detected as reliably as a changed one.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import Final, NamedTuple

from worker.brokers.embedded.disk import is_damage
from worker.brokers.embedded.seal import reason_of, seal_batch

NOTHING: Final = b"\x90"
"""The entries of an empty batch, in msgpack."""

UNSOUND: Final = "the checksum does not fit"
_MISSING: Final = "the batch is missing"


class StoredBatch(NamedTuple):
    """The messages at the offsets from `base` up to, not including, `next`."""

    base: int
    next: int
    time: int
    last_time: int
    entries: bytes


class Hole(NamedTuple):
    """Unreadable offsets from `base` up to, not including, `next`, and the reason."""

    base: int
    next: int
    reason: str


def walk(
    connection: sqlite3.Connection, partition: int, position: int, end: int
) -> Iterator[StoredBatch | Hole]:
    """The batches that hold the offsets from `position` up to `end`, and holes between them."""
    while position < end:
        began = position
        fault: str | None = None
        try:
            with contextlib.closing(_rows(connection, partition, position)) as rows:
                for *row, crc in rows:
                    batch = StoredBatch(*row)
                    if fault := _fault(partition, batch, crc, began, position, end):
                        break
                    yield batch
                    position = batch.next
        except sqlite3.DatabaseError as error:
            if not is_damage(error, connection):
                raise
            fault = f"the database file is damaged: {reason_of(error)}"
        # A fault further on may come from the index: a new query may return the right row.
        if position == began:
            after = _next_base(connection, partition, position, end)
            yield Hole(position, after, fault or _MISSING)
            position = after


def insert(connection: sqlite3.Connection, partition: int, batch: StoredBatch) -> None:
    """Add a batch, within a transaction."""
    connection.execute(
        "INSERT INTO batches (partition, base, next, time, last_time, content, crc)"
        " VALUES (?, ?, ?, ?, ?, ?, ?)",
        (partition, *batch, seal_batch((partition, *batch[:4]), batch.entries)),
    )


def below(connection: sqlite3.Connection, partition: int, end: int, limit: int) -> sqlite3.Cursor:
    """The rows of the batches below `end`, newest first; the last column is the checksum."""
    return connection.execute(
        "SELECT base, next, time, last_time, content, crc FROM batches"
        " WHERE partition = ? AND base < ? ORDER BY base DESC LIMIT ?",
        (partition, end, limit),
    )


def is_sound(partition: int, batch: StoredBatch, crc: object) -> bool:
    """Whether a batch matches its checksum; -1 stands for content that is not bytes."""
    return crc != -1 and seal_batch((partition, *batch[:4]), batch.entries) == crc


def _rows(connection: sqlite3.Connection, partition: int, position: int) -> sqlite3.Cursor:
    return connection.execute(
        "SELECT base, next, time, last_time, content, crc FROM batches"
        " WHERE partition = ? AND base >= coalesce("
        " (SELECT max(base) FROM batches WHERE partition = ? AND base <= ?), 0) ORDER BY base",
        (partition, partition, position),
    )


def _fault(
    partition: int, batch: StoredBatch, crc: object, began: int, position: int, end: int
) -> str | None:
    if not is_sound(partition, batch, crc):
        return UNSOUND if batch.base == position else _MISSING
    if not batch.base <= position < batch.next or (position > began and batch.base != position):
        return _MISSING
    return "the batch goes beyond the end" if batch.next > end else None


def _next_base(connection: sqlite3.Connection, partition: int, position: int, end: int) -> int:
    try:
        (after,) = connection.execute(
            "SELECT min(base) FROM batches WHERE partition = ? AND base > ?", (partition, position)
        ).fetchone()
    except sqlite3.DatabaseError as error:
        if not is_damage(error, connection):
            raise
        return end
    return after if isinstance(after, int) and after < end else end
