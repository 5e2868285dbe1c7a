"""Writing: coordinates, order, content, placement, refusals."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiokafka.partitioner import murmur2 as murmur2_of_aiokafka
from hypothesis import given
from hypothesis import strategies as st

from tests.contract.broker_kit import Another, MakeTopic, unique
from tests.contract.helpers import all_of, ascending, by_partition, numbered, values
from worker.brokers.contract import Broker
from worker.brokers.partitioner import murmur2, murmur2_lanes, partition_for, partitions_for
from worker.errors import MessageRefused, MissingTopic
from worker.stream import ProducerRecord

# From the tests of Kafka's own client (UtilsTest.testMurmur2).
MURMUR2 = {
    b"21": -973932308,
    b"foobar": -790332482,
    b"a-little-bit-long-string": -985981536,
    b"a-little-bit-longer-string": -1486304829,
    b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    b"abc": 479470107,
}


async def test_publish_returns_where_each_message_is(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic(4)
    messages = [ProducerRecord(topic, b"key %d" % n, b"%d" % n) for n in range(50)]
    written = await broker.publish(messages)
    found = {(m.partition, m.offset): m for m in await all_of(broker, topic, 50, 4)}
    assert [(found[place].key, found[place].value) for place in written] == [
        (message.key, message.value) for message in messages
    ]


async def test_messages_of_a_partition_keep_their_order(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic = await make_topic(3)
    for start in range(0, 300, 100):
        await broker.publish(
            [ProducerRecord(topic, b"%d" % (n % 7), b"%d" % n) for n in range(start, start + 100)]
        )
    for messages in by_partition(await all_of(broker, topic, 300, 3)).values():
        assert ascending(values(messages))
        assert ascending([message.offset for message in messages])


async def test_nothing_to_publish(broker: Broker) -> None:
    assert await broker.publish([]) == []


@pytest.mark.parametrize("value", [None, b"", b"x", bytes(range(256)), b"x" * 900_000])
@pytest.mark.parametrize("key", [None, b"", b"key", b"\xff\x00"])
async def test_content_comes_back_as_it_was(
    broker: Broker, make_topic: MakeTopic, key: bytes | None, value: bytes | None
) -> None:
    topic = await make_topic()
    headers = (("one", b"1"), ("empty", b""), ("one", b"\x00\xff"), ("größe", "ß".encode()))
    await broker.publish(
        [ProducerRecord(topic, key, value, headers), ProducerRecord(topic, key, value)]
    )
    first, second = await all_of(broker, topic, 2)
    assert (first.topic, first.partition, first.offset) == (topic, 0, 0)
    assert (first.key, first.value, first.headers) == (key, value, headers)
    assert (second.key, second.value, second.headers) == (key, value, ())


@pytest.mark.parametrize("append_time", [True, False])
async def test_a_message_has_the_time_of_its_writing(
    broker: Broker, make_topic: MakeTopic, append_time: bool
) -> None:
    topic = await make_topic(append_time=append_time)
    await broker.publish(numbered(topic, range(2)))
    for message in await all_of(broker, topic, 2):
        assert message.appended is append_time
        assert abs(message.timestamp - time.time() * 1000) < 60_000


async def test_a_named_partition_is_kept_to(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic(5)
    messages = [ProducerRecord(topic, b"same", b"", partition=number) for number in (4, 0, 2, 4)]
    assert await broker.publish(messages) == [(4, 0), (0, 0), (2, 0), (4, 1)]


async def test_keys_lie_where_kafkas_default_partitioner_puts_them(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic = await make_topic(7)
    written = await broker.publish([ProducerRecord(topic, key, b"") for key in MURMUR2])
    assert [number for number, _ in written] == [
        (digest & 0x7FFFFFFF) % 7 for digest in MURMUR2.values()
    ]


@pytest.mark.parametrize("key", MURMUR2)
def test_murmur2_of_known_keys(key: bytes) -> None:
    assert murmur2(key) == MURMUR2[key] & 0xFFFFFFFF


@given(st.lists(st.binary(max_size=80), max_size=60), st.integers(1, 50))
def test_partitions_agree_with_aiokafka(keys: list[bytes], partitions: int) -> None:
    expected = [(murmur2_of_aiokafka(key) & 0x7FFFFFFF) % partitions for key in keys]
    assert [partition_for(key, partitions) for key in keys] == expected
    assert partitions_for(keys, partitions) == expected


@given(st.integers(0, 45).flatmap(lambda n: st.lists(st.binary(min_size=n, max_size=n))))
def test_many_keys_at_once_hash_as_each_alone(keys: list[bytes]) -> None:
    size = len(keys[0]) if keys else 0
    assert list(murmur2_lanes(keys, size)) == [murmur2_of_aiokafka(key) for key in keys]


async def test_messages_without_key_are_spread(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic(3)
    used = set()
    for _ in range(9):
        used |= {
            number for number, _ in await broker.publish([ProducerRecord(topic, None, b"")] * 4)
        }
    assert used == {0, 1, 2}


async def test_two_connections_write_at_once(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    topic = await make_topic()

    async def write(connection: Broker, start: int) -> list[tuple[int, int]]:
        written = []
        for first in range(start, start + 100, 10):
            written += await connection.publish(numbered(topic, range(first, first + 10)))
        return written

    places = await asyncio.gather(write(broker, 0), write(await another(), 1000))
    assert len({*places[0], *places[1]}) == 200
    found = values(await all_of(broker, topic, 200))
    assert ascending([value for value in found if value < 1000])
    assert ascending([value for value in found if value >= 1000])


async def test_a_missing_topic_is_named(broker: Broker, make_topic: MakeTopic) -> None:
    missing = unique("topic")
    with pytest.raises(MissingTopic, match=missing):
        await broker.publish([ProducerRecord(missing, b"k", b"v")])
    with pytest.raises(MissingTopic):
        await broker.publish(numbered(await make_topic(2), [1], partition=2))


@pytest.mark.parametrize("large", ["key", "value", "headers"])
async def test_a_message_that_is_too_large_is_refused_by_its_index(
    broker: Broker, make_topic: MakeTopic, large: str
) -> None:
    topic = await make_topic(max_message_bytes=10_000)
    too_large = {
        "key": ProducerRecord(topic, b"x" * 20_000, b""),
        "value": ProducerRecord(topic, b"", b"x" * 20_000),
        "headers": ProducerRecord(topic, b"", b"", (("h", b"x" * 20_000),)),
    }[large]
    with pytest.raises(MessageRefused) as caught:
        await broker.publish([*numbered(topic, range(3)), too_large, *numbered(topic, [4])])
    assert list(caught.value.refused) == [3]
    await broker.publish(numbered(topic, [9]))
    assert values([(await all_of(broker, topic, 1))[0]]) == [9]


async def test_a_compacted_topic_takes_no_message_without_a_key(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic = await make_topic(compacted=True)
    with pytest.raises(MessageRefused):
        await broker.publish([ProducerRecord(topic, None, b"v")])
