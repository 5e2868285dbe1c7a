"""Topics, partitions and messages in the embedded broker's database.

A partition's log is a row of *batches*, as in Kafka: what one write put into one partition is one
database row, whose `entries` are msgpack of [(offset - base, time - batch time, key, value,
headers) …]. A message so costs about a microsecond, where a database row of its own costs ten.

All functions run in the thread of the connection that they are given.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from worker.brokers.contract import Headers, Message, Outgoing, Partition, Span, Topic
from worker.brokers.embedded_store import snapshot
from worker.brokers.partitioner import Rotation, by_partition, by_topic
from worker.errors import Fenced, MessageRefused, MissingTopic

BATCH_BYTES = 1024 * 1024
"""A larger write is split: a reader decodes a batch as a whole."""

FETCH_BYTES = 8 * 1024 * 1024
"""A fetch stops after so many bytes, however few messages that is."""

Entry = tuple[int, int, bytes | None, bytes | None, Headers]

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[Entry]).decode


class Stored(NamedTuple):
    """A topic, and the database's numbers of its partitions."""

    topic: Topic
    partitions: tuple[int, ...]


class Load(NamedTuple):
    """What one write brings for one partition: encoded batches, and whose messages they are."""

    partition: int
    number: int
    indices: list[int]
    batches: list[tuple[int, bytes]]


class Chunk(NamedTuple):
    """What a fetch found in one partition."""

    messages: list[Message]
    position: int
    """Where to go on when these messages have been read."""
    expired: int


class Catalogue:
    """The topics, remembered once seen: a topic is never changed nor removed."""

    def __init__(self) -> None:
        self._known: dict[str, Stored] = {}

    def find(self, connection: sqlite3.Connection, name: str) -> Stored | None:
        """The topic of that name, if it exists."""
        if (known := self._known.get(name)) is not None:
            return known
        row = connection.execute(
            "SELECT id, partitions, compacted, append_time, retention_ms, delete_retention_ms,"
            " max_message_bytes FROM topics WHERE name = ?",
            (name,),
        ).fetchone()
        if row is None:
            return None
        numbers = connection.execute(
            "SELECT id FROM partitions WHERE topic = ? ORDER BY number", (row[0],)
        )
        topic = Topic(name, row[1], bool(row[2]), bool(row[3]), row[4], row[5], row[6])
        stored = Stored(topic, tuple(number for (number,) in numbers))
        self._known[name] = stored
        return stored

    def need(self, connection: sqlite3.Connection, name: str) -> Stored:
        """The topic of that name. Raises `MissingTopic`."""
        if (stored := self.find(connection, name)) is None:
            raise MissingTopic(f"Topic {name} does not exist: `buddy topics create` makes it.")
        return stored

    def partition(self, connection: sqlite3.Connection, partition: Partition) -> int:
        """The database's number of a partition. Raises `MissingTopic`."""
        return _partition_of(self.need(connection, partition.topic), partition.number)


def create(connection: sqlite3.Connection, topics: Iterable[Topic], now: int) -> list[str]:
    """Create those that are missing, within a transaction; the names of the created ones."""
    created = []
    for topic in topics:
        cursor = connection.execute(
            "INSERT INTO topics (name, partitions, compacted, append_time, retention_ms,"
            " delete_retention_ms, max_message_bytes) VALUES (?, ?, ?, ?, ?, ?, ?)"
            " ON CONFLICT (name) DO NOTHING",
            msgspec.structs.astuple(topic),
        )
        if cursor.rowcount != 1:
            continue
        connection.executemany(
            "INSERT INTO partitions (topic, number, cleaned_at) VALUES (?, ?, ?)",
            [(cursor.lastrowid, number, now) for number in range(topic.partitions)],
        )
        created.append(topic.name)
    return created


def arrange(
    connection: sqlite3.Connection,
    catalogue: Catalogue,
    rotation: Rotation,
    messages: Sequence[Outgoing],
) -> list[Load]:
    """Check, place and encode messages; no transaction needed, so others are not held up.

    Raises `MissingTopic` and `MessageRefused`.
    """
    loads = []
    for name, indices in by_topic(messages).items():
        stored = catalogue.need(connection, name)
        for number, chosen in by_partition(messages, indices, stored.topic, rotation).items():
            batches = _batches(stored.topic, messages, chosen)
            loads.append(Load(stored.partitions[number], number, chosen, batches))
    return loads


def append(connection: sqlite3.Connection, load: Load, now: int) -> int:
    """Add a load to its partition, within a transaction; the offset of its first message.

    The append time never goes back within a partition, whatever the clock does.
    """
    first, last_time = connection.execute(
        "SELECT next, last_time FROM partitions WHERE id = ?", (load.partition,)
    ).fetchone()
    time = max(now, last_time)
    base: int = first
    for count, entries in load.batches:
        connection.execute(
            "INSERT INTO batches (partition, base, next, time, last_time, entries)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (load.partition, base, base + count, time, time, entries),
        )
        base += count
    connection.execute(
        "UPDATE partitions SET next = ?, last_time = ?, grown = grown + ? WHERE id = ?",
        (base, time, sum(len(entries) for _, entries in load.batches), load.partition),
    )
    offset: int = first
    return offset


def append_all(
    connection: sqlite3.Connection, loads: Iterable[Load], now: int, count: int
) -> list[tuple[int, int]]:
    """Add all loads, within a transaction; (partition, offset) of each of `count` messages."""
    written = [(0, 0)] * count
    for load in loads:
        first = append(connection, load, now)
        for offset, index in enumerate(load.indices, first):
            written[index] = (load.number, offset)
    return written


def take_over(connection: sqlite3.Connection, name: str) -> int:
    """Fence the earlier committers of that name, within a transaction; the new epoch."""
    connection.execute(
        "INSERT INTO committers (name, epoch) VALUES (?, 1)"
        " ON CONFLICT (name) DO UPDATE SET epoch = epoch + 1",
        (name,),
    )
    return _epoch(connection, name)


def check_fence(connection: sqlite3.Connection, name: str, epoch: int) -> None:
    """Raise `Fenced` unless this is the newest committer of that name; within a transaction."""
    if _epoch(connection, name) != epoch:
        raise Fenced(f"Another worker has taken over {name}: this one gives it up.")


def store_offsets(
    connection: sqlite3.Connection,
    catalogue: Catalogue,
    group: str,
    offsets: Mapping[Partition, int],
) -> None:
    """Set the group's offsets, within a transaction. Raises `MissingTopic`."""
    connection.executemany(
        "INSERT INTO group_offsets (consumer_group, partition, position) VALUES (?, ?, ?)"
        " ON CONFLICT (consumer_group, partition) DO UPDATE SET position = excluded.position",
        [
            (group, catalogue.partition(connection, partition), position)
            for partition, position in offsets.items()
        ],
    )


def committed(
    connection: sqlite3.Connection,
    catalogue: Catalogue,
    group: str,
    partitions: Iterable[Partition],
) -> dict[Partition, int]:
    """The group's offsets of those partitions that have one."""
    found = {}
    for partition in partitions:
        row = connection.execute(
            "SELECT position FROM group_offsets WHERE consumer_group = ? AND partition = ?",
            (group, catalogue.partition(connection, partition)),
        ).fetchone()
        if row is not None:
            found[partition] = row[0]
    return found


def spans(
    connection: sqlite3.Connection, catalogue: Catalogue, partitions: Iterable[Partition]
) -> dict[Partition, Span]:
    """Start and end of each partition, all at one moment. Raises `MissingTopic`."""
    with snapshot(connection):
        return {
            partition: _span(connection, catalogue.partition(connection, partition))
            for partition in partitions
        }


def fetch(
    connection: sqlite3.Connection,
    catalogue: Catalogue,
    wanted: Iterable[tuple[Partition, int]],
    limit: int,
) -> list[Chunk]:
    """Whole batches from these positions on, until there are `limit` messages or more.

    A chunk for each partition that was looked at; those that come after may be missing.
    """
    chunks = []
    room = FETCH_BYTES
    with snapshot(connection):
        for partition, position in wanted:
            chunk, size = _fetch_one(connection, catalogue, partition, position, limit, room)
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
    stored = catalogue.need(connection, partition.topic)
    number = _partition_of(stored, partition.number)
    start, end = _span(connection, number)
    expired = max(0, start - position)
    position += expired
    if position >= end:
        return Chunk([], position, expired), 0
    messages: list[Message] = []
    size = 0
    rows = connection.execute(
        "SELECT base, next, time, entries FROM batches WHERE partition = ? AND base >= coalesce("
        " (SELECT max(base) FROM batches WHERE partition = ? AND base <= ?), 0) ORDER BY base",
        (number, number, position),
    )
    for base, after, time, entries in rows:
        if after <= position:  # the offsets from here on were compacted away
            continue
        messages += _messages(stored.topic, partition.number, base, time, entries, position)
        position = after
        size += len(entries)
        if len(messages) >= limit or size >= room:
            break
    else:
        position = end  # the last offsets of a partition can be a gap too
    rows.close()
    return Chunk(messages, position, expired), size


def _messages(
    topic: Topic, number: int, base: int, time: int, entries: bytes, position: int
) -> list[Message]:
    name, appended = topic.name, topic.append_time
    found = _decode(entries)
    if position > base:
        found = [entry for entry in found if base + entry[0] >= position]
    return [
        Message(name, number, base + ahead, time + later, key, value, headers, appended)
        for ahead, later, key, value, headers in found
    ]


def _batches(
    topic: Topic, messages: Sequence[Outgoing], indices: list[int]
) -> list[tuple[int, bytes]]:
    batches = []
    entries: list[Entry] = []
    total = 0
    for index in indices:
        message = messages[index]
        key, value, headers = message.key, message.value, message.headers
        if key is None and topic.compacted:
            raise MessageRefused(
                f"Topic {topic.name} is compacted: a message without a key cannot be kept.", index
            )
        size = (len(key) if key else 0) + (len(value) if value else 0)
        for name, content in headers:
            size += len(name.encode()) + len(content)
        if size > topic.max_message_bytes:
            raise MessageRefused(
                f"A message of {size} bytes is larger than topic {topic.name} takes"
                f" ({topic.max_message_bytes}).",
                index,
            )
        size += 16  # about what msgpack adds
        if entries and total + size > BATCH_BYTES:
            batches.append((len(entries), _encode(entries)))
            entries, total = [], 0
        entries.append((len(entries), 0, key, value, headers))
        total += size
    batches.append((len(entries), _encode(entries)))
    return batches


def _partition_of(stored: Stored, number: int) -> int:
    if not 0 <= number < len(stored.partitions):
        raise MissingTopic(
            f"Topic {stored.topic.name} has no partition {number}, only {len(stored.partitions)}: "
            f"create it anew with more."
        )
    return stored.partitions[number]


def _span(connection: sqlite3.Connection, partition: int) -> Span:
    start, end = connection.execute(
        "SELECT start, next FROM partitions WHERE id = ?", (partition,)
    ).fetchone()
    return Span(start, end)


def _epoch(connection: sqlite3.Connection, name: str) -> int:
    row = connection.execute("SELECT epoch FROM committers WHERE name = ?", (name,)).fetchone()
    return row[0] if row is not None else 0
