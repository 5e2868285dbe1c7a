"""A log that loses its last messages under a reader. Kafka is killed for it, and started again."""

from __future__ import annotations

from contextlib import suppress

import pytest

from tests.contract.broker_kit import MakeTopic, Truncate
from tests.contract.helpers import eventually, numbered, take, values
from tests.kafka_server import KafkaServer
from worker.brokers.contract import Broker
from worker.errors import BrokerUnavailable
from worker.stream import OffsetRange, Partition


@pytest.fixture
def kafka_address(kafka_server: KafkaServer) -> str:
    return kafka_server.address


async def test_a_position_beyond_the_end_of_a_log_that_was_truncated_is_told(
    broker: Broker, make_topic: MakeTopic, truncate: Truncate
) -> None:
    partition = Partition(await make_topic(), 0)
    identity = await broker.identities([partition.topic])
    for first in range(0, 12, 4):
        await broker.publish(numbered(partition.topic, range(first, first + 4)))
    reader = broker.reader()
    reader.assign({partition: 0})
    await take(reader, 12)
    assert reader.truncated() == {}
    await truncate(partition, 8)

    async def spans() -> OffsetRange:
        try:
            return (await broker.spans([partition], uncommitted=True))[partition]
        except BrokerUnavailable:
            return OffsetRange(0, 0)

    assert await eventually(spans, lambda span: span.end == 8) == OffsetRange(0, 8)
    assert await broker.identities([partition.topic]) == identity
    found: list[int] = []

    async def read() -> list[int]:
        with suppress(BrokerUnavailable):
            found.extend(values(await reader.read(100, 0.2)))
        return found

    assert await eventually(read, lambda messages: len(messages) == 8) == [*range(8)]
    assert (reader.truncated(), reader.expired()) == ({partition: 4}, {})
    assert reader.truncated() == {}

    async def publish() -> list[tuple[int, int]]:
        try:
            return await broker.publish(numbered(partition.topic, [20, 21]))
        except BrokerUnavailable:  # Kafka has lost the state of the producer, too
            return []

    assert await eventually(publish, bool) == [(0, 8), (0, 9)]
    assert values(await take(reader, 2)) == [20, 21]
    reader.assign({partition: 8})
    assert values(await take(reader, 2)) == [20, 21]
    assert reader.truncated() == {}
