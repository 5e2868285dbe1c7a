"""Compaction of a partition: the latest message of each key stays, at its offset and with its time.

A partition is compacted once it has doubled, so each message is rewritten only a few times, however
large the log grows.

Compaction walks from the newest batch to the oldest, remembers the keys it has seen, and drops
older messages of those keys. The log is correct at every moment: a message is dropped only while
a newer message of its key exists. A tombstone is dropped only below the offset up to which an
*earlier* compaction finished. No older message of its key is left there to reappear. The step that
drops one notes it in the partition's row: a reader that stopped before it has missed a deletion.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from worker.brokers.embedded.batches import (
    NOTHING,
    Hole,
    StoredBatch,
    below,
    insert,
    is_sound,
)
from worker.brokers.embedded.damage import UnskippedHole, skipped_at
from worker.brokers.embedded.disk import is_damage
from worker.brokers.embedded.log import BATCH_BYTES
from worker.brokers.embedded.store import transaction
from worker.brokers.embedded.topics import partition_row, store
from worker.errors import StateError
from worker.stream import Partition

STEP_ROWS = 1000
STEP_BYTES = 1024 * 1024
"""The work of one step, which holds the write lock for a few milliseconds."""

REMEMBERED_KEYS = 250_000
"""Bounds the memory of a compaction (about 100 bytes a key); more keys need further passes."""

_encode = msgspec.msgpack.Encoder().encode
_Lazy = tuple[int, int, bytes | None, msgspec.Raw, msgspec.Raw]
_decode = msgspec.msgpack.Decoder(list[_Lazy]).decode  # values and headers stay encoded


class _Kept(NamedTuple):
    offset: int
    time: int
    key: bytes | None
    value: msgspec.Raw
    headers: msgspec.Raw


def compact(
    connection: sqlite3.Connection, row_id: int, partition: Partition, now: int, horizon: int
) -> Iterator[None]:
    """Compact a partition in steps, each a transaction of its own.

    Drops tombstones older than `horizon`, and records `now` as the time of the compaction; both in
    milliseconds of log time. Raises UnskippedHole, DamagedLog and StateError.
    """
    row = partition_row(connection, row_id, partition)
    (grown,) = connection.execute("SELECT grown FROM partitions WHERE id = ?", (row_id,)).fetchone()
    ceiling = top = row.next
    cleaned = row.compacted_to
    while True:
        sieve = _Sieve(ceiling, cleaned, horizon)
        end = top if ceiling == top else _end_of_batch(connection, row_id, ceiling)
        while end > row.start:
            batches = _window(connection, row_id, end)
            if not batches:
                end = _below_hole(connection, row_id, row.start, end)
                continue
            _rewrite(connection, row_id, partition, batches, sieve.sift(batches))
            end = batches[-1].base
            yield
        ceiling = sieve.floor
        if ceiling <= cleaned:
            break
    with transaction(connection):
        (kept,) = connection.execute(
            "SELECT coalesce(sum(length(content)), 0) FROM batches"
            " WHERE partition = ? AND base < ?",
            (row_id, top),
        ).fetchone()
        store(connection, partition_row(connection, row_id, partition)._replace(compacted_to=top))
        connection.execute(
            "UPDATE partitions SET compacted_at = ?, kept = ?, grown = grown - ? WHERE id = ?",
            (now, kept, grown, row_id),
        )


class _Sifted(NamedTuple):
    kept: list[_Kept]
    """The messages that stay, oldest first."""
    dropped: int
    tombstones_to: int
    """The offset after the newest tombstone that was dropped for its age; 0 if none was."""


class _Sieve:
    """One pass, from the newest message below `ceiling` down to the oldest of the partition.

    It drops each message that a newer message between `floor` and `ceiling` supersedes. `floor`
    is `cleaned`, unless there are more than `REMEMBERED_KEYS`: then another pass starts at `floor`.
    """

    def __init__(self, ceiling: int, cleaned: int, horizon: int) -> None:
        self.floor = cleaned
        self._ceiling = ceiling
        self._cleaned = cleaned
        self._horizon = horizon
        self._seen: set[bytes | None] = set()

    def sift(self, batches: list[StoredBatch]) -> _Sifted:
        """Sift the next older batches, newest first."""
        kept: list[_Kept] = []
        dropped = tombstones_to = 0
        for batch in batches:
            for ahead, later, key, value, headers in reversed(_decode(batch.entries)):
                entry = _Kept(batch.base + ahead, batch.time + later, key, value, headers)
                if self._is_superseded(entry):
                    dropped += 1
                elif self._is_old_tombstone(entry):
                    dropped += 1
                    tombstones_to = max(tombstones_to, entry.offset + 1)
                else:
                    kept.append(entry)
        kept.reverse()
        return _Sifted(kept, dropped, tombstones_to)

    def _is_superseded(self, entry: _Kept) -> bool:
        if entry.offset >= self._ceiling:
            return False  # an earlier pass has decided on it
        if entry.key in self._seen:
            return True
        if entry.offset >= self.floor:
            if len(self._seen) < REMEMBERED_KEYS:
                self._seen.add(entry.key)
            else:
                self.floor = entry.offset + 1
        return False

    def _is_old_tombstone(self, entry: _Kept) -> bool:
        if entry.offset >= min(self._cleaned, self._ceiling):
            return False
        # A value is bytes or nil: in msgpack, only nil takes a single byte.
        return len(memoryview(entry.value)) == 1 and entry.time < self._horizon


def _end_of_batch(connection: sqlite3.Connection, row_id: int, ceiling: int) -> int:
    """The end of the batch that holds the offset before `ceiling`."""
    (end,) = connection.execute(
        "SELECT next FROM batches WHERE partition = ? AND base < ? ORDER BY base DESC LIMIT 1",
        (row_id, ceiling),
    ).fetchone() or (ceiling,)
    return end if isinstance(end, int) else ceiling


def _window(connection: sqlite3.Connection, row_id: int, end: int) -> list[StoredBatch]:
    """The next sound batches below `end`, newest first; none if a hole ends there."""
    batches: list[StoredBatch] = []
    size = 0
    try:
        with contextlib.closing(below(connection, row_id, end, STEP_ROWS)) as rows:
            for *row, crc in rows:
                batch = StoredBatch(*row)
                if batch.next != end or not is_sound(row_id, batch, crc):
                    break
                batches.append(batch)
                end = batch.base
                size += len(batch.entries)
                if size >= STEP_BYTES:
                    break
    except sqlite3.DatabaseError as error:
        if not is_damage(error, connection):
            raise
    return batches


def _below_hole(connection: sqlite3.Connection, row_id: int, start: int, end: int) -> int:
    """The start of the hole that ends at `end`. Raises `UnskippedHole` unless it is skipped."""
    skipped = skipped_at(connection, row_id, end - 1)
    if skipped is not None:
        return skipped.base
    (base,) = connection.execute(
        "SELECT coalesce(max(base), ?) FROM batches WHERE partition = ? AND base < ?",
        (start, row_id, end),
    ).fetchone()
    raise UnskippedHole(Hole(base, end, "the checksum does not fit, or the batch is missing"))


def _rewrite(
    connection: sqlite3.Connection,
    row_id: int,
    partition: Partition,
    batches: list[StoredBatch],
    sifted: _Sifted,
) -> None:
    kept, dropped, tombstones_to = sifted
    base, after = batches[-1].base, batches[0].next
    packed = _pack(kept, base, after) or [
        StoredBatch(base, after, 0, batches[0].last_time, NOTHING)
    ]
    if not dropped and len(packed) == len(batches):
        return  # a rewrite would gain nothing
    with transaction(connection):
        cursor = connection.execute(
            "DELETE FROM batches WHERE partition = ? AND base >= ? AND base < ?",
            (row_id, base, after),
        )
        if cursor.rowcount != len(batches):
            raise StateError("Two processes compact one log: is its upkeep.lock being removed?")
        for batch in packed:
            insert(connection, row_id, batch)
        row = partition_row(connection, row_id, partition)
        if tombstones_to > row.tombstones_from:
            store(connection, row._replace(tombstones_from=tombstones_to))


def _pack(kept: list[_Kept], base: int, after: int) -> list[StoredBatch]:
    """Pack these messages into full batches, which together cover `base` up to `after`."""
    groups: list[list[_Kept]] = []
    size = BATCH_BYTES
    for entry in kept:
        size += len(memoryview(entry.value)) + len(memoryview(entry.headers)) + 16
        size += len(entry.key) if entry.key else 0
        if size > BATCH_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(entry)
    bases = [base, *(group[0].offset for group in groups[1:])]
    ends = [*bases[1:], after]
    return [
        _batch(group, first, end) for group, first, end in zip(groups, bases, ends, strict=False)
    ]


def _batch(group: list[_Kept], base: int, after: int) -> StoredBatch:
    time = group[0].time
    entries = [
        (entry.offset - base, entry.time - time, entry.key, entry.value, entry.headers)
        for entry in group
    ]
    return StoredBatch(base, after, time, group[-1].time, _encode(entries))
