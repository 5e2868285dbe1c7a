"""Committers: all or nothing, and one writer of a name."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.contract.broker_kit import Another, MakeTopic, unique
from tests.contract.helpers import all_of, by_partition, configure, eventually, numbered, values
from worker.brokers.contract import Broker, Committer
from worker.errors import Fenced, MessageRefused, MissingTopic
from worker.stream import Partition, ProducerRecord


async def test_a_commit_writes_messages_and_offsets(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    source, target, group = await make_topic(2), await make_topic(2), unique("group")
    first, second = Partition(source, 0), Partition(source, 1)
    other = await another()
    committer = await broker.committer(unique("name"), group)
    messages = numbered(target, range(5), 1) + numbered(target, range(5, 8), 0)
    places = await committer.commit(messages, {first: 17, second: 0})
    found = {(m.partition, m.offset): m.value for m in await all_of(other, target, 8, 2)}
    assert [place[0] for place in places] == [message.partition for message in messages]
    assert [found[place] for place in places] == [message.value for message in messages]
    committed = await eventually(lambda: other.committed(group, [first, second]), bool)
    assert committed == {first: 17, second: 0}


async def test_offsets_that_were_never_committed_are_absent(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic, group = await make_topic(2), unique("group")
    first, second = Partition(topic, 0), Partition(topic, 1)
    assert await broker.committed(group, [first, second]) == {}
    committer = await broker.committer(unique("name"), group)
    await committer.commit([], {second: 5})
    assert await eventually(lambda: broker.committed(group, [first, second]), bool) == {second: 5}
    assert await broker.committed(unique("group"), [first, second]) == {}


async def test_the_last_committed_offset_counts(broker: Broker, make_topic: MakeTopic) -> None:
    topic, group = await make_topic(), unique("group")
    partition = Partition(topic, 0)
    committer = await broker.committer(unique("name"), group)
    for position in (3, 9, 7):
        assert len(await committer.commit(numbered(topic, [position]), {partition: position})) == 1
    assert await eventually(
        lambda: broker.committed(group, [partition]), lambda found: found == {partition: 7}
    )
    assert values(await all_of(broker, topic, 3)) == [3, 9, 7]


async def test_nothing_of_a_refused_commit_is_visible(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic, name, group = await make_topic(2, max_message_bytes=10_000), unique("n"), unique("g")
    partition = Partition(topic, 0)
    committer = await broker.committer(name, group)
    too_large = ProducerRecord(topic, b"k", b"x" * 20_000, partition=1)
    with pytest.raises(MessageRefused) as caught:
        await committer.commit([*numbered(topic, range(3)), too_large], {partition: 5})
    assert list(caught.value.refused) == [3]
    with pytest.raises(MissingTopic):
        await (await broker.committer(name, group)).commit(
            [*numbered(topic, range(3)), ProducerRecord(unique("topic"), b"k", b"v")],
            {partition: 6},
        )
    await (await broker.committer(name, group)).commit(numbered(topic, [9]), {})
    assert values(await all_of(broker, topic, 1, 2)) == [9]
    assert await broker.committed(group, [partition]) == {}


@pytest.mark.parametrize("kind", [pytest.param("kafka", marks=pytest.mark.kafka)], indirect=True)
async def test_a_limit_that_is_lowered_is_learnt_from_the_refusal(
    broker: Broker, make_topic: MakeTopic, kafka_address: str
) -> None:
    """The broker refuses a whole batch then; the next time it is known which message it is."""
    topic, name, group = await make_topic(max_message_bytes=10_000), unique("name"), unique("group")
    messages = [*numbered(topic, range(3)), ProducerRecord(topic, b"k", b"x" * 5_000, partition=0)]
    await (await broker.committer(name, group)).commit(messages, {})
    await configure(kafka_address, topic, **{"max.message.bytes": "2000"})
    with pytest.raises(MessageRefused) as caught:
        await (await broker.committer(name, group)).commit(messages, {})
    assert caught.value.refused == {}
    with pytest.raises(MessageRefused) as caught:
        await (await broker.committer(name, group)).commit(messages, {})
    assert list(caught.value.refused) == [3]
    await (await broker.committer(name, group)).commit(messages[:3], {})


async def test_a_new_committer_fences_the_old_one(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    topic, name, group = await make_topic(), unique("name"), unique("group")
    partition = Partition(topic, 0)
    old = await broker.committer(name, group)
    await old.commit(numbered(topic, [1]), {partition: 1})
    new = await (await another()).committer(name, group)
    with pytest.raises(Fenced):
        await old.commit(numbered(topic, [2]), {partition: 2})
    await new.commit(numbered(topic, [3]), {partition: 3})
    with pytest.raises(Fenced):
        await old.commit([], {partition: 4})
    assert values(await all_of(broker, topic, 2)) == [1, 3]
    assert await eventually(
        lambda: broker.committed(group, [partition]), lambda found: found == {partition: 3}
    )


async def test_a_committer_that_never_wrote_is_fenced_as_well(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic, name, group = await make_topic(), unique("name"), unique("group")
    first, second, third = [await broker.committer(name, group) for _ in range(3)]
    for old in (first, second):
        with pytest.raises(Fenced):
            await old.commit(numbered(topic, [1]), {})
    await third.commit(numbered(topic, [2]), {})
    assert values(await all_of(broker, topic, 1)) == [2]


async def test_a_fenced_committer_stays_fenced_when_its_successors_are_closed(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic, name, group = await make_topic(), unique("name"), unique("group")
    old = await broker.committer(name, group)
    for value in (1, 2):
        successor = await broker.committer(name, group)
        await successor.commit(numbered(topic, [value]), {})
        await successor.close()
        await successor.close()
    with pytest.raises(Fenced):
        await old.commit(numbered(topic, [3]), {})
    await old.close()
    assert values(await all_of(broker, topic, 2)) == [1, 2]


async def test_committers_of_different_names_do_not_disturb_each_other(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    topic, group = await make_topic(4), unique("group")
    other = await another()

    async def work(connection: Broker, number: int) -> None:
        committer = await connection.committer(unique("name"), group)
        for value in range(10):
            await committer.commit(
                numbered(topic, [value], number), {Partition(topic, number): value + 1}
            )
        await committer.close()

    await asyncio.gather(*(work(broker if n % 2 else other, n) for n in range(4)))
    found = by_partition(await all_of(broker, topic, 40, 4))
    assert {number: values(messages) for number, messages in found.items()} == {
        number: list(range(10)) for number in range(4)
    }
    partitions = [Partition(topic, number) for number in range(4)]
    assert await eventually(
        lambda: broker.committed(group, partitions),
        lambda found: found == dict.fromkeys(partitions, 10),
    )


async def test_what_was_committed_stays_when_the_committer_is_closed(
    broker: Broker, make_topic: MakeTopic
) -> None:
    topic = await make_topic()
    committer = await broker.committer(unique("name"), unique("group"))
    await committer.commit(numbered(topic, [1]), {})
    await committer.close()
    assert values(await all_of(broker, topic, 1)) == [1]


_NAMES = st.sampled_from(["one", "two"])
_LOADS = st.lists(st.integers(0, 2), max_size=5)  # the partition of each message
_STEPS: st.SearchStrategy[tuple[str, str, list[int]]] = st.one_of(
    st.tuples(st.just("publish"), st.just(""), _LOADS),
    st.tuples(st.just("commit"), _NAMES, _LOADS),
    st.tuples(st.just("take over"), _NAMES, st.just(list[int]())),
    st.tuples(st.just("commit by a fenced one"), _NAMES, _LOADS),
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.lists(_STEPS, max_size=12))
async def test_whatever_is_written_reads_back_once_and_in_order(
    broker: Broker, make_topic: MakeTopic, steps: list[tuple[str, str, list[int]]]
) -> None:
    topic, group, suffix = await make_topic(3), unique("group"), unique("")
    current: dict[str, Committer] = {}
    fenced: dict[str, list[Committer]] = {"one": [], "two": []}
    expected: dict[int, list[int]] = {0: [], 1: [], 2: []}
    value = 0
    for step, name, numbers in steps:
        messages = []
        for number in numbers:
            messages += numbered(topic, [value], number)
            value += 1
        if step == "commit by a fenced one":
            if fenced[name]:
                with pytest.raises(Fenced):
                    await fenced[name].pop().commit(messages, {Partition(topic, 0): value})
            continue
        if step == "publish":
            await broker.publish(messages)
        else:
            if step == "take over" and name in current:
                fenced[name].append(current.pop(name))
            if name not in current:
                current[name] = await broker.committer(f"{name}{suffix}", group)
            await current[name].commit(messages, {Partition(topic, 0): value})
        for message in messages:
            expected[message.partition or 0].append(int(message.value or b""))
    total = sum(len(numbers) for numbers in expected.values())
    found = by_partition(await all_of(broker, topic, total, 3))
    assert {n: values(found.get(n, [])) for n in expected} == expected
