"""What `buddy status` asks of a broker; what it makes of the answers is in tests/unit."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer

from schemas import ENTITIES
from tests.contract.broker_kit import Clock, MakeTopic, unique
from tests.contract.helpers import all_of
from worker.brokers.contract import Broker
from worker.cli import ask_broker
from worker.cli.ask_broker import (
    broker_answers,
    first_unread,
    latest_checkpoints,
    with_earlier_checkpoints,
)
from worker.cli.settings import Settings
from worker.core.topics import Names, wanted
from worker.engine import latest
from worker.status.broker_answers import BrokerAnswers
from worker.status.report import report
from worker.status.trouble import STALLED_MS, stalled
from worker.stream import OffsetRange, Partition, ProducerRecord

LIMIT = 1024 * 1024


async def test_what_is_left_may_be_markers_alone(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic(2)
    first, second = Partition(topic, 0), Partition(topic, 1)
    committer = await broker.committer(unique("writer"), unique("group"))
    offsets = await committer.commit([ProducerRecord(topic, b"k", b"v", partition=0)], {})
    await committer.close()
    spans = await broker.spans([first, second])
    waiting = await first_unread(broker, {first: 0, second: 0}, spans)
    assert waiting.keys() == {first}
    assert waiting[first] is not None
    behind = offsets[0][1] + 1
    assert await first_unread(broker, {first: behind}, spans) == {}
    assert spans[first].end >= behind


async def test_a_producers_own_clock_does_not_say_how_long_a_record_has_waited(
    broker: Broker, make_topic: MakeTopic
) -> None:
    place = Partition(await make_topic(append_time=False), 0)
    await broker.publish([ProducerRecord(place.topic, b"k", b"v")])
    assert await first_unread(broker, {place: 0}, await broker.spans([place])) == {place: None}


async def test_a_partition_that_gives_nothing_is_told_and_holds_up_nobody(
    broker: Broker, make_topic: MakeTopic, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latest, "_PATIENCE", 1.0)
    topic = await make_topic(2)
    first, second = Partition(topic, 0), Partition(topic, 1)
    await broker.publish([ProducerRecord(topic, b"k", b"v", partition=0)])
    spans = await broker.spans([first, second])
    reached = {first: spans[first], second: OffsetRange(0, 1)}  # as if there were a message

    async def claimed(*_: object, **__: object) -> dict[Partition, OffsetRange]:
        return reached

    monkeypatch.setattr(broker, "spans", claimed)
    found, stuck = await latest.read_last(broker, [first, second], 10)
    assert [message.value for message in found[first]] == [b"v"]
    assert (found[second], stuck) == ([], [second])


async def test_the_newest_progress_is_found_behind_garbage(broker: Broker) -> None:
    names = Names(unique("prefix"))
    await broker.create([wanted(names, 2, LIMIT)[names.progress]])
    mine = [
        ProducerRecord(names.progress, b"1", b'{"next":{"users":%d},"judged":{}}' % n, partition=1)
        for n in (1, 2)
    ]
    await broker.publish(mine)
    await broker.publish(
        [ProducerRecord(names.progress, b"x%d" % n, b"\xff", partition=1) for n in range(30)]
    )
    tasks = await latest_checkpoints(broker, names, 2)
    assert tasks[0].committed is None
    assert tasks[1].committed is not None
    assert (tasks[1].checkpoint.next, tasks[1].unreadable) == ({"users": 2}, 30)


async def test_earlier_progress_is_looked_for_until_it_shows_that_a_position_stands_still(
    broker: Broker, clock: Clock
) -> None:
    """A task commits a hundred times in a moment, and never gets on with its events."""
    names = Names(unique("prefix"))
    await broker.create([wanted(names, 1, LIMIT)[names.progress]])
    for first in range(0, 100, 10):
        clock.now += 1_000
        written = [
            ProducerRecord(
                names.progress, b"0", b'{"next":{"users":%d,"events":5},"judged":{}}' % n
            )
            for n in range(first, first + 10)
        ]
        await broker.publish(written)
    progress = await all_of(broker, names.progress, 100)
    place = Partition(names.input("events"), 0)
    answers = BrokerAnswers(
        names=names,
        at=progress[0].timestamp + STALLED_MS,
        tasks=await latest_checkpoints(broker, names, 1),
        spans={place: OffsetRange(0, 9)},
        ends={place: 9},
        group_offsets={},
        identities={},
        workers=[],
        sinks=[],
        exact=True,
    )
    waiting: dict[Partition, int | None] = {place: progress[0].timestamp}
    found = await with_earlier_checkpoints(broker, answers, waiting)
    assert found.tasks[0].unmoved_since["events"] == progress[0].timestamp
    assert found.tasks[0].unmoved_since["users"] == progress[99].timestamp
    assert stalled(found, waiting) == {place: STALLED_MS}


async def test_what_is_appended_meanwhile_is_not_in_an_open_transaction(
    broker: Broker, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(unique("prefix"))
    topics = wanted(names, 1, LIMIT)
    await broker.create([topics[names.input(entity)] for entity in ENTITIES])
    await broker.create([topics[names.progress]])
    really = broker.spans

    async def spans(partitions: Iterable[Partition], **options: bool) -> Any:
        await broker.publish([ProducerRecord(names.input("users"), b"k", b"v")])
        return await really(partitions, **options)

    monkeypatch.setattr(broker, "spans", spans)
    answers = await broker_answers(broker, Settings(prefix=names.prefix), 1)
    figures = report(answers, {}).entities
    assert {entity: found.blocked for entity, found in figures.items()} == dict.fromkeys(
        ENTITIES, 0
    )


@pytest.mark.kafka
@pytest.mark.parametrize("kind", ["kafka"])
async def test_a_checkpoint_behind_an_open_transaction_is_not_the_newest(
    broker: Broker, kafka_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = Names(unique("prefix"))
    topic = names.progress
    await broker.create([wanted(names, 2, LIMIT)[topic]])
    address = kafka_address.removeprefix("kafka://")
    writer = AIOKafkaProducer(bootstrap_servers=address, transactional_id=unique("writer"))
    await writer.start()
    try:
        await writer.begin_transaction()
        await writer.send_and_wait(topic, b"x", b"x", partition=1)
        mine = [
            ProducerRecord(topic, b"%d" % n, b'{"next":{},"judged":{}}', partition=n)
            for n in (0, 1)
        ]
        await broker.publish(mine)
        tasks = await latest_checkpoints(broker, names, 2)
        assert [tasks[n].complete for n in (0, 1)] == [True, True], "it may end within a moment"
        monkeypatch.setattr(ask_broker, "_OPEN_MS", 0)
        tasks = await latest_checkpoints(broker, names, 2)
        assert [tasks[n].complete for n in (0, 1)] == [True, False]
        monkeypatch.setattr(ask_broker, "_ENDS_SECONDS", 5.0)
        asking = asyncio.create_task(latest_checkpoints(broker, names, 2))
        await asyncio.sleep(0)
        await writer.abort_transaction()
        tasks = await asking
        assert [tasks[n].complete for n in (0, 1)] == [True, True], "it ends meanwhile"
    finally:
        await writer.stop()
    tasks = await latest_checkpoints(broker, names, 2)
    assert [tasks[n].complete for n in (0, 1)] == [True, True]
