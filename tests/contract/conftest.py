"""Each test runs once on every broker; Kafka is shared by all, so names are new each time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

import worker.clock
from tests.contract.broker_kit import (
    RETENTION_MS,
    Another,
    Clock,
    Connect,
    DeleteTopic,
    Expire,
    MakeTopic,
    Truncate,
    unique,
)
from tests.contract.bucket_kit import World
from tests.contract.helpers import (
    delete_all,
    delete_embedded_topic,
    delete_topic,
    empty_embedded,
    empty_kafka,
    truncated_embedded,
)
from tests.contract.sink_kit import Sink, a_sink
from tests.kafka_server import KafkaServer
from tests.proofs.simulation.broker.cluster import Cluster
from tests.proofs.simulation.broker.connection import MemoryBroker
from tests.s3_server import S3Server
from worker.brokers.contract import Broker
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.brokers.kafka.broker import KafkaBroker
from worker.core.topics import Names
from worker.stream import Partition, Topic


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def connect(kind: str, clock: Clock, tmp_path: Path, request: pytest.FixtureRequest) -> Connect:
    if kind == "embedded":
        shared = worker.clock.Clock(clock.wall, clock.steady)
        return lambda: EmbeddedBroker(tmp_path / "broker", clock=shared)
    if kind == "memory":
        cluster = Cluster(clock.wall)
        return lambda: MemoryBroker(cluster)
    address: str = request.getfixturevalue("kafka_address")
    return lambda: KafkaBroker(address)


@pytest.fixture
async def another(connect: Connect) -> AsyncIterator[Another]:
    """Makes further connections to the same broker, as other processes would have."""
    opened: list[Broker] = []

    async def make() -> Broker:
        broker = connect()
        await broker.open()
        opened.append(broker)
        return broker

    yield make
    for broker in reversed(opened):
        await broker.close()


@pytest.fixture
async def broker(another: Another) -> Broker:
    return await another()


@pytest.fixture
def make_topic(broker: Broker) -> MakeTopic:
    """Creates a topic of a new name and returns the name."""

    async def make(partitions: int = 1, **settings: Any) -> str:
        name = unique("topic")
        assert await broker.create([Topic(name, partitions, **settings)]) == [name]
        return name

    return make


@pytest.fixture
def expire(kind: str, broker: Broker, clock: Clock, request: pytest.FixtureRequest) -> Expire:
    """Makes everything expire that is in a partition now; its retention must be RETENTION_MS."""

    async def expire_embedded(partition: Partition) -> None:
        assert isinstance(broker, EmbeddedBroker)
        clock.now += RETENTION_MS + 1
        await broker.maintain()

    async def expire_kafka(partition: Partition) -> None:
        await delete_all(broker, request.getfixturevalue("kafka_address"), partition)

    async def expire_memory(partition: Partition) -> None:
        await in_memory(broker, partition)

    ways = {"embedded": expire_embedded, "memory": expire_memory, "kafka": expire_kafka}
    return ways[kind]


@pytest.fixture
def empty(kind: str, broker: Broker, request: pytest.FixtureRequest) -> Expire:
    """Removes everything that is in a partition now, whatever its retention."""

    async def on_kafka(partition: Partition) -> None:
        await empty_kafka(broker, request.getfixturevalue("kafka_address"), partition)

    async def embedded(partition: Partition) -> None:
        assert isinstance(broker, EmbeddedBroker)
        await empty_embedded(broker, partition)

    async def memory(partition: Partition) -> None:
        await in_memory(broker, partition)

    return {"embedded": embedded, "memory": memory, "kafka": on_kafka}[kind]


@pytest.fixture
def remove(kind: str, broker: Broker, request: pytest.FixtureRequest) -> DeleteTopic:
    """Deletes a topic, as an operator does."""

    async def from_kafka(topic: str) -> None:
        await delete_topic(broker, request.getfixturevalue("kafka_address"), topic)

    async def from_embedded(topic: str) -> None:
        assert isinstance(broker, EmbeddedBroker)
        await delete_embedded_topic(broker, topic)

    async def from_memory(topic: str) -> None:
        assert isinstance(broker, MemoryBroker)
        broker.cluster.delete(topic)

    return {"embedded": from_embedded, "memory": from_memory, "kafka": from_kafka}[kind]


@pytest.fixture
def truncate(kind: str, broker: Broker, request: pytest.FixtureRequest) -> Truncate:
    """Removes the batches of a partition from an offset on, as a loss of power does.

    Kafka has to be restarted for that: the test's module takes its `kafka_address` from a
    `kafka_server` of its own.
    """

    async def on_kafka(partition: Partition, end: int) -> None:
        server: KafkaServer = request.getfixturevalue("kafka_server")
        await asyncio.to_thread(server.truncate, *partition, end)

    async def embedded(partition: Partition, end: int) -> None:
        assert isinstance(broker, EmbeddedBroker)
        await truncated_embedded(broker, partition, end)

    async def memory(partition: Partition, end: int) -> None:
        assert isinstance(broker, MemoryBroker)
        broker.cluster.log(partition).truncate(end)

    return {"embedded": embedded, "memory": memory, "kafka": on_kafka}[kind]


@pytest.fixture
async def sink(broker: Broker, clock: Clock, tmp_path: Path) -> Sink:
    """A sink whose topics are made; its clock stands."""
    return await a_sink(broker, Names(unique("sink")), tmp_path / "sink", clock)


@pytest.fixture
def world(s3: S3Server, tmp_path: Path) -> Iterator[World]:
    """A bucket of this test's own."""
    made = World(s3, tmp_path)
    yield made
    made.close()


async def in_memory(broker: Broker, partition: Partition) -> None:
    """Remove everything that is in a partition of the broker in memory."""
    assert isinstance(broker, MemoryBroker)
    broker.cluster.log(partition).expire()
