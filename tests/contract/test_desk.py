"""The desk follows rejections and accepted rows of a real broker into its store."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from aiokafka import AIOKafkaProducer
from structlog.testing import capture_logs

from tests.contract.broker_kit import DeleteTopic, Expire, Truncate, unique
from tests.contract.desk_kit import NOW, PARTITIONS, Desk, new_desk
from tests.unit.rows_kit import uuid
from worker.brokers.contract import Broker
from worker.core.rejection import timestamp
from worker.core.topics import wanted
from worker.core.violations import Code
from worker.desk import queries, reading
from worker.desk.audit import ReplayAudit, encode_audit
from worker.desk.queries import Filter
from worker.errors import BrokerUnavailable, MissingTopic
from worker.stream import Partition, ProducerRecord


@pytest.fixture
async def desk(broker: Broker, tmp_path: Path) -> Desk:
    return await new_desk(broker, tmp_path)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "_BATCH", 3)


async def test_what_is_there_is_counted_once(desk: Desk) -> None:
    assert await desk.look() == (0, 0)
    for count in range(1, 4):
        await desk.publish(
            *(desk.rejection("users", uuid(n), Code.INVALID_ENUM, "role") for n in range(10))
        )
        assert await desk.look() == (10 * count, 10 * count)
    assert await desk.look() == (30, 30)
    assert desk.garbage == []


async def test_a_row_or_a_deletion_settles_what_was_rejected_before(desk: Desk) -> None:
    await desk.publish(*(desk.row("users", uuid(n)) for n in range(8)))
    await desk.publish(
        *(desk.rejection("users", uuid(n), Code.INVALID_ENUM, "role") for n in range(8))
    )
    await desk.publish(
        *(desk.row("users", uuid(n)) for n in range(4)),
        *(desk.row("users", uuid(n), None) for n in range(4, 6)),
    )
    assert await desk.look() == (8, 2), "rows of before settle nothing, whatever is read first"
    await desk.publish(desk.row("users", uuid(7)))
    assert await desk.look() == (8, 1)


async def test_a_cause_is_known_before_its_consequence(desk: Desk) -> None:
    for n in range(9):
        await desk.publish(
            desk.rejection("users", uuid(n), Code.INVALID_ENUM, "role"),
            desk.rejection(
                "matches",
                uuid(100 + n),
                Code.ORPHANED_USER_ID,
                "buddy_id",
                buddy_id=uuid(n).upper(),
            ),
            desk.rejection(
                "checkins",
                uuid(200 + n),
                Code.ORPHANED_MATCH_ID,
                "match_id",
                match_id=uuid(100 + n),
            ),
        )
    listed = await desk.look(lambda store: queries.listed(store, Filter(), 99, everything=True))
    source_of = {one.source: one for one in listed}
    for one in listed:
        if one.entity == "users":
            assert one.cause is None
        else:
            cause = source_of[one.cause]
            assert cause.entity == ("users" if one.entity == "matches" else "matches")
            assert int(one.source.rpartition("/")[2]) - int(cause.source.rpartition("/")[2]) == 1


async def test_what_is_no_rejection_is_named_once(desk: Desk) -> None:
    topic = desk.names.rejected("events")
    await desk.publish(ProducerRecord(topic, None, b"garbage", partition=1))
    assert await desk.look() == (0, 0)
    assert await desk.look() == (0, 0)
    assert desk.garbage == [(Partition(topic, 1), 0)]


async def test_rejections_that_their_topic_has_lost_leave_the_desk(
    desk: Desk, empty: Expire
) -> None:
    await desk.publish(
        *(desk.rejection("users", uuid(n), Code.INVALID_ENUM, "role") for n in range(20))
    )
    assert await desk.look() == (20, 20)
    await empty(Partition(desk.names.rejected("users"), 0))
    records, open_ = await desk.look()
    assert 0 < records == open_ < 20
    await empty(Partition(desk.names.rejected("users"), 1))
    assert await desk.look() == (0, 0)


async def test_rejections_that_are_removed_unread_are_told_once(desk: Desk, empty: Expire) -> None:
    place = Partition(desk.names.rejected("users"), 0)
    user = desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role")
    first, second, third = (msgspec.structs.replace(user, partition=0) for _ in range(3))
    await desk.publish(first)
    await empty(place)
    assert await desk.look() == (0, 0)
    assert desk.missed == [], "a new store has lost nothing"
    await desk.publish(second)
    assert await desk.look() == (1, 1)
    await empty(place)
    assert await desk.look() == (0, 0)
    assert desk.missed == [], "it was read"
    await desk.publish(third)
    await empty(place)
    assert await desk.look() == (0, 0)
    (line,) = desk.missed
    assert line.startswith(f"1 messages of {place.topic}/0 were removed before they were read")
    assert await desk.look() == (0, 0)
    assert len(desk.missed) == 1, "once"


@pytest.mark.parametrize("is_new", [False, True])
async def test_rejections_that_are_removed_during_a_reading_are_told(
    desk: Desk, empty: Expire, monkeypatch: pytest.MonkeyPatch, *, is_new: bool
) -> None:
    """But not to a new store: an earlier one may have read them."""
    place = Partition(desk.names.rejected("users"), 0)
    user = desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role")
    if not is_new:
        assert await desk.look() == (0, 0)
    await desk.publish(*(msgspec.structs.replace(user, partition=0) for _ in range(3)))
    run = reading.CatchUp.run

    async def late(self: reading.CatchUp) -> None:
        await empty(place)
        await run(self)

    monkeypatch.setattr(reading.CatchUp, "run", late)
    for _ in range(2):
        assert await desk.look() == (0, 0)
        said = f"3 messages of {place.topic}/0 were removed before they were read"
        assert [line.split(":")[0] for line in desk.missed] == ([] if is_new else [said]), "once"


@pytest.mark.parametrize("kind", ["embedded"])  # what it finds does not depend on the broker
async def test_rejections_that_are_gone_from_the_end_are_told(
    desk: Desk, truncate: Truncate
) -> None:
    for n in range(4):
        await desk.publish(desk.rejection("users", uuid(n), Code.INVALID_ENUM, "role"))
    place = Partition(desk.names.rejected("users"), 0)
    end = (await desk.broker.spans([place]))[place].end
    assert end > 1
    assert await desk.look() == (4, 4)
    await truncate(place, 1)
    assert await desk.look() == (5 - end, 5 - end)
    (line,) = desk.missed
    assert line.startswith(f"{place.topic}/0 has lost its last {end - 1} messages, which had been")


async def test_a_topic_created_anew_empties_the_desk(desk: Desk, remove: DeleteTopic) -> None:
    await desk.publish(desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role"))
    await desk.publish(desk.rejection("events", uuid(1), Code.WRONG_TYPE, "event_date"))
    assert await desk.look() == (2, 2)
    topic = desk.names.rejected("users")
    await remove(topic)
    with pytest.raises(MissingTopic, match=f"topic {topic} is missing"):
        await desk.look()
    await desk.broker.create([wanted(desk.names, PARTITIONS, 1024 * 1024)[topic]])
    await desk.publish(
        *(desk.rejection("users", uuid(n), Code.WRONG_TYPE, "role") for n in range(5))
    )
    with capture_logs() as logs:
        assert await desk.look() == (6, 6)
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("desk_rebuilt", f"topic {topic} was created anew")
    ]
    (line,) = desk.missed
    assert line.startswith(f"topic {topic} was created anew: its rejections are gone; have")
    desk.missed.clear()
    await remove(desk.names.replays)
    await desk.broker.create([wanted(desk.names, PARTITIONS, 1024 * 1024)[desk.names.replays]])
    assert await desk.look() == (6, 6)
    (line,) = desk.missed
    assert line.startswith(f"topic {desk.names.replays} was created anew: what earlier replays")


def audit(desk: Desk, rejection: str, key: str) -> ProducerRecord:
    said = ReplayAudit(
        replay="r", at=timestamp(NOW), by="me", entity="users", key=key,
        rejection=rejection, origin=f"{desk.names.input('users')}/0/1", replays=1,
    )  # fmt: skip
    replay, value = encode_audit(said)
    return ProducerRecord(desk.names.replays, replay, value)


async def test_an_audit_settles_what_was_sent_again_and_a_lost_one_is_told(
    desk: Desk, empty: Expire
) -> None:
    topic = desk.names.rejected("users")
    rejections = [desk.rejection("users", uuid(n), Code.INVALID_ENUM, "role") for n in range(3)]
    written = await desk.broker.publish(rejections)
    audits = [
        audit(desk, f"{topic}/{number}/{offset}", uuid(n))
        for n, (number, offset) in enumerate(written)
    ]
    await desk.publish(audits[0])
    assert await desk.look() == (3, 2)
    assert desk.missed == []
    await desk.publish(audits[1])
    await empty(Partition(desk.names.replays, 0))
    assert await desk.look() == (3, 2)
    (line,) = desk.missed
    assert line.startswith(f"1 audits of {desk.names.replays} were removed before they were read")
    assert await desk.look() == (3, 2)
    assert len(desk.missed) == 1
    new = Desk(desk.broker, desk.names, desk.directory / "new")
    assert await new.look() == (3, 3)
    (line,) = new.missed
    assert line.endswith("unless they had expired, what they name counts as not sent again")
    assert await new.look() == (3, 3)
    assert len(new.missed) == 1, "once"
    assert len(desk.missed) == 1


@pytest.mark.parametrize("kind", [pytest.param("kafka", marks=pytest.mark.kafka)])
async def test_what_lies_behind_an_open_transaction_is_told_or_waited_for(
    desk: Desk, kafka_address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer row may be in one, so whoever sends records again waits."""
    monkeypatch.setattr(reading, "_PATIENCE", 1.0)
    await desk.publish(desk.rejection("users", uuid(1), Code.INVALID_ENUM, "role"))
    address = kafka_address.removeprefix("kafka://")
    async with AIOKafkaProducer(
        bootstrap_servers=address, transactional_id=unique("writer")
    ) as writer:
        await writer.begin_transaction()
        for number in range(PARTITIONS):
            await writer.send_and_wait(desk.names.accepted("users"), b"{}", b"k", partition=number)
        await desk.publish(desk.row("users", uuid(1)))
        assert await desk.look() == (1, 1)
        assert any("are behind an open transaction and not counted" in one for one in desk.missed)
        with pytest.raises(BrokerUnavailable, match="a transaction may be open there"):
            await desk.look(whole=True)
        await writer.abort_transaction()
    desk.missed.clear()
    assert await desk.look(whole=True) == (1, 0)
    assert desk.missed == []
