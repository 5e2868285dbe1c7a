"""Compaction and retention of the embedded broker's log, in small steps.

* Retention removes batches older than the topic's `retention_ms` and moves the partition's start
  up. Until the anchor of log time is a day old, batches that a group has yet to read stay. The
  machine may have been off for long, or may have started with a wrong clock.
* Compaction keeps the latest message of each key (`compaction`). Tombstones stay until the anchor
  is an hour old, and their age is judged by the wall clock where that is behind log time. So a
  clock that is wrong for a moment removes none. A machine that is off every night still gets rid
  of them. A reader that misses one all the same is told (`OffsetRange.tombstones_from`).

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

from worker.brokers.embedded.batches import Hole, walk
from worker.brokers.embedded.clock import LogClock, LogTime
from worker.brokers.embedded.compaction import STEP_ROWS, compact
from worker.brokers.embedded.damage import ENTRY, Damage, UnskippedHole, known, skipped_at
from worker.brokers.embedded.hindrance import Hindrances, full_disk
from worker.brokers.embedded.store import FILE_NAME, transaction
from worker.brokers.embedded.topics import Catalogue, partition_row, store
from worker.errors import DamagedLog
from worker.stream import Partition, Topic

GROWN_BYTES = 1024 * 1024
"""A partition that has grown by less is not compacted until `COMPACT_MS` have passed."""

COMPACT_MS = 24 * 3600 * 1000
"""A partition with new messages is compacted this often: deleted data must go in the end."""

TOMBSTONES_MS = 3600 * 1000
"""No tombstone is removed until the anchor of log time is this old."""

EXPIRE_BYTES = 8 * 1024 * 1024

WAL_BYTES = 64 * 1024 * 1024


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
        self._hindrances.disk(full_disk(self._directory))
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
                for number, row_id in enumerate(stored.partitions):
                    partition = Partition(stored.topic.name, number)
                    if partition in waiting:
                        continue
                    try:
                        for _ in self._keep_up(connection, stored.topic, partition, row_id, time):
                            os.utime(lock)
                            yield
                    except DamagedLog as error:
                        self.damaged.append(Damage(partition, ENTRY, ENTRY, str(error)))
                    except UnskippedHole as error:
                        self.damaged.append(Damage(partition, *error.args[0]))
            if self._force or _size(self._wal) > WAL_BYTES:
                # Truncates nothing while others read; the next round tries again. The result is
                # ignored, since some reader is nearly always in the way: the file's size counts.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()

    def _keep_up(
        self,
        connection: sqlite3.Connection,
        topic: Topic,
        partition: Partition,
        row_id: int,
        time: LogTime,
    ) -> Iterator[None]:
        if topic.retention_ms is not None:
            limit = None if time.settled else _first_unread(connection, row_id)
            yield from _expire(connection, row_id, partition, time.now - topic.retention_ms, limit)
        if topic.compacted and (self._force or _is_grown(connection, row_id, time.now)):
            sure = time.age >= TOMBSTONES_MS
            horizon = time.earliest - topic.delete_retention_ms if sure else 0
            yield from compact(connection, row_id, partition, time.now, horizon)


_DONE = object()


def _expire(
    connection: sqlite3.Connection,
    row_id: int,
    partition: Partition,
    cutoff: int,
    limit: int | None,
) -> Iterator[None]:
    """Remove batches below `limit` that are older than `cutoff`."""
    while True:
        row = partition_row(connection, row_id, partition)
        start, size = row.start, 0
        gone: list[tuple[int, int]] = []
        for piece in walk(connection, row_id, row.start, row.next):
            if limit is not None and piece.next > limit:
                break
            if isinstance(piece, Hole):
                _pass(connection, row_id, piece)
                # A hole has no known age: it expires with the batches after it.
                if piece.next == row.next and row.last_time < cutoff:
                    start = piece.next
                continue
            if piece.last_time >= cutoff or size > EXPIRE_BYTES or len(gone) == STEP_ROWS:
                break
            gone.append((row_id, piece.base))
            size += len(piece.entries)
            start = piece.next
        if start == row.start:
            return
        with transaction(connection):
            connection.executemany("DELETE FROM batches WHERE partition = ? AND base = ?", gone)
            now = partition_row(connection, row_id, partition)  # appends may have changed it
            store(connection, now._replace(start=start))
        yield


def _pass(connection: sqlite3.Connection, row_id: int, hole: Hole) -> None:
    """Accept a hole that is marked as skipped. Raises `UnskippedHole` for any other hole."""
    skipped = skipped_at(connection, row_id, hole.base)
    if skipped is None or skipped.next < hole.next:
        raise UnskippedHole(hole)


def _is_grown(connection: sqlite3.Connection, row_id: int, now: int) -> bool:
    found = connection.execute(
        "SELECT 1 FROM partitions WHERE id = ?"
        " AND (grown > max(kept, ?) OR (next > compacted_to AND ? - compacted_at > ?))",
        (row_id, GROWN_BYTES, now, COMPACT_MS),
    ).fetchone()
    return found is not None


def _first_unread(connection: sqlite3.Connection, row_id: int) -> int | None:
    """The lowest offset that a group has yet to read; None if no group reads the partition."""
    first: int | None = connection.execute(
        "SELECT min(position) FROM group_offsets WHERE partition = ?", (row_id,)
    ).fetchone()[0]
    return first


@contextlib.contextmanager
def _exclusive(path: Path) -> Iterator[int | None]:
    """Lock the file without waiting: its descriptor, or None if another process has the lock.

    The lock ends with the block or the process.
    """
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
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
