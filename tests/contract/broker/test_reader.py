"""Reading: positions, limits, pauses, waiting, gaps, what expired."""

from __future__ import annotations

import asyncio
import time

import pytest
from aiokafka import AIOKafkaProducer

from tests.contract.broker_kit import RETENTION_MS, Another, DeleteTopic, Expire, MakeTopic, unique
from tests.contract.helpers import (
    PATIENCE,
    ascending,
    by_partition,
    eventually,
    numbered,
    take,
    values,
)
from worker.brokers.contract import Broker
from worker.stream import Message, OffsetRange, Partition, ProducerRecord, Topic


async def test_nothing_is_read_until_partitions_are_assigned(
    broker: Broker, make_topic: MakeTopic
) -> None:
    await broker.publish(numbered(await make_topic(), range(3)))
    assert await broker.reader().read(10, 0.1) == []


async def test_reading_starts_at_the_given_offsets(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic(3)
    for number in range(3):
        await broker.publish(numbered(topic, range(10), number))
    reader = broker.reader()
    reader.assign({Partition(topic, 0): 7, Partition(topic, 2): 10})
    messages = await take(reader, 3)
    assert [(message.partition, message.offset) for message in messages] == [(0, 7), (0, 8), (0, 9)]


async def test_a_read_is_bounded_in_bytes_however_well_the_messages_compress(
    kind: str, broker: Broker, make_topic: MakeTopic, request: pytest.FixtureRequest
) -> None:
    topic, value = await make_topic(1), b"x" * 1_000_000
    if kind != "kafka":
        for _ in range(4):
            await broker.publish([ProducerRecord(topic, None, value)] * 12)
    else:
        address = request.getfixturevalue("kafka_address").removeprefix("kafka://")
        producer = AIOKafkaProducer(
            bootstrap_servers=address, compression_type="gzip", max_request_size=32_000_000
        )
        async with producer:
            for _ in range(48):
                await producer.send(topic, value)
    reader = broker.reader()
    reader.assign({Partition(topic, 0): 0})
    sizes: list[int] = []
    while sum(sizes) < 48:
        sizes.append(len(await reader.read(1_000, 5.0)))
    assert max(sizes) <= 16, sizes


@pytest.mark.parametrize("limit", [1, 7, 1000])
async def test_each_message_comes_once_in_order_and_never_more_than_the_limit(
    broker: Broker, make_topic: MakeTopic, limit: int
) -> None:
    topic = await make_topic(3)
    for start in (0, 10, 20):
        for number in range(3):
            await broker.publish(numbered(topic, range(start, start + 10), number))
    reader = broker.reader()
    reader.assign({Partition(topic, number): 0 for number in range(3)})
    messages: list[Message] = []
    while some := await reader.read(limit, 0.5):
        assert len(some) <= limit
        messages += some
    assert {n: values(found) for n, found in by_partition(messages).items()} == {
        number: list(range(30)) for number in range(3)
    }


async def test_the_position_is_what_comes_next(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic()
    partition = Partition(topic, 0)
    await broker.publish(numbered(topic, range(10)))
    reader = broker.reader()
    reader.assign({partition: 0})
    assert reader.position(partition) == 0
    read = 0
    while read < 10:
        read += len(await reader.read(4, PATIENCE))
        assert reader.position(partition) == read


async def test_the_position_reaches_the_end_past_gaps(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic = await make_topic()
    partition = Partition(topic, 0)
    committer = await broker.committer(unique("name"), unique("group"))
    for value in range(3):
        await committer.commit(numbered(topic, [value]), {})
    reader = broker.reader()
    reader.assign({partition: 0})
    await take(reader, 3)
    end = (await broker.spans([partition], uncommitted=True))[partition].end

    async def position() -> int:
        await reader.read(10, 0.05)
        return reader.position(partition)

    assert await eventually(position, lambda found: found == end) == end


async def test_a_new_assignment_moves_and_drops_partitions(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic = await make_topic(2)
    first, second = Partition(topic, 0), Partition(topic, 1)
    for number in range(2):
        await broker.publish(numbered(topic, range(10), number))
    reader = broker.reader()
    reader.assign({first: 0, second: 0})
    assert len(await reader.read(5, PATIENCE)) <= 5
    reader.assign({first: 8})
    assert [message.offset for message in await take(reader, 2)] == [8, 9]
    reader.assign({first: 3, second: 9})
    messages = by_partition(await take(reader, 8))
    assert [message.offset for message in messages[0]] == list(range(3, 10))
    assert [message.offset for message in messages[1]] == [9]


async def test_an_assignment_of_the_present_positions_changes_nothing(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic = await make_topic(2)
    for number in range(2):
        await broker.publish(numbered(topic, range(20), number))
    reader = broker.reader()
    positions = {Partition(topic, number): 0 for number in range(2)}
    messages: list[Message] = []
    async with asyncio.timeout(PATIENCE):
        while len(messages) < 40:
            reader.assign(positions)
            messages += await reader.read(3, PATIENCE)
            positions = {partition: reader.position(partition) for partition in positions}
    assert {n: values(found) for n, found in by_partition(messages).items()} == {
        number: list(range(20)) for number in range(2)
    }


async def test_a_paused_partition_gives_nothing_and_loses_nothing(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic = await make_topic(2)
    first, second = Partition(topic, 0), Partition(topic, 1)
    for number in range(2):
        await broker.publish(numbered(topic, range(20), number))
    reader = broker.reader()
    reader.assign({first: 0, second: 0})
    messages = await reader.read(4, PATIENCE)
    for paused in (first, second, first):
        some = await reader.read(4, PATIENCE, paused={paused})
        assert some
        assert {Partition(topic, message.partition) for message in some} == {first, second} - {
            paused
        }
        messages += some
    assert await reader.read(10, 0.1, paused={first, second}) == []
    messages += await take(reader, 40 - len(messages))
    assert {n: values(found) for n, found in by_partition(messages).items()} == {
        number: list(range(20)) for number in range(2)
    }


async def test_an_empty_topic_gives_nothing_after_the_timeout(
    broker: Broker, make_topic: MakeTopic
) -> None:
    reader = broker.reader()
    reader.assign({Partition(await make_topic(), 0): 0})
    assert await reader.read(10, 0.0) == []
    started = time.monotonic()
    assert await reader.read(10, 0.3) == []
    assert 0.25 < time.monotonic() - started < 10


async def test_a_waiting_read_gets_what_another_connection_publishes(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    topic = await make_topic(2)
    other = await another()
    reader = broker.reader()
    reader.assign({Partition(topic, 0): 0, Partition(topic, 1): 0})
    for value in range(5):
        waiting = asyncio.create_task(reader.read(10, 60.0))
        await other.publish(numbered(topic, [value], value % 2))
        async with asyncio.timeout(10.0):
            assert values(await waiting) == [value]


async def test_a_waiting_read_gets_what_its_own_connection_publishes(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic = await make_topic()
    reader = broker.reader()
    reader.assign({Partition(topic, 0): 0})
    waiting = asyncio.create_task(reader.read(10, 60.0))
    assert await reader.read(10, 0.05, paused={Partition(topic, 0)}) == []
    await broker.publish(numbered(topic, [1]))
    async with asyncio.timeout(10.0):
        assert values(await waiting) == [1]


async def test_readers_do_not_disturb_each_other(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic()
    await broker.publish(numbered(topic, range(10)))
    readers = [broker.reader() for _ in range(3)]
    for reader in readers:
        reader.assign({Partition(topic, 0): 0})
    for messages in await asyncio.gather(*(take(reader, 10) for reader in readers)):
        assert values(messages) == list(range(10))


async def test_what_expired_unread_is_counted_and_skipped(
    broker: Broker, make_topic: MakeTopic, expire: Expire
) -> None:
    partition = Partition(await make_topic(retention_ms=RETENTION_MS), 0)
    await broker.publish(numbered(partition.topic, range(10)))
    reader = broker.reader()
    reader.assign({partition: 4})
    await expire(partition)
    await broker.publish(numbered(partition.topic, [10, 11]))
    spans = await eventually(
        lambda: broker.spans([partition]), lambda spans: spans[partition].end == 12
    )
    assert spans == {partition: OffsetRange(10, 12)}
    messages = await take(reader, 2)
    assert [message.offset for message in messages] == [10, 11]
    assert reader.expired() == {partition: 6}
    assert reader.expired() == {}


async def test_a_position_beyond_the_end_of_a_topic_made_anew_goes_to_its_start(
    broker: Broker, another: Another, make_topic: MakeTopic, remove: DeleteTopic
) -> None:
    partition = Partition(await make_topic(), 0)
    await broker.publish(numbered(partition.topic, range(10)))
    reader = (await another()).reader()
    reader.assign({partition: 0})
    await take(reader, 10)
    await remove(partition.topic)
    await broker.create([Topic(partition.topic, 1)])
    await broker.publish(numbered(partition.topic, [10, 11]))
    assert values(await take(reader, 2)) == [10, 11]
    assert reader.expired() == {}


async def test_nothing_is_damaged_in_a_whole_log(broker: Broker, make_topic: MakeTopic) -> None:
    partition = Partition(await make_topic(), 0)
    await broker.publish(numbered(partition.topic, range(3)))
    reader = broker.reader()
    reader.assign({partition: 0})
    await take(reader, 3)
    assert not reader.damaged()
    assert not reader.skipped()
    assert await broker.damage() == []


async def test_offsets_are_not_used_again_after_everything_expired(
    broker: Broker, another: Another, make_topic: MakeTopic, expire: Expire
) -> None:
    partition = Partition(await make_topic(retention_ms=RETENTION_MS), 0)
    await broker.publish(numbered(partition.topic, range(3)))
    await expire(partition)
    other = await another()
    assert await other.publish(numbered(partition.topic, [3])) == [(0, 3)]


async def test_reading_in_small_steps_while_others_write(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    topic = await make_topic(2)
    other = await another()

    async def write() -> None:
        for start in range(0, 200, 20):
            for number in range(2):
                await other.publish(numbered(topic, range(start, start + 20), number))

    reader = broker.reader()
    reader.assign({Partition(topic, number): 0 for number in range(2)})
    writing = asyncio.create_task(write())
    messages = by_partition(await take(reader, 400, limit=13))
    await writing
    for found in messages.values():
        assert ascending([message.offset for message in found])
        assert values(found) == list(range(200))


async def test_the_lag_is_what_lies_ahead_as_far_as_the_broker_has_said(
    broker: Broker, make_topic: MakeTopic
) -> None:
    place = Partition(await make_topic(), 0)
    await broker.publish(numbered(place.topic, range(10)))
    reader = broker.reader()
    reader.assign({place: 0})
    assert reader.lag(place) == 0, "nobody has been asked"
    read = 0
    while read < 10:
        read += len(await reader.read(4, PATIENCE))
        assert reader.lag(place) == 10 - read
    await broker.publish(numbered(place.topic, range(10)))
    await reader.read(4, PATIENCE)
    assert reader.lag(place) == 20 - reader.position(place)


# --- what is not committed ----------------------------------------------------------------------


async def test_a_reader_of_the_uncommitted_gives_what_is_committed(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic = await make_topic()
    committer = await broker.committer(unique("name"), unique("group"))
    await committer.commit(numbered(topic, range(3)), {})
    await broker.publish(numbered(topic, range(3, 5)))
    reader = broker.reader(uncommitted=True)
    reader.assign({Partition(topic, 0): 0})
    assert values(await take(reader, 5)) == list(range(5))


@pytest.mark.parametrize("kind", [pytest.param("kafka", marks=pytest.mark.kafka)])
@pytest.mark.parametrize("aborted", [False, True], ids=["open", "aborted"])
async def test_a_reader_of_the_uncommitted_gives_open_and_aborted_messages(
    broker: Broker, make_topic: MakeTopic, kafka_address: str, aborted: bool
) -> None:
    topic = await make_topic()
    place = Partition(topic, 0)
    await broker.publish(numbered(topic, [1]))
    writer = AIOKafkaProducer(
        bootstrap_servers=kafka_address.removeprefix("kafka://"), transactional_id=unique("writer")
    )
    async with writer:
        await writer.begin_transaction()
        await writer.send_and_wait(topic, b"2", partition=0)
        if aborted:
            await writer.abort_transaction()
        await broker.publish(numbered(topic, [3]))  # behind it
        uncommitted, committed = broker.reader(uncommitted=True), broker.reader()
        for reader in (uncommitted, committed):
            reader.assign({place: 0})
        assert values(await take(uncommitted, 3)) == [1, 2, 3]
        assert values(await take(committed, 2 if aborted else 1)) == ([1, 3] if aborted else [1])
        end = (await broker.spans([place], uncommitted=True))[place].end
        assert uncommitted.position(place) == end
        if not aborted:
            await writer.commit_transaction()
            assert values(await take(committed, 2)) == [2, 3]
