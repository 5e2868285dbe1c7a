"""Messages and group offsets in the embedded broker's database.

A partition's log is a sequence of *batches*, as in Kafka. A batch is one database row: the
messages that one write appends to one partition, up to `BATCH_BYTES`. Its `entries` are msgpack
of [(offset - base, time - batch time, key, value, headers) …]. A message in a batch costs about
1 µs; a database row per message would cost 10 µs.

Every function runs in the thread of the connection that is passed to it.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec
import structlog

from worker.brokers.embedded.batches import Hole, StoredBatch, insert, walk
from worker.brokers.embedded.damage import ENTRY, Damage, skipped_at
from worker.brokers.embedded.seal import seal
from worker.brokers.embedded.store import snapshot
from worker.brokers.embedded.topics import Catalogue, partition_row, store
from worker.brokers.partitioner import Rotation, by_partition, by_topic
from worker.errors import DamagedLog, Fenced, MessageRefused
from worker.stream import Headers, Message, OffsetRange, Partition, ProducerRecord, Topic

BATCH_BYTES = 1024 * 1024
"""Larger writes are split into batches, because a reader decodes a whole batch at once."""

FETCH_BYTES = 8 * 1024 * 1024
"""A fetch stops after this many bytes, however few messages they hold."""

Entry = tuple[int, int, bytes | None, bytes | None, Headers]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Entry]).decode

_log = structlog.get_logger(__name__)


class Load(NamedTuple):
    """The encoded batches of one write for one partition, and the indices of their messages."""

    row_id: int
    partition: Partition
    indices: list[int]
    batches: list[tuple[int, bytes]]


class Chunk(NamedTuple):
    """The result of a fetch from one partition."""

    messages: list[Message]
    position: int
    """The offset to fetch after these messages."""
    end: int
    """The end offset of the partition at the time of the fetch."""
    expired: int = 0
    truncated: int = 0
    """The number of offsets from the partition's end to the requested position beyond it."""
    skipped: int = 0
    """The number of damaged offsets passed over because they are marked as skipped."""
    damage: Damage | None = None
    """The damage that blocks the partition after these messages, if any."""


def arrange(
    catalogue: Catalogue, rotation: Rotation, messages: Sequence[ProducerRecord]
) -> list[Load]:
    """Check, place and encode messages. Needs no transaction, so it blocks no other writer.

    Raises `MissingTopic` and `MessageRefused`.
    """
    loads = []
    for name, indices in by_topic(messages).items():
        stored = catalogue.need(name)
        for number, chosen in by_partition(messages, indices, stored.topic, rotation).items():
            batches = _batches(stored.topic, messages, chosen)
            partition = Partition(name, number)
            loads.append(Load(stored.partitions[number], partition, chosen, batches))
    return loads


def append(connection: sqlite3.Connection, load: Load, now: int) -> int:
    """Append a load to its partition, within a transaction; return its first message's offset.

    Append times never decrease within a partition, whatever the clock does.
    """
    row = partition_row(connection, load.row_id, load.partition)
    time = max(now, row.last_time)
    base = row.next
    for count, entries in load.batches:
        insert(connection, load.row_id, StoredBatch(base, base + count, time, time, entries))
        base += count
    grown = sum(len(entries) for _, entries in load.batches)
    store(connection, row._replace(next=base, last_time=time), grown)
    return row.next


def append_all(
    connection: sqlite3.Connection, loads: Iterable[Load], now: int, count: int
) -> list[tuple[int, int]]:
    """Append the loads of `count` messages, in a transaction; return (partition, offset) each."""
    written = [(0, 0)] * count
    for load in loads:
        first = append(connection, load, now)
        for offset, index in enumerate(load.indices, first):
            written[index] = (load.partition.number, offset)
    return written


def take_over(connection: sqlite3.Connection, name: str) -> int:
    """Fence the earlier committers of that name, within a transaction; return the new epoch.

    Epochs are random: a name whose row was removed never gets the epoch of an earlier committer.
    """
    epoch = secrets.randbits(62) + 1
    connection.execute(
        "INSERT INTO committers (name, epoch) VALUES (?, ?)"
        " ON CONFLICT (name) DO UPDATE SET epoch = excluded.epoch",
        (name, epoch),
    )
    return epoch


def give_up(connection: sqlite3.Connection, name: str, epoch: int) -> None:
    """Remove the row of a committer that is closed, so that names used once do not pile up.

    Call this within a transaction. Fenced committers stay fenced.
    """
    connection.execute("DELETE FROM committers WHERE name = ? AND epoch = ?", (name, epoch))


def check_fence(connection: sqlite3.Connection, name: str, epoch: int) -> None:
    """Raise `Fenced` unless `epoch` is the last of that name; call within a transaction."""
    if _epoch(connection, name) != epoch:
        raise Fenced(f"Another worker has taken over {name}: this one gives it up.")


def store_offsets(
    connection: sqlite3.Connection,
    catalogue: Catalogue,
    group: str,
    offsets: Mapping[Partition, int],
) -> None:
    """Set the group's offsets, within a transaction. Raises `MissingTopic`."""
    rows = [(group, catalogue.partition(p), offset) for p, offset in offsets.items()]
    connection.executemany(
        "INSERT INTO group_offsets (consumer_group, partition, position, crc) VALUES (?, ?, ?, ?)"
        " ON CONFLICT (consumer_group, partition)"
        " DO UPDATE SET position = excluded.position, crc = excluded.crc",
        [(*row, seal(*row)) for row in rows],
    )


def committed(
    connection: sqlite3.Connection,
    catalogue: Catalogue,
    group: str,
    partitions: Iterable[Partition],
) -> dict[Partition, int]:
    """The group's committed offsets; partitions with no offset or a damaged one are absent."""
    found = {}
    with snapshot(connection):
        catalogue.refresh(connection)
        for partition in partitions:
            number = catalogue.partition(partition)
            row = connection.execute(
                "SELECT position, crc FROM group_offsets"
                " WHERE consumer_group = ? AND partition = ?",
                (group, number),
            ).fetchone()
            if row is None:
                continue
            if seal(group, number, row[0]) == row[1]:
                found[partition] = row[0]
            else:
                _log.error(
                    "group_offset_damaged",
                    group=group,
                    topic=partition.topic,
                    partition=partition.number,
                )
    return found


def spans(
    connection: sqlite3.Connection, catalogue: Catalogue, partitions: Iterable[Partition]
) -> dict[Partition, OffsetRange]:
    """The offset range of each partition, all from one snapshot. Raises `MissingTopic`."""
    with snapshot(connection):
        catalogue.refresh(connection)
        return {
            partition: _span(connection, catalogue.partition(partition), partition)
            for partition in partitions
        }


def fetch(
    connection: sqlite3.Connection,
    catalogue: Catalogue,
    wanted: Iterable[tuple[Partition, int]],
    limit: int,
    share: int,
) -> list[Chunk]:
    """Fetch whole batches from these positions, until there are at least `limit` messages.

    A partition gives at most `share` bytes, but always one batch. Returns one chunk per visited
    partition, in the order of `wanted`; unvisited partitions at the end have no chunk.
    """
    chunks = []
    room = FETCH_BYTES
    with snapshot(connection):
        catalogue.refresh(connection)
        for partition, position in wanted:
            most = min(room, share)
            chunk, size = _fetch_one(connection, catalogue, partition, position, limit, most)
            chunks.append(chunk)
            limit -= len(chunk.messages)
            room -= size
            if limit <= 0 or room <= 0:
                break
    return chunks


def _fetch_one(
    connection: sqlite3.Connection,
    catalogue: Catalogue,
    partition: Partition,
    position: int,
    limit: int,
    room: int,
) -> tuple[Chunk, int]:
    try:
        stored = catalogue.need(partition.topic)
        number = stored.partition(partition.number)
        start, end, _ = _span(connection, number, partition)
    except DamagedLog as error:
        return Chunk([], position, position, damage=Damage(partition, ENTRY, ENTRY, str(error))), 0
    # A position beyond the end belongs to an earlier topic of this name, or to a log that has lost
    # its last messages. The caller can tell which: see `contract.Reader.truncated`.
    expired, truncated = max(0, start - position), max(0, position - end)
    position = max(position, start) if position <= end else start
    messages: list[Message] = []
    size = skipped = 0
    damage: Damage | None = None
    for piece in walk(connection, number, position, end):
        if isinstance(piece, Hole):
            passed = skipped_at(connection, number, piece.base)
            if passed is None or passed.next < piece.next:
                damage = Damage(partition, *piece)
                break
            skipped += piece.next - piece.base
        elif messages and size + len(piece.entries) > room:
            break
        else:
            messages += _messages(stored.topic, partition.number, piece, position)
            size += len(piece.entries)
        position = piece.next
        if len(messages) >= limit or size >= room:
            break
    return Chunk(messages, position, end, expired, truncated, skipped, damage), size


def _messages(topic: Topic, number: int, batch: StoredBatch, position: int) -> list[Message]:
    name, appended = topic.name, topic.append_time
    base, time = batch.base, batch.time
    found = _decode(batch.entries)
    if position > base:
        found = [entry for entry in found if base + entry[0] >= position]
    return [
        Message(name, number, base + ahead, time + later, key, value, headers, appended)
        for ahead, later, key, value, headers in found
    ]


def _batches(
    topic: Topic, messages: Sequence[ProducerRecord], indices: list[int]
) -> list[tuple[int, bytes]]:
    batches = []
    entries: list[Entry] = []
    total = 0
    for index in indices:
        message = messages[index]
        key, value, headers = message.key, message.value, message.headers
        if key is None and topic.compacted:
            why = f"Topic {topic.name} is compacted: a message without a key cannot be kept."
            raise MessageRefused.of({index: why})
        size = (len(key) if key else 0) + (len(value) if value else 0)
        for name, content in headers:
            size += len(name.encode()) + len(content)
        if size > topic.max_message_bytes:
            most = topic.max_message_bytes
            why = f"A message of {size} bytes is larger than topic {topic.name} takes ({most})."
            raise MessageRefused.of({index: why})
        size += 16  # msgpack's overhead, roughly
        if entries and total + size > BATCH_BYTES:
            batches.append((len(entries), _encode(entries)))
            entries, total = [], 0
        entries.append((len(entries), 0, key, value, headers))
        total += size
    batches.append((len(entries), _encode(entries)))
    return batches


def _span(connection: sqlite3.Connection, number: int, partition: Partition) -> OffsetRange:
    row = partition_row(connection, number, partition)
    return OffsetRange(row.start, row.next, row.tombstones_from)


def _epoch(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT epoch FROM committers WHERE name = ?", (name,)).fetchone()
    return row[0] if row is not None else 0
