"""Groups: members share the partition numbers of a topic."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from tests.contract.broker_kit import Another, MakeTopic, unique
from tests.contract.helpers import eventually
from worker.brokers.contract import Broker, Member
from worker.errors import MissingTopic
from worker.stream import Partition


async def settle(members: Sequence[Member], partitions: int) -> list[frozenset[int]]:
    """What each member has once every number has exactly one owner and nobody has none."""

    async def ask() -> list[frozenset[int]]:
        return [await member.assignment() for member in members]

    def fair(shares: list[frozenset[int]]) -> bool:
        owned = sorted(number for share in shares for number in share)
        sizes = [len(share) for share in shares]
        return owned == list(range(partitions)) and max(sizes) - min(sizes) <= 1

    return await eventually(ask, fair)


async def test_a_lone_member_has_everything(broker: Broker, make_topic: MakeTopic) -> None:
    member = await broker.join(unique("group"), await make_topic(5))
    assert await settle([member], 5) == [frozenset(range(5))]


async def test_members_share_and_the_last_one_gets_everything_back(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    group, topic = unique("group"), await make_topic(4)
    first = await broker.join(group, topic)
    await settle([first], 4)
    second = await (await another()).join(group, topic)
    shares = await settle([first, second], 4)
    assert [len(share) for share in shares] == [2, 2]
    await first.close()
    assert await settle([second], 4) == [frozenset(range(4))]


@pytest.mark.parametrize("kind", [pytest.param("kafka", marks=pytest.mark.kafka)])
async def test_another_program_in_a_group_is_no_member_of_ours(
    broker: Broker, make_topic: MakeTopic, kafka_address: str
) -> None:
    """Its offsets say nothing of what was read here, either."""
    topic, group = await make_topic(2), unique("group")
    ours = Partition(topic, 0)
    committer = await broker.committer(unique("name"), group)
    await committer.commit([], {ours: 3})
    address = kafka_address.removeprefix("kafka://")
    stranger = AIOKafkaConsumer(topic, bootstrap_servers=address, group_id=group)
    async with stranger:
        await stranger.commit({TopicPartition(topic, number): 9 for number in (1,)})
        (member,) = await broker.members(group)
        assert (member.ours, member.numbers) == (False, frozenset({0, 1}))
        assert await broker.committed(group, [ours, Partition(topic, 1)]) == {ours: 3}
        await stranger.commit({TopicPartition(*ours): 9})
        assert await broker.committed(group, [ours, Partition(topic, 1)]) == {}


async def test_three_members_share_contiguous_ranges(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    group, topic = unique("group"), await make_topic(7)
    connections = [broker, await another(), await another()]
    members = [await connection.join(group, topic) for connection in connections]
    shares = await settle(members, 7)
    assert sorted(len(share) for share in shares) == [2, 2, 3]
    assert all(max(share) - min(share) == len(share) - 1 for share in shares)


async def test_more_members_than_partitions(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    group, topic = unique("group"), await make_topic(1)
    members = [await connection.join(group, topic) for connection in (broker, await another())]
    assert sorted(len(share) for share in await settle(members, 1)) == [0, 1]


async def test_a_member_leaves_with_its_connection(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    group, topic = unique("group"), await make_topic(2)
    other = await another()
    first, second = await broker.join(group, topic), await other.join(group, topic)
    await settle([first, second], 2)
    await other.close()
    assert await settle([first], 2) == [frozenset({0, 1})]


async def test_groups_do_not_disturb_each_other(broker: Broker, make_topic: MakeTopic) -> None:
    topic = await make_topic(2)
    members = [await broker.join(unique("group"), topic) for _ in range(2)]
    for member in members:
        assert await settle([member], 2) == [frozenset({0, 1})]


async def test_anybody_can_ask_who_is_in_a_group(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    group, topic = unique("group"), await make_topic(5)
    looker = await another()
    assert await looker.members(group) == []
    connections = [await another(), await another()]
    members = [await connection.join(group, topic) for connection in connections]
    shares = await settle(members, 5)

    async def seen() -> list[frozenset[int]]:
        return sorted((m.numbers for m in await looker.members(group)), key=len)

    await eventually(seen, lambda found: found == sorted(shares, key=len))
    assert len({member.name for member in await looker.members(group)}) == 2
    assert await looker.members(unique("group")) == []
    await members[0].close()
    await settle(members[1:], 5)
    await eventually(seen, lambda found: found == [frozenset(range(5))])
    await connections[1].close()
    await eventually(seen, lambda found: found == [])


async def test_a_group_needs_a_topic(broker: Broker) -> None:
    with pytest.raises(MissingTopic):
        await broker.join(unique("group"), unique("topic"))
