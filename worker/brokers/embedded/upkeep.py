"""Compaction and retention of the embedded broker's log, in small steps.

* Retention removes batches older than the topic's `retention_ms` and moves the partition's start
  up. Until the anchor of log time is a day old, batches that a group has yet to read stay. The
  machine may have been off for long, or may have started with a wrong clock.
* Compaction keeps the latest message of each key, at its offset and with its time. A partition is
  compacted once it has doubled, so each message is rewritten only a few times, however large the
  log grows.

Compaction walks from the newest batch to the oldest, remembers the keys it has seen, and drops
older messages of those keys. The log is correct at every moment: a message is dropped only while
a newer message of its key exists. A tombstone is dropped only below the offset up to which an
*earlier* compaction finished. No older message of its key is left there to reappear.

One process at a time does upkeep, under a file lock that ends with the process. Batches change
only under that lock; appends only add to the end. The holder touches the lock file at each step,
so that other processes notice when it hangs. Readers see the batches before or after a step, and
find the same messages by offset in both.

Damaged batches are neither rewritten nor removed: upkeep of their partition waits until a user
skips them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import NamedTuple

import msgspec

from worker.brokers.embedded.batches import (
    NOTHING,
    Hole,
    StoredBatch,
    below,
    insert,
    is_sound,
    walk,
)
from worker.brokers.embedded.clock import LogClock, LogTime
from worker.brokers.embedded.damage import ENTRY, Damage, known, skipped_at
from worker.brokers.embedded.hindrance import Hindrances
from worker.brokers.embedded.log import BATCH_BYTES
from worker.brokers.embedded.seal import is_damage
from worker.brokers.embedded.store import FILE_NAME, transaction
from worker.brokers.embedded.topics import Catalogue, partition_row, store
from worker.errors import DamagedLog, StateError
from worker.stream import Partition, Topic

GROWN_BYTES = 1024 * 1024
"""A partition that has grown by less is not compacted until `COMPACT_MS` have passed."""

COMPACT_MS = 24 * 3600 * 1000
"""A partition with new messages is compacted this often: deleted data must go in the end."""

STEP_ROWS = 1000
STEP_BYTES = 1024 * 1024
"""The work of one step, which holds the write lock for a few milliseconds."""

EXPIRE_BYTES = 8 * 1024 * 1024

REMEMBERED_KEYS = 250_000
"""Bounds the memory of a compaction (about 100 bytes a key); more keys need further passes."""

WAL_BYTES = 64 * 1024 * 1024

_encode = msgspec.msgpack.Encoder().encode
_Lazy = tuple[int, int, bytes | None, msgspec.Raw, msgspec.Raw]
_decode = msgspec.msgpack.Decoder(list[_Lazy]).decode  # values and headers stay encoded


class _Kept(NamedTuple):
    offset: int
    time: int
    key: bytes | None
    value: msgspec.Raw
    headers: msgspec.Raw


class LogUpkeep:
    """One round of upkeep; call `step` in the write thread until it returns False."""

    def __init__(
        self, directory: Path, clock: LogClock, hindrances: Hindrances, *, force: bool = False
    ) -> None:
        self.damaged: list[Damage] = []
        """The damage found in this round."""
        self._directory = directory
        self._wal = directory / f"{FILE_NAME}-wal"
        self._clock = clock
        self._hindrances = hindrances
        self._force = force
        self._steps: Generator[None, None, None] | None = None

    def step(self, connection: sqlite3.Connection) -> bool:
        """Do one bounded, self-contained step; return whether there is more work."""
        if self._steps is None:
            self._steps = self._round(connection)
        there_is_more = next(self._steps, _DONE) is not _DONE
        self._hindrances.wal(str(self._wal), _size(self._wal))
        return there_is_more

    def stop(self, connection: sqlite3.Connection) -> None:
        """End the round and release the lock; another round does the rest."""
        del connection  # a step leaves no transaction open
        if self._steps is not None:
            self._steps.close()

    def _round(self, connection: sqlite3.Connection) -> Generator[None, None, None]:
        path = self._directory / "upkeep.lock"
        with _exclusive(path) as lock:
            if lock is None:
                self._hindrances.locked(str(path), path.stat().st_mtime_ns)
                return
            self._hindrances.unlocked()
            os.utime(lock)
            catalogue = Catalogue()
            with transaction(connection):
                time = self._clock.read(connection)
                catalogue.refresh(connection)
                waiting = {d.partition for d in known(connection, catalogue) if not d.skipped}
            for stored in catalogue.every():
                for number, partition in enumerate(stored.partitions):
                    place = Partition(stored.topic.name, number)
                    if place in waiting:
                        continue
                    try:
                        for _ in self._keep_up(connection, stored.topic, place, partition, time):
                            os.utime(lock)
                            yield
                    except DamagedLog as error:
                        self.damaged.append(Damage(place, ENTRY, ENTRY, str(error)))
                    except _Damaged as error:
                        self.damaged.append(Damage(place, *error.args[0]))
            if self._force or _size(self._wal) > WAL_BYTES:
                # Truncates nothing while others read; the next round tries again. The result is
                # ignored, since some reader is nearly always in the way: the file's size counts.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _keep_up(
        self,
        connection: sqlite3.Connection,
        topic: Topic,
        place: Partition,
        partition: int,
        time: LogTime,
    ) -> Iterator[None]:
        if topic.retention_ms is not None:
            limit = None if time.settled else _first_unread(connection, partition)
            yield from _expire(connection, partition, place, time.now - topic.retention_ms, limit)
        if topic.compacted and (self._force or _is_grown(connection, partition, time.now)):
            horizon = time.now - topic.delete_retention_ms
            yield from _compact(connection, partition, place, time.now, horizon)


_DONE = object()


class _Damaged(Exception):
    """A hole that nobody has skipped."""


def _expire(
    connection: sqlite3.Connection, partition: int, place: Partition, cutoff: int, limit: int | None
) -> Iterator[None]:
    """Remove batches below `limit` that are older than `cutoff`."""
    while True:
        row = partition_row(connection, partition, place)
        start, size = row.start, 0
        gone: list[tuple[int, int]] = []
        for piece in walk(connection, partition, row.start, row.next):
            if limit is not None and piece.next > limit:
                break
            if isinstance(piece, Hole):
                _pass(connection, partition, piece)
                # A hole has no known age: it expires with the batches after it.
                if piece.next == row.next and row.last_time < cutoff:
                    start = piece.next
                continue
            if piece.last_time >= cutoff or size > EXPIRE_BYTES or len(gone) == STEP_ROWS:
                break
            gone.append((partition, piece.base))
            size += len(piece.entries)
            start = piece.next
        if start == row.start:
            return
        with transaction(connection):
            connection.executemany("DELETE FROM batches WHERE partition = ? AND base = ?", gone)
            now = partition_row(connection, partition, place)  # appends may have changed it
            store(connection, now._replace(start=start))
        yield


def _pass(connection: sqlite3.Connection, partition: int, hole: Hole) -> None:
    """Accept a hole that is marked as skipped. Raises `_Damaged` for any other hole."""
    skipped = skipped_at(connection, partition, hole.base)
    if skipped is None or skipped.next < hole.next:
        raise _Damaged(hole)


def _is_grown(connection: sqlite3.Connection, partition: int, now: int) -> bool:
    found = connection.execute(
        "SELECT 1 FROM partitions WHERE id = ?"
        " AND (grown > max(kept, ?) OR (next > cleaned AND ? - cleaned_at > ?))",
        (partition, GROWN_BYTES, now, COMPACT_MS),
    ).fetchone()
    return found is not None


def _first_unread(connection: sqlite3.Connection, partition: int) -> int | None:
    """The lowest offset that a group has yet to read; None if no group reads the partition."""
    first: int | None = connection.execute(
        "SELECT min(position) FROM group_offsets WHERE partition = ?", (partition,)
    ).fetchone()[0]
    return first


def _compact(
    connection: sqlite3.Connection, partition: int, place: Partition, now: int, horizon: int
) -> Iterator[None]:
    row = partition_row(connection, partition, place)
    (grown,) = connection.execute(
        "SELECT grown FROM partitions WHERE id = ?", (partition,)
    ).fetchone()
    ceiling = top = row.next
    cleaned = row.cleaned
    while True:
        sieve = _Sieve(ceiling, cleaned, horizon)
        end = top if ceiling == top else _end_of_batch(connection, partition, ceiling)
        while end > row.start:
            batches = _window(connection, partition, end)
            if not batches:
                end = _below_hole(connection, partition, row.start, end)
                continue
            _rewrite(connection, partition, batches, sieve.sift(batches))
            end = batches[-1].base
            yield
        ceiling = sieve.floor
        if ceiling <= cleaned:
            break
    with transaction(connection):
        (kept,) = connection.execute(
            "SELECT coalesce(sum(length(content)), 0) FROM batches"
            " WHERE partition = ? AND base < ?",
            (partition, top),
        ).fetchone()
        store(connection, partition_row(connection, partition, place)._replace(cleaned=top))
        connection.execute(
            "UPDATE partitions SET cleaned_at = ?, kept = ?, grown = grown - ? WHERE id = ?",
            (now, kept, grown, partition),
        )


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

    def sift(self, batches: list[StoredBatch]) -> tuple[list[_Kept], int]:
        """Sift the next older batches, newest first.

        Returns the messages that stay, oldest first, and the number of dropped messages.
        """
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
            return True  # an earlier pass has decided on it
        if entry.key in self._seen:
            return False
        if entry.offset >= self.floor:
            if len(self._seen) < REMEMBERED_KEYS:
                self._seen.add(entry.key)
            else:
                self.floor = entry.offset + 1
            return True
        # A value is bytes or nil: in msgpack, only nil takes a single byte.
        tombstone = entry.offset < self._cleaned and len(memoryview(entry.value)) == 1
        return not (tombstone and entry.time < self._horizon)


def _end_of_batch(connection: sqlite3.Connection, partition: int, ceiling: int) -> int:
    """The end of the batch that holds the offset before `ceiling`."""
    (end,) = connection.execute(
        "SELECT next FROM batches WHERE partition = ? AND base < ? ORDER BY base DESC LIMIT 1",
        (partition, ceiling),
    ).fetchone() or (ceiling,)
    return end if isinstance(end, int) else ceiling


def _window(connection: sqlite3.Connection, partition: int, end: int) -> list[StoredBatch]:
    """The next sound batches below `end`, newest first; none if a hole ends there."""
    batches: list[StoredBatch] = []
    size = 0
    try:
        with contextlib.closing(below(connection, partition, end, STEP_ROWS)) as rows:
            for *row, crc in rows:
                batch = StoredBatch(*row)
                if batch.next != end or not is_sound(partition, batch, crc):
                    break
                batches.append(batch)
                end = batch.base
                size += len(batch.entries)
                if size >= STEP_BYTES:
                    break
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
    return batches


def _below_hole(connection: sqlite3.Connection, partition: int, start: int, end: int) -> int:
    """The start of the hole that ends at `end`. Raises `_Damaged` unless it is skipped."""
    skipped = skipped_at(connection, partition, end - 1)
    if skipped is not None:
        return skipped.base
    (base,) = connection.execute(
        "SELECT coalesce(max(base), ?) FROM batches WHERE partition = ? AND base < ?",
        (start, partition, end),
    ).fetchone()
    raise _Damaged(Hole(base, end, "the checksum does not fit, or the batch is missing"))


def _rewrite(
    connection: sqlite3.Connection,
    partition: int,
    batches: list[StoredBatch],
    sifted: tuple[list[_Kept], int],
) -> None:
    kept, dropped = sifted
    base, after = batches[-1].base, batches[0].next
    packed = _pack(kept, base, after) or [
        StoredBatch(base, after, 0, batches[0].last_time, NOTHING)
    ]
    if not dropped and len(packed) == len(batches):
        return  # a rewrite would gain nothing
    with transaction(connection):
        cursor = connection.execute(
            "DELETE FROM batches WHERE partition = ? AND base >= ? AND base < ?",
            (partition, base, after),
        )
        if cursor.rowcount != len(batches):
            raise StateError("Two processes compact one log: is its upkeep.lock being removed?")
        for batch in packed:
            insert(connection, partition, batch)


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


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[int | None]:
    """Lock the file without waiting: its descriptor, or None if another process has the lock.

    The lock ends with the block or the process.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o640)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield descriptor
    except BlockingIOError:
        yield None
    finally:
        os.close(descriptor)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
