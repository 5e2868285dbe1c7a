"""Compaction and retention of the embedded broker's log, in small steps.

* Retention: batches older than the topic's `retention_ms` go, and the partition's start moves up.
* Compaction: of each key the latest message stays, at its offset, with its time. A partition is
  compacted once it has doubled, so each message is rewritten a few times in its life, however
  large the log grows.

Compaction walks from the newest batch to the oldest, remembers the keys it has seen, and drops
older messages of those keys. At every moment the log is right: a message goes only while a newer
one of its key stands. A tombstone goes only when it lies below the point up to which an *earlier*
compaction was finished, where nothing older of its key is left that could come back to life.

One process at a time does upkeep, by a file lock that dies with it; so batches change only under
that lock, and appends only add to the end. Readers see the batches before or after a step, and
find the same messages by offset in both.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from worker.brokers.embedded_log import BATCH_BYTES
from worker.brokers.embedded_store import FILE_NAME, transaction
from worker.errors import StateError

GROWN_BYTES = 1024 * 1024
"""A partition that has grown by less is not worth a compaction yet …"""

COMPACT_MS = 24 * 3600 * 1000
"""… unless it was last compacted so long ago: what was deleted must go in the end."""

STEP_ROWS = 1000
STEP_BYTES = 1024 * 1024
"""What a step may hold the write lock for: a few milliseconds."""

EXPIRE_BYTES = 8 * 1024 * 1024

REMEMBERED_KEYS = 250_000
"""Bounds the memory of a compaction (about 100 bytes a key); more keys take further passes."""

WAL_BYTES = 64 * 1024 * 1024

_encode = msgspec.msgpack.Encoder().encode
_Lazy = tuple[int, int, bytes | None, msgspec.Raw, msgspec.Raw]
_decode = msgspec.msgpack.Decoder(list[_Lazy]).decode  # values and headers stay as they are


class _Batch(NamedTuple):
    base: int
    next: int
    time: int
    last_time: int
    entries: bytes


class _Kept(NamedTuple):
    offset: int
    time: int
    key: bytes | None
    value: msgspec.Raw
    headers: msgspec.Raw


class Upkeep:
    """One round of upkeep; call `step` in the write thread until it returns False."""

    def __init__(self, directory: Path, clock: Callable[[], int], *, force: bool = False) -> None:
        self._directory = directory
        self._clock = clock
        self._force = force
        self._steps: Generator[None, None, None] | None = None

    def step(self, connection: sqlite3.Connection) -> bool:
        """Do a bounded piece of the work, complete in itself; whether there is more."""
        if self._steps is None:
            self._steps = _round(connection, self._directory, self._clock, force=self._force)
        return next(self._steps, _DONE) is not _DONE

    def stop(self, connection: sqlite3.Connection) -> None:
        """Leave the rest to another round, and let others have it."""
        del connection  # what a step does, it also ends
        if self._steps is not None:
            self._steps.close()


def _round(
    connection: sqlite3.Connection, directory: Path, clock: Callable[[], int], *, force: bool
) -> Generator[None, None, None]:
    with _exclusive(directory / "upkeep.lock") as ours:
        if not ours:
            return
        now = clock()
        for partition, cutoff in _with_retention(connection, now):
            yield from _expire(connection, partition, cutoff)
        for partition, horizon in _grown(connection, now, force=force):
            yield from _compact(connection, partition, now, horizon)
        if force or _wal_bytes(directory) > WAL_BYTES:
            # Does nothing while others read; the next round tries again.
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()


_DONE = object()


def _with_retention(connection: sqlite3.Connection, now: int) -> list[tuple[int, int]]:
    return connection.execute(
        "SELECT partitions.id, ? - retention_ms FROM partitions"
        " JOIN topics ON topics.id = partitions.topic WHERE retention_ms IS NOT NULL",
        (now,),
    ).fetchall()


def _expire(connection: sqlite3.Connection, partition: int, cutoff: int) -> Iterator[None]:
    while True:
        start, size, count = None, 0, 0
        with contextlib.closing(
            connection.execute(
                "SELECT next, last_time, length(entries) FROM batches WHERE partition = ?"
                " ORDER BY base LIMIT ?",
                (partition, STEP_ROWS),
            )
        ) as rows:
            for after, last_time, length in rows:
                if last_time >= cutoff or size > EXPIRE_BYTES:
                    break
                start, size, count = after, size + length, count + 1
        if start is None:
            return
        with transaction(connection):
            connection.execute(
                "DELETE FROM batches WHERE partition = ? AND base < ?", (partition, start)
            )
            connection.execute("UPDATE partitions SET start = ? WHERE id = ?", (start, partition))
        yield


def _grown(connection: sqlite3.Connection, now: int, *, force: bool) -> list[tuple[int, int]]:
    return connection.execute(
        "SELECT partitions.id, ? - delete_retention_ms FROM partitions"
        " JOIN topics ON topics.id = partitions.topic WHERE compacted"
        " AND (? OR grown > max(kept, ?) OR (next > cleaned AND ? - cleaned_at > ?))",
        (now, force, GROWN_BYTES, now, COMPACT_MS),
    ).fetchall()


def _compact(
    connection: sqlite3.Connection, partition: int, now: int, horizon: int
) -> Iterator[None]:
    top, cleaned, grown = connection.execute(
        "SELECT next, cleaned, grown FROM partitions WHERE id = ?", (partition,)
    ).fetchone()
    ceiling = top
    while True:
        sieve = _Sieve(ceiling, cleaned, horizon)
        below = ceiling
        while batches := _window(connection, partition, below):
            _rewrite(connection, partition, batches, sieve.sift(batches))
            below = batches[-1].base
            yield
        ceiling = sieve.floor
        if ceiling <= cleaned:
            break
    with transaction(connection):
        (kept,) = connection.execute(
            "SELECT coalesce(sum(length(entries)), 0) FROM batches"
            " WHERE partition = ? AND base < ?",
            (partition, top),
        ).fetchone()
        connection.execute(
            "UPDATE partitions SET cleaned = ?, cleaned_at = ?, kept = ?, grown = grown - ?"
            " WHERE id = ?",
            (top, now, kept, grown, partition),
        )


class _Sieve:
    """One pass from the newest message below `ceiling` to the oldest of the partition.

    Drops what a newer message from `floor` up to `ceiling` supersedes. `floor` is `cleaned`,
    unless there were more keys than it can remember: then another pass goes on at `floor`.
    """

    def __init__(self, ceiling: int, cleaned: int, horizon: int) -> None:
        self.floor = cleaned
        self._ceiling = ceiling
        self._cleaned = cleaned
        self._horizon = horizon
        self._seen: set[bytes | None] = set()

    def sift(self, batches: list[_Batch]) -> tuple[list[_Kept], int]:
        """What stays of the next older batches (newest first), oldest first; how many went."""
        kept: list[_Kept] = []
        dropped = 0
        for batch in batches:
            for ahead, later, key, value, headers in reversed(_decode(batch.entries)):
                entry = _Kept(batch.base + ahead, batch.time + later, key, value, headers)
                if self._stays(entry):
                    kept.append(entry)
                else:
                    dropped += 1
        kept.reverse()
        return kept, dropped

    def _stays(self, entry: _Kept) -> bool:
        if entry.offset >= self._ceiling:
            return True  # an earlier pass has judged it
        if entry.key in self._seen:
            return False
        if entry.offset >= self.floor:
            if len(self._seen) < REMEMBERED_KEYS:
                self._seen.add(entry.key)
            else:
                self.floor = entry.offset + 1
            return True
        # Nil is the only value that takes one byte in msgpack's bytes-or-nil.
        tombstone = entry.offset < self._cleaned and len(memoryview(entry.value)) == 1
        return not (tombstone and entry.time < self._horizon)


def _window(connection: sqlite3.Connection, partition: int, below: int) -> list[_Batch]:
    """The next batches to look at, newest first: at least one, if there is any."""
    batches = []
    size = 0
    with contextlib.closing(
        connection.execute(
            "SELECT base, next, time, last_time, entries FROM batches"
            " WHERE partition = ? AND base < ? ORDER BY base DESC LIMIT ?",
            (partition, below, STEP_ROWS),
        )
    ) as rows:
        for row in rows:
            batches.append(_Batch(*row))
            size += len(batches[-1].entries)
            if size >= STEP_BYTES:
                break
    return batches


def _rewrite(
    connection: sqlite3.Connection,
    partition: int,
    batches: list[_Batch],
    sifted: tuple[list[_Kept], int],
) -> None:
    kept, dropped = sifted
    base, after = batches[-1].base, batches[0].next
    packed = _pack(kept, base, after)
    if not dropped and len(packed) == len(batches):
        return  # as small as it gets
    with transaction(connection):
        cursor = connection.execute(
            "DELETE FROM batches WHERE partition = ? AND base >= ? AND base < ?",
            (partition, base, after),
        )
        if cursor.rowcount != len(batches):
            raise StateError("Two processes compact one log: is its upkeep.lock being removed?")
        connection.executemany(
            "INSERT INTO batches (partition, base, next, time, last_time, entries)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            [(partition, *batch) for batch in packed],
        )


def _pack(kept: list[_Kept], base: int, after: int) -> list[_Batch]:
    """Batches of full size out of these messages; together they cover `base` up to `after`."""
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


def _batch(group: list[_Kept], base: int, after: int) -> _Batch:
    time = group[0].time
    entries = [
        (entry.offset - base, entry.time - time, entry.key, entry.value, entry.headers)
        for entry in group
    ]
    return _Batch(base, after, time, group[-1].time, _encode(entries))


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[bool]:
    """Whether the lock is ours, without waiting; it ends with the block or the process."""
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(descriptor)


def _wal_bytes(directory: Path) -> int:
    try:
        return (directory / f"{FILE_NAME}-wal").stat().st_size
    except FileNotFoundError:
        return 0
