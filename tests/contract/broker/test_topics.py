"""Topics and what is said about them: create, topics, spans."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract.broker_kit import Another, DeleteTopic, MakeTopic, unique
from tests.contract.helpers import eventually, numbered
from worker.brokers.contract import Broker
from worker.core.topics import Names, wanted
from worker.engine.startup import check_topics, create_topics
from worker.errors import BrokerUnavailable, ConfigurationError, MissingTopic
from worker.stream import OffsetRange, Partition, Topic

DAY = 24 * 3600 * 1000


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"append_time": False},
        {"retention_ms": 7 * DAY},
        {"compacted": True, "delete_retention_ms": 3 * DAY},
        {"compacted": True, "retention_ms": 30 * DAY},
        {"max_message_bytes": 1_500_000},
    ],
)
async def test_a_topic_has_the_settings_it_was_created_with(
    broker: Broker, another: Another, settings: dict[str, Any]
) -> None:
    topic = Topic(unique("topic"), 3, **settings)
    assert await broker.create([topic]) == [topic.name]
    other = await another()
    found = await eventually(lambda: other.topics([topic.name]), bool)
    assert found == {topic.name: topic}


async def test_only_missing_topics_are_created_and_others_stay_as_they_are(
    broker: Broker, make_topic: MakeTopic
) -> None:
    present, absent = await make_topic(2), unique("topic")
    assert await broker.create([Topic(present, 5), Topic(absent, 1)]) == [absent]
    assert (await broker.topics([present]))[present].partitions == 2


async def test_a_topic_that_does_not_exist_is_left_out(
    broker: Broker, make_topic: MakeTopic
) -> None:
    present = await make_topic()
    assert (await broker.topics([present, unique("topic")])).keys() == {present}


async def test_a_new_partition_holds_nothing(broker: Broker, make_topic: MakeTopic) -> None:
    partition = Partition(await make_topic(), 0)
    assert await broker.spans([partition]) == {partition: OffsetRange(0, 0)}


@pytest.mark.parametrize("uncommitted", [False, True])
async def test_the_end_is_the_offset_that_comes_next(
    broker: Broker, make_topic: MakeTopic, uncommitted: bool
) -> None:
    topic = await make_topic(2)
    first, second = Partition(topic, 0), Partition(topic, 1)
    await broker.publish(numbered(topic, range(3), 1))
    spans = await eventually(
        lambda: broker.spans([first, second], uncommitted=uncommitted),
        lambda spans: spans[second].end > 0,
    )
    assert spans == {first: OffsetRange(0, 0), second: OffsetRange(0, 3)}


async def test_a_missing_topic_or_partition_has_no_span(
    broker: Broker, make_topic: MakeTopic
) -> None:
    with pytest.raises(MissingTopic):
        await broker.spans([Partition(unique("topic"), 0)])
    with pytest.raises(MissingTopic):
        await broker.spans([Partition(await make_topic(2), 2)])


async def test_a_topic_keeps_its_identity_for_everybody(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    one, two = await make_topic(), await make_topic(3)
    identities = await broker.identities([one, two, unique("topic")])
    assert identities.keys() == {one, two}
    assert identities[one] != identities[two]
    assert all(identity.isascii() and 0 < len(identity) <= 64 for identity in identities.values())
    await broker.publish(numbered(one, range(3)))
    assert await (await another()).identities([two, one]) == identities
    assert await broker.identities([]) == {}


@pytest.mark.parametrize("partitions", [1, 2])
async def test_a_topic_made_anew_has_another_identity(
    broker: Broker, make_topic: MakeTopic, remove: DeleteTopic, partitions: int
) -> None:
    topic = await make_topic()
    before = await broker.identities([topic])
    await remove(topic)
    assert await broker.identities([topic]) == {}
    await broker.create([Topic(topic, partitions)])
    assert (await broker.identities([topic]))[topic] != before[topic]


async def test_topics_that_are_missing_get_as_many_partitions_as_the_inputs_have(
    broker: Broker,
) -> None:
    names = Names(unique("prefix"))
    limit = Topic("any", 1).max_message_bytes
    await broker.create([wanted(names, 3, limit)[names.input("checkins")]])
    with pytest.raises(ConfigurationError, match="has 3 partitions, not 5"):
        await create_topics(broker, names, limit, 4, 5)
    assert len(await broker.topics(names.every())) == 1, "nothing was changed"
    created, count = await create_topics(broker, names, limit, 4)
    assert (len(created), count) == (len(list(names.every())) - 1, 3)
    assert await check_topics(broker, names, limit) == 3


@pytest.mark.parametrize("partitions", [1, 3])
async def test_connections_go_on_by_name_in_a_topic_made_anew(
    broker: Broker,
    another: Another,
    make_topic: MakeTopic,
    remove: DeleteTopic,
    partitions: int,
) -> None:
    """Those that were open before: the messages go to where the topic has its partitions now."""
    topic = await make_topic(2)
    other = await another()
    await other.publish(numbered(topic, range(3)))
    await remove(topic)
    await broker.create([Topic(topic, partitions)])
    last = Partition(topic, partitions - 1)

    async def published() -> list[tuple[int, int]]:
        try:
            return await other.publish(numbered(topic, [7], last.number))
        except (MissingTopic, BrokerUnavailable):  # Kafka's clients look from time to time
            return []

    assert await eventually(published, bool) == [(last.number, 0)]
    spans = await eventually(lambda: other.spans([last]), lambda spans: spans[last].end == 1)
    assert spans == {last: OffsetRange(0, 1)}
