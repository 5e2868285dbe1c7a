"""Records of damage in the embedded broker's log: what is damaged, and what is skipped.

Damaged rows stay where they are: removing them could spread the damage, and a user may want to
recover data from them. A skip is a record that readers, retention and compaction honour.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from worker.brokers.embedded.batches import UNSOUND, Hole, StoredBatch, walk
from worker.brokers.embedded.disk import fails, is_damage
from worker.brokers.embedded.seal import reason_of, seal
from worker.brokers.embedded.store import snapshot, transaction
from worker.brokers.embedded.topics import (
    Catalogue,
    PartitionRow,
    last_append,
    partition_row,
    store,
)
from worker.errors import DamagedLog, MissingTopic, UsageError
from worker.stream import Partition

LOOK_BYTES: Final = 32 * 1024 * 1024
"""The bytes scanned in one call, which takes less than a second."""
ENTRY: Final = -1
"""The place of damage of a partition's row itself. No batch is there, so both are told."""
_MOST: Final = 1 << 40
"""No partition has an offset as great as this."""


class Damage(NamedTuple):
    """Unreadable offsets of a partition, from `base` up to, not including, `next`.

    If `base` equals `next`, the row of the partition itself is damaged.
    """

    partition: Partition
    base: int
    next: int
    reason: str
    skipped: bool = False

    def line(self) -> str:
        """The damage and its remedy in one line."""
        if self.base == self.next:
            return self.reason
        name = f"{self.partition.topic}/{self.partition.number}"
        lost = f"{name} is damaged from offset {self.base} up to {self.next} ({self.reason})"
        if self.skipped:
            return f"{lost}: skipped"
        return f"{lost}: 'buddy log skip {name}' goes on behind it"


class UnskippedHole(Exception):
    """A hole, its argument, that nobody has skipped."""


class Looked(msgspec.Struct):
    """The result of scanning a piece of the log, or all of it."""

    batches: int = 0
    size: int = 0
    damaged: list[Damage] = msgspec.field(default_factory=list)
    file: list[str] = msgspec.field(default_factory=list)
    """What SQLite finds wrong with the file."""
    position: int | None = None
    """The offset at which the next piece begins; None at the end of a partition."""


def record(connection: sqlite3.Connection, catalogue: Catalogue, damage: Damage) -> None:
    """Record damage, within a transaction, unless it is skipped already."""
    number = catalogue.partition(damage.partition)
    if skipped_at(connection, number, damage.base) is None:
        _put(connection, number, damage)


def known(connection: sqlite3.Connection, catalogue: Catalogue) -> list[Damage]:
    """All damage found so far, within a snapshot. Cheap: does not scan the log."""
    names = _names(catalogue)
    found = [
        Damage(names[number], base, after, reason, bool(skipped))
        for number, base, after, reason, skipped in _rows(connection)
        if number in names
    ]
    return sorted(found, key=lambda damage: damage[:2])


def skipped(connection: sqlite3.Connection, catalogue: Catalogue) -> dict[Partition, int]:
    """Per partition, the number of skipped offsets that have not expired; within a snapshot."""
    found: Counter[Partition] = Counter()
    for damage in known(connection, catalogue):
        if damage.skipped:
            start = _start(connection, catalogue, damage.partition)
            found[damage.partition] += max(0, damage.next - max(damage.base, start))
    return {partition: count for partition, count in found.items() if count}


def skipped_at(connection: sqlite3.Connection, partition: int, offset: int) -> Hole | None:
    """The skipped hole that contains `offset`, or None."""
    for number, base, after, reason, skipped in _rows(connection):
        if number == partition and skipped and base <= offset < after:
            return Hole(base, after, reason)
    return None


def look_for(
    connection: sqlite3.Connection, catalogue: Catalogue, partition: Partition, offset: int | None
) -> Damage:
    """The damage at `offset`, or the first known damage not skipped; within a snapshot.

    Raises `UsageError` if there is none, `MissingTopic`.
    """
    name = f"{partition.topic}/{partition.number}"
    try:
        number = catalogue.partition(partition)
    except MissingTopic:
        is_known = catalogue.find(partition.topic) is not None
        missing = f"partition {name}" if is_known else f"topic {partition.topic}"
        raise MissingTopic(
            f"The log has no {missing}: name one that 'buddy log verify' reports."
        ) from None
    try:
        row = partition_row(connection, number, partition)
    except DamagedLog as error:
        return Damage(partition, ENTRY, ENTRY, str(error))
    if offset is None:
        mine = (d for d in known(connection, catalogue) if d.partition == partition)
        offset = next((d.base for d in mine if not d.skipped), None)
        if offset is None:
            raise UsageError(f"No damage of {name} was found: 'buddy log verify' looks everywhere.")
    if not row.start <= offset < row.next:
        raise UsageError(f"{name} holds offsets from {row.start} up to {row.next}, not {offset}.")
    piece = next(walk(connection, number, offset, row.next))
    if isinstance(piece, StoredBatch) or skipped_at(connection, number, offset) is not None:
        raise UsageError(f"{name} is not damaged at offset {offset}: nothing is skipped.")
    return Damage(partition, *piece)


def mend_index(connection: sqlite3.Connection, catalogue: Catalogue, damage: Damage) -> bool:
    """Rebuild the batches' index if this repairs the damage; return whether it does."""
    if damage.base == damage.next or damage.reason == UNSOUND:
        return False
    try:
        with transaction(connection):
            catalogue.refresh(connection)
            _make_index_again(connection, catalogue.partition(damage.partition), damage)
    except _NotMended:
        return False
    except sqlite3.DatabaseError as error:
        if not is_damage(error, connection):
            raise
        return False
    return True


def _make_index_again(connection: sqlite3.Connection, number: int, damage: Damage) -> None:
    connection.execute("REINDEX batches_by_offset")
    (whole,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    pieces = walk(connection, number, damage.base, damage.next)
    if whole != "ok" or any(isinstance(piece, Hole) for piece in pieces):
        raise _NotMended
    connection.execute(
        "DELETE FROM damage WHERE partition = ? AND NOT skipped AND base >= ? AND base < ?",
        (number, damage.base, damage.next),
    )


class _NotMended(Exception):
    """Rebuilding the index does not repair the damage."""


def skip(connection: sqlite3.Connection, catalogue: Catalogue, damage: Damage) -> None:
    """Make all readers skip the damage, within a transaction.

    A damaged row of a partition is rebuilt instead.
    """
    number = catalogue.partition(damage.partition)
    if damage.base == damage.next:
        _restore_row(connection, number, damage.partition)
        connection.execute("DELETE FROM damage WHERE partition = ? AND base = next", (number,))
    else:
        _put(connection, number, damage._replace(skipped=True))
        # A reader that began inside this damage has recorded a part of it.
        connection.execute(
            "DELETE FROM damage WHERE partition = ? AND base > ? AND base < ?",
            (number, damage.base, damage.next),
        )


def look_through(
    connection: sqlite3.Connection, catalogue: Catalogue, partition: Partition, position: int
) -> Looked:
    """Scan a piece of a partition, from `position` on. Raises `MissingTopic`."""
    looked = Looked(position=None)
    with snapshot(connection):
        catalogue.refresh(connection)
        number = catalogue.partition(partition)
        try:
            row = partition_row(connection, number, partition)
        except DamagedLog as error:
            looked.damaged.append(Damage(partition, ENTRY, ENTRY, str(error)))
            return looked
        for piece in walk(connection, number, max(position, row.start), row.next):
            if isinstance(piece, StoredBatch):
                looked.batches += 1
                looked.size += len(piece.entries)
            else:
                skipped = skipped_at(connection, number, piece.base) is not None
                looked.damaged.append(Damage(partition, *piece, skipped))
            if looked.size >= LOOK_BYTES:
                looked.position = piece.next
                break
    return looked


def look_at_file(connection: sqlite3.Connection) -> list[str]:
    """SQLite's own findings, one line each; this takes as long as reading the whole file."""
    try:
        lines = [str(text) for (text,) in connection.execute("PRAGMA integrity_check(20)")]
    except sqlite3.DatabaseError as error:
        if not is_damage(error, connection):
            raise
        return [reason_of(error)]
    found = [" ".join(line.split()) for line in lines if line != "ok"]
    if found and fails(connection):  # a page that cannot be read is one of SQLite's findings
        raise OSError(errno.EIO, os.strerror(errno.EIO))
    return found


def _restore_row(connection: sqlite3.Connection, number: int, partition: Partition) -> None:
    """Rebuild the row of a partition from its batches."""
    start, after = connection.execute(
        "SELECT min(base), max(next) FROM batches WHERE partition = ?", (number,)
    ).fetchone()
    # No offset may be used again: whoever has read it would pass over the new message.
    named = _named(connection, number)
    if start is None:  # all messages have expired; an offset that is too great is told as expired
        named += connection.execute(
            "SELECT start, next FROM partitions WHERE id = ?", (number,)
        ).fetchone()
    sane = [n for n in named if isinstance(n, int) and 0 <= n < _MOST]
    after = max([*sane, after or 0])
    start = after if start is None else start
    topic, compacted = connection.execute(
        "SELECT id, compacted FROM topics NOT INDEXED WHERE name = ?", (partition.topic,)
    ).fetchone()
    time = last_append(connection)
    # Which tombstones compaction had removed cannot be told: any.
    gone_to = after if compacted else 0
    store(connection, PartitionRow(number, topic, partition.number, start, after, time, 0, gone_to))


def _named(connection: sqlite3.Connection, number: int) -> list[object]:
    """The offsets of a partition that skips and the positions of groups name."""
    named: list[object] = [
        after for found, _, after, _, skipped in _rows(connection) if found == number and skipped
    ]
    for group, position, crc in connection.execute(
        "SELECT consumer_group, position, crc FROM group_offsets WHERE partition = ?", (number,)
    ):
        if seal(group, number, position) == crc:
            named.append(position)
    return named


def _rows(connection: sqlite3.Connection) -> Iterator[tuple[int, int, int, str, int]]:
    with contextlib.suppress(sqlite3.DatabaseError):
        for *row, crc in connection.execute(
            "SELECT partition, base, next, reason, skipped, crc FROM damage"
        ):
            if seal(*row) == crc:
                yield tuple(row)


def _start(connection: sqlite3.Connection, catalogue: Catalogue, partition: Partition) -> int:
    try:
        return partition_row(connection, catalogue.partition(partition), partition).start
    except DamagedLog:
        return 0


def _put(connection: sqlite3.Connection, number: int, damage: Damage) -> None:
    row = (number, damage.base, damage.next, damage.reason, int(damage.skipped))
    connection.execute(
        "INSERT OR REPLACE INTO damage (partition, base, next, reason, skipped, crc)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        (*row, seal(*row)),
    )


def _names(catalogue: Catalogue) -> dict[int, Partition]:
    return {
        number: Partition(stored.topic.name, index)
        for stored in catalogue.every()
        for index, number in enumerate(stored.partitions)
    }
