"""What `buddy status` asks of a broker; what it makes of the answers is in tests/unit."""

from __future__ import annotations

from tests.contract.conftest import MakeTopic, unique
from worker.brokers.contract import Broker, Outgoing, Partition
from worker.cli.status import _entries, _first_unread
from worker.topics import Names, wanted

LIMIT = 1024 * 1024


async def test_what_is_left_may_be_markers_alone(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic(2)
    first, second = Partition(topic, 0), Partition(topic, 1)
    committer = await broker.committer(unique("writer"), unique("group"))
    offsets = await committer.commit([Outgoing(topic, b"k", b"v", partition=0)], {})
    await committer.close()
    spans = await broker.spans([first, second])
    waiting = await _first_unread(broker, {first: 0, second: 0}, spans)
    assert waiting.keys() == {first}
    assert waiting[first] is not None
    behind = offsets[0] + 1
    assert await _first_unread(broker, {first: behind}, spans) == {}
    assert spans[first].end >= behind


async def test_a_producers_own_clock_does_not_say_how_long_a_record_has_waited(
    broker: Broker, make_topic: MakeTopic
) -> None:
    place = Partition(await make_topic(append_time=False), 0)
    await broker.publish([Outgoing(place.topic, b"k", b"v")])
    assert await _first_unread(broker, {place: 0}, await broker.spans([place])) == {place: None}


async def test_the_newest_progress_is_found_behind_garbage(broker: Broker) -> None:
    names = Names(unique("prefix"))
    await broker.create([wanted(names, 2, LIMIT)[names.progress]])
    mine = [
        Outgoing(names.progress, b"1", b'{"next":{"users":%d}}' % n, partition=1) for n in (1, 2)
    ]
    await broker.publish(mine)
    await broker.publish(
        [Outgoing(names.progress, b"x%d" % n, b"\xff", partition=1) for n in range(30)]
    )
    entries = await _entries(broker, names, 2)
    assert entries[0].committed is None
    assert entries[1].committed is not None
    assert (entries[1].book.next, entries[1].unreadable) == ({"users": 2}, 30)
