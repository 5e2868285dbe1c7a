"""The embedded broker's topics and partitions: their rows, and whether the rows are sound.

Every function runs in the thread of the connection that is passed to it.
"""

from __future__ import annotations

import sqlite3
import uuid
from collections import defaultdict
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import msgspec

from worker.brokers.embedded.seal import seal
from worker.errors import DamagedLog, MissingTopic
from worker.stream import Partition, Topic


class Stored(NamedTuple):
    """A topic, its identity, and the database ids of its partitions."""

    topic: Topic
    identity: str
    partitions: tuple[int, ...]

    def partition(self, number: int) -> int:
        """The database id of a partition. Raises `MissingTopic`."""
        if not 0 <= number < len(self.partitions):
            raise MissingTopic(
                f"Topic {self.topic.name} has no partition {number}, only {len(self.partitions)}: "
                f"create it anew with more."
            )
        return self.partitions[number]


class PartitionRow(NamedTuple):
    """The sealed columns of a partition's row."""

    id: int
    topic: int
    number: int
    start: int
    next: int
    last_time: int
    compacted_to: int
    tombstones_from: int


_SEALED = ", ".join(PartitionRow._fields)


class _Known(NamedTuple):
    version: int
    topics: dict[str, Stored]
    damaged: list[str]


class Catalogue:
    """The topics as one connection sees them; reloaded only after one is created or removed.

    Call `refresh` before use, in the same transaction or snapshot as the use.
    """

    def __init__(self) -> None:
        self._known = _Known(-1, {}, [])

    def refresh(self, connection: sqlite3.Connection) -> bool:
        """Reload the topics if any was created or removed; return whether they changed.

        Raises `DamagedLog`.
        """
        if _version(connection) == self._known.version:
            return False
        self._known = _load(connection)
        return True

    def every(self) -> Iterator[Stored]:
        """All topics."""
        yield from self._known.topics.values()

    def find(self, name: str) -> Stored | None:
        """The topic of that name, or None. Raises `DamagedLog` if damage hides the answer."""
        stored = self._known.topics.get(name)
        if stored is None and self._known.damaged:
            raise DamagedLog(
                f"The log's entry of topic {self._known.damaged[0]} is damaged, so {name} cannot "
                f"be used: put a copy of the log back. 'buddy log verify' shows all damage."
            )
        return stored

    def need(self, name: str) -> Stored:
        """The topic of that name. Raises `MissingTopic`."""
        if (stored := self.find(name)) is None:
            raise MissingTopic(f"Topic {name} does not exist: `buddy topics create` makes it.")
        return stored

    def partition(self, partition: Partition) -> int:
        """The database id of a partition. Raises `MissingTopic`."""
        return self.need(partition.topic).partition(partition.number)

    def damaged(self) -> list[str]:
        """The names of topics whose rows are damaged, as far as the names are readable."""
        return self._known.damaged


def create(
    connection: sqlite3.Connection, catalogue: Catalogue, topics: Iterable[Topic], now: int
) -> list[str]:
    """Create the missing topics, within a transaction; return their names."""
    catalogue.refresh(connection)
    created: list[str] = []
    for topic in topics:
        if topic.name in created or catalogue.find(topic.name) is not None:
            continue
        row = (_free_id(connection, "topics"), *msgspec.structs.astuple(topic), uuid.uuid4().hex)
        connection.execute(
            "INSERT INTO topics (id, name, partitions, compacted, append_time, retention_ms,"
            " delete_retention_ms, max_message_bytes, identity, crc)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*row, topic_seal(row)),
        )
        first = _free_id(connection, "partitions")
        for number in range(topic.partitions):
            partition = PartitionRow(first + number, row[0], number, 0, 0, 0, 0, 0)
            connection.execute(
                f"INSERT INTO partitions ({_SEALED}, crc, compacted_at)"  # noqa: S608 -- our names
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (*partition, seal(*partition), now),
            )
        created.append(topic.name)
    if created:
        connection.execute("UPDATE log SET topics = topics + 1")
    return created


def partition_row(connection: sqlite3.Connection, number: int, name: Partition) -> PartitionRow:
    """The row of a partition. Raises `DamagedLog`."""
    found = connection.execute(
        f"SELECT {_SEALED}, crc FROM partitions WHERE id = ?",  # noqa: S608 -- our own names
        (number,),
    ).fetchone()
    if found is None or seal(*found[:-1]) != found[-1]:
        raise DamagedLog(
            f"The log's entry of {name.topic}/{name.number} is damaged: "
            f"'buddy log skip {name.topic}/{name.number}' makes it again from what is there."
        )
    return PartitionRow(*found[:-1])


def store(connection: sqlite3.Connection, row: PartitionRow, grown: int = 0) -> None:
    """Replace the row of a partition, and add `grown` to its growth, within a transaction."""
    connection.execute(
        "UPDATE partitions SET start = ?, next = ?, last_time = ?, compacted_to = ?,"
        " tombstones_from = ?, crc = ?, grown = grown + ? WHERE id = ?",
        (*row[3:], seal(*row), grown, row.id),
    )


def last_append(connection: sqlite3.Connection) -> int:
    """The latest append time of all partitions whose rows are sound; 0 if there are none."""
    rows = connection.execute(
        f"SELECT {_SEALED}, crc FROM partitions NOT INDEXED"  # noqa: S608 -- our own names
    )
    return max((row[5] for row in rows if seal(*row[:-1]) == row[-1]), default=0)


def topic_seal(row: tuple[object, ...]) -> int:
    """The seal of a topic's row: its id, its settings, its identity."""
    # SQLite returns booleans as integers.
    return seal(*(int(value) if isinstance(value, bool) else value for value in row))


def _load(connection: sqlite3.Connection) -> _Known:
    # NOT INDEXED: an index may be damaged while the rows are sound.
    version = _version(connection)
    numbers: defaultdict[object, dict[int, int]] = defaultdict(dict)
    for row in connection.execute("SELECT id, topic, number FROM partitions NOT INDEXED"):
        numbers[row[1]][row[2]] = row[0]
    topics = {}
    damaged = []
    for row in connection.execute(
        "SELECT id, name, partitions, compacted, append_time, retention_ms, delete_retention_ms,"
        " max_message_bytes, identity, crc FROM topics NOT INDEXED"
    ):
        mine = numbers[row[0]]
        if topic_seal(row[:-1]) != row[-1] or mine.keys() != set(range(row[2])):
            damaged.append(str(row[1]))
            continue
        topic = Topic(row[1], row[2], bool(row[3]), bool(row[4]), row[5], row[6], row[7])
        topics[topic.name] = Stored(topic, row[8], tuple(mine[n] for n in range(row[2])))
    return _Known(version, topics, damaged)


def _version(connection: sqlite3.Connection) -> int:
    row = connection.execute("SELECT topics FROM log").fetchone()
    if row is None:
        raise DamagedLog("The log's own entry is gone: put a copy of the log back.")
    version: int = row[0]
    return version


def _free_id(connection: sqlite3.Connection, table: str) -> int:
    free: int = connection.execute(f"SELECT coalesce(max(id), 0) + 1 FROM {table}").fetchone()[0]  # noqa: S608 -- our own names
    return free
