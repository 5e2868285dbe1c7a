"""Short forms of what the tests say again and again."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterable, Sequence
from itertools import pairwise
from typing import TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import PolicyViolationError
from aiokafka.structs import TopicPartition

from worker.brokers.contract import Broker, Reader
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.brokers.embedded.store import transaction
from worker.brokers.embedded.topics import partition_row, store
from worker.brokers.kafka.topics import new_topic
from worker.stream import Message, Partition, ProducerRecord

PATIENCE = 20.0
"""Seconds within which anything must have happened; nothing normally takes so long."""

_T = TypeVar("_T")


def numbered(topic: str, values: Iterable[int], partition: int | None = 0) -> list[ProducerRecord]:
    """Messages whose values are these numbers."""
    return [ProducerRecord(topic, b"k", b"%d" % value, partition=partition) for value in values]


def values(messages: Iterable[Message]) -> list[int]:
    """The numbers that `numbered` put in."""
    return [int(message.value or b"-1") for message in messages]


async def take(reader: Reader, count: int, limit: int = 1000) -> list[Message]:
    """Exactly the next `count` messages: there must be so many, and none may follow."""
    messages: list[Message] = []
    async with asyncio.timeout(PATIENCE):
        while len(messages) < count:
            messages += await reader.read(limit, 1.0)
    assert len(messages) == count
    assert await reader.read(limit, 0.1) == []
    return messages


async def all_of(broker: Broker, topic: str, count: int, partitions: int = 1) -> list[Message]:
    """All messages of a topic, which must be `count`."""
    reader = broker.reader()
    reader.assign({Partition(topic, number): 0 for number in range(partitions)})
    try:
        return await take(reader, count)
    finally:
        await reader.close()


async def eventually(ask: Callable[[], Awaitable[_T]], want: Callable[[_T], bool]) -> _T:
    """Ask until the answer is as wanted: what a broker tells people may lag behind."""
    async with asyncio.timeout(PATIENCE):
        while True:
            answer = await ask()
            if want(answer):
                return answer
            await asyncio.sleep(0.02)


def by_partition(messages: Iterable[Message]) -> dict[int, list[Message]]:
    """The messages of each partition, in the order in which they came."""
    found: dict[int, list[Message]] = {}
    for message in messages:
        found.setdefault(message.partition, []).append(message)
    return found


def ascending(numbers: Sequence[int]) -> bool:
    """Whether each is larger than the one before."""
    return all(one < other for one, other in pairwise(numbers))


async def delete_all(broker: Broker, address: str, partition: Partition) -> None:
    """Have Kafka delete everything that is in a partition now, as if it had expired."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        end = (await broker.spans([partition]))[partition].end
        await admin.delete_records({TopicPartition(*partition): RecordsToDelete(end)})
    finally:
        await admin.close()


async def empty_kafka(broker: Broker, address: str, partition: Partition) -> None:
    """Remove everything from a compacted partition, as a wrong policy of its topic does."""
    settings = new_topic((await broker.topics([partition.topic]))[partition.topic]).topic_configs
    await configure(address, partition.topic, **{**settings, "cleanup.policy": "delete"})

    async def deleted() -> bool:
        try:
            await delete_all(broker, address, partition)
        except PolicyViolationError:  # the change of policy has not reached the log yet
            return False
        return True

    await eventually(deleted, bool)
    await configure(address, partition.topic, **settings)


async def configure(address: str, topic: str, **settings: str) -> None:
    """Change settings of a topic on Kafka; those that are not named get their defaults."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        resource = ConfigResource(ConfigResourceType.TOPIC, topic, configs=settings)
        await admin.alter_configs([resource])
    finally:
        await admin.close()


async def add_partitions(broker: Broker, address: str, topic: str, total: int) -> None:
    """Have Kafka give a topic more partitions; returns once the broker shows them."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_partitions({topic: NewPartitions(total)})
    finally:
        await admin.close()
    await eventually(lambda: broker.topics([topic]), lambda f: f[topic].partitions == total)


async def delete_topic(broker: Broker, address: str, topic: str) -> None:
    """Have Kafka delete a topic; returns once the broker does not know it any more."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.delete_topics([topic])
    finally:
        await admin.close()
    await eventually(lambda: broker.topics([topic]), lambda found: not found)


async def delete_embedded_topic(broker: EmbeddedBroker, topic: str) -> None:
    """Delete a topic of an embedded broker, which has no command for it."""

    def work(connection: sqlite3.Connection) -> None:
        numbers = "SELECT p.id FROM partitions p JOIN topics t ON t.id = p.topic WHERE t.name = ?"
        with transaction(connection):
            for table in ("batches", "group_offsets", "damage"):
                connection.execute(f"DELETE FROM {table} WHERE partition IN ({numbers})", (topic,))  # noqa: S608 -- no input
            connection.execute(f"DELETE FROM partitions WHERE id IN ({numbers})", (topic,))  # noqa: S608 -- as above
            connection.execute("DELETE FROM topics WHERE name = ?", (topic,))
            connection.execute("UPDATE log SET topics = topics + 1")

    await broker._writing.run(work)


async def empty_embedded(broker: EmbeddedBroker, place: Partition) -> None:
    """Remove everything that is in a partition of an embedded broker now."""

    def work(connection: sqlite3.Connection) -> None:
        broker._to_write.refresh(connection)
        number = broker._to_write.partition(place)
        with transaction(connection):
            connection.execute("DELETE FROM batches WHERE partition = ?", (number,))
            row = partition_row(connection, number, place)
            store(connection, row._replace(start=row.next))

    await broker._writing.run(work)


async def truncated_embedded(broker: EmbeddedBroker, place: Partition, end: int) -> None:
    """Remove the batches of a partition of an embedded broker from offset `end` on."""

    def work(connection: sqlite3.Connection) -> None:
        broker._to_write.refresh(connection)
        number = broker._to_write.partition(place)
        with transaction(connection):
            gone = connection.execute(
                "DELETE FROM batches WHERE partition = ? AND base >= ?", (number, end)
            )
            assert gone.rowcount > 0, "nothing to remove"
            row = partition_row(connection, number, place)
            store(connection, row._replace(next=end))

    await broker._writing.run(work)


async def damage_embedded_entry(broker: EmbeddedBroker, place: Partition) -> None:
    """Damage the entry of a partition of an embedded broker, its start and end."""

    def work(connection: sqlite3.Connection) -> None:
        broker._to_write.refresh(connection)
        number = broker._to_write.partition(place)
        with transaction(connection):
            connection.execute("UPDATE partitions SET crc = crc + 1 WHERE id = ?", (number,))

    await broker._writing.run(work)


async def damage_embedded(broker: EmbeddedBroker, place: Partition, base: int = 0) -> None:
    """Damage the batch of a partition of an embedded broker that begins at `base`."""

    def work(connection: sqlite3.Connection) -> None:
        broker._to_write.refresh(connection)
        number = broker._to_write.partition(place)
        with transaction(connection):  # which waits for a worker that writes
            connection.execute(
                "UPDATE batches SET content = x'90' WHERE partition = ? AND base = ?",
                (number, base),
            )

    await broker._writing.run(work)
