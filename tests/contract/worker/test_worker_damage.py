"""A worker whose embedded log is damaged: it says so, works on elsewhere, and goes on when told."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from tests.contract.helpers import (
    damage_embedded,
    damage_embedded_entry,
    delete_embedded_topic,
)
from tests.contract.worker_kit import Stage
from tests.unit.rows_kit import milestone, user
from worker.brokers.contract import Broker
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.topics import wanted
from worker.stream import Partition, ProducerRecord

TASKS = 2
_LOSSES = {"internal_skipped", "parked_lost", "progress_lost", "accepted_skipped"}


@pytest.fixture
def kind() -> str:
    return "embedded"


async def test_a_damaged_input_is_told_and_skipped_when_somebody_says_so(
    stage: Stage, broker: Broker
) -> None:
    assert isinstance(broker, EmbeddedBroker)
    place = Partition(stage.names.input("milestones"), 1)
    users = await stage.send("users", *(user(n) for n in range(1, 6)))
    lost = await stage.send("milestones", milestone(1, 1), milestone(2, 2), partition=1)
    behind = await stage.send("milestones", milestone(3, 3), partition=1)
    beside = await stage.send("milestones", milestone(4, 4), partition=0)
    await damage_embedded(broker, place)
    with capture_logs() as logs:
        running = await stage.started()
        await stage.judged([*users, *beside])
        stage.clock.put_forward(5_001)
        await stage.until(
            lambda: running.counted("buddy_log_damaged_places") == 1, "the damage is told"
        )
        (reason,) = running.health.reasons(stage.clock.steady())
        assert f"{place.topic}/1 is damaged from offset 0 up to 2" in reason
        assert stage.verdicts([*lost, *behind]) == {"none": 3}

        await broker.inspection.skip(await broker.inspection.find(place, None))
        await stage.judged(behind)
        stage.clock.put_forward(5_001)
        await stage.until(lambda: running.counted("buddy_log_damaged_places") == 0, "it is over")
    events = [entry["event"] for entry in logs]
    assert events.count("log_damaged") == 1
    assert [entry["count"] for entry in logs if entry["event"] == "input_skipped"] == [2]
    assert running.counted("buddy_input_skipped_records_total", entity="milestones") == 2
    for gone in lost:
        del stage.outcomes[gone]
    await stage.books_balance()


@pytest.mark.parametrize("second", [1, 2])
async def test_each_damaged_place_of_an_input_is_logged_and_in_the_books(
    stage: Stage, broker: Broker, second: int
) -> None:
    assert isinstance(broker, EmbeddedBroker)
    place = Partition(stage.names.input("milestones"), 1)
    users = await stage.send("users", *(user(n) for n in range(1, 5)))
    sent = [await stage.send("milestones", milestone(n, n), partition=1) for n in range(1, 5)]
    for base in (0, second):
        await damage_embedded(broker, place, base)
        [lost] = sent[base]
        del stage.outcomes[lost]
    with capture_logs() as logs:
        running = await stage.started()
        await stage.judged(users)
        incidents = running.tasks[1].task.books.incidents
        await stage.until(lambda: incidents["log_damaged"] == 1, "the first counts")
        await broker.inspection.skip(await broker.inspection.find(place, 0))
        await stage.until(lambda: incidents["log_damaged"] == 2, "the second counts")
        await broker.inspection.skip(await broker.inspection.find(place, second))
        await stage.judged()
    assert [e["offset"] for e in logs if e["event"] == "log_damaged"] == [0, second]
    assert incidents["log_damaged"] == 2
    await stage.books_balance()


@pytest.mark.parametrize("topic", ["in.feedback", "rejected.feedback", "internal.granted"])
async def test_a_damaged_entry_of_a_partition_holds_up_that_alone(
    stage: Stage, broker: Broker, topic: str
) -> None:
    assert isinstance(broker, EmbeddedBroker)
    running = await stage.started()
    await stage.judged(await stage.send("users", user(1), user(2)))
    place = Partition(f"{stage.names.prefix}.{topic}", 0)
    await damage_embedded_entry(broker, place)
    damage = await broker.inspection.find(place, None)
    await broker.inspection.record([damage])
    for number in range(3):
        stage.clock.put_forward(5_001)
        await stage.judged(await stage.send("milestones", milestone(1 + number, 1)))
    await stage.until(
        lambda: running.counted("buddy_log_damaged_places") == 1, "the damage is told"
    )
    await broker.inspection.skip(damage)
    stage.clock.put_forward(5_001)
    await stage.until(lambda: running.counted("buddy_log_damaged_places") == 0, "it is over")
    assert not await broker.damage()
    await stage.judged(await stage.send("users", user(3)))
    await stage.books_balance()


@pytest.mark.parametrize("topic", ["in.users", "in.matches"])
async def test_an_orphan_waits_while_the_entry_of_what_it_may_wait_for_is_damaged(
    stage: Stage, broker: Broker, topic: str
) -> None:
    assert isinstance(broker, EmbeddedBroker)
    running = await stage.started(grace=1_000)
    await stage.judged(await stage.send("users", user(1), partition=0))
    place = Partition(f"{stage.names.prefix}.{topic}", 1)
    await damage_embedded_entry(broker, place)
    damage = await broker.inspection.find(place, None)
    await broker.inspection.record([damage])
    orphan = await stage.send("milestones", milestone(1, 9), partition=0)
    await stage.until(lambda: running.parked() == 1, "it is parked")
    for number in range(2, 5):
        stage.clock.put_forward(2_000)
        await stage.judged(await stage.send("users", user(number), partition=0))
    assert stage.verdicts(orphan) == {"none": 1}
    await broker.inspection.skip(damage)
    await stage.judged(orphan)
    assert stage.verdicts(orphan) == {"rejected orphaned_user_id": 1}
    await stage.books_balance()


async def test_a_damaged_entry_of_what_the_index_follows_is_waited_out(
    stage: Stage, broker: Broker
) -> None:
    """Users whose address is contested need the index, so the worker waits for the skip."""
    assert isinstance(broker, EmbeddedBroker)
    running = await stage.started()
    await stage.judged(await stage.send("users", *(user(n) for n in range(1, 5))))
    place = Partition(stage.names.accepted("users"), 1)
    await damage_embedded_entry(broker, place)
    again = [user(10 + n, email=f"u{n}@example.com") for n in range(1, 5)]
    late = await stage.send("users", *again)
    await stage.until(
        lambda: any("users/1 is damaged" in r for r in running.health.reasons(0)), "it is told"
    )
    assert not running.run.done()
    await broker.inspection.skip(await broker.inspection.find(place, None))
    await stage.judged(late)
    await stage.books_balance()


@pytest.mark.parametrize("topic", ["internal.progress", "accepted.users"])
async def test_an_entry_that_is_damaged_at_the_start_is_waited_out(
    stage: Stage, broker: Broker, topic: str
) -> None:
    assert isinstance(broker, EmbeddedBroker)
    place = Partition(f"{stage.names.prefix}.{topic}", 1)
    await damage_embedded_entry(broker, place)
    running = await stage.start()
    await stage.until(
        lambda: any("/1 is damaged" in r for r in running.health.reasons(0)), "it is told"
    )
    assert not running.run.done()
    await broker.inspection.skip(await broker.inspection.find(place, None))
    await stage.until(lambda: running.runs(range(TASKS)), "it works")
    await stage.judged(await stage.send("users", user(1), user(2)))
    await stage.books_balance()


async def test_a_take_over_that_cannot_be_written_is_told(stage: Stage, broker: Broker) -> None:
    assert isinstance(broker, EmbeddedBroker)
    place = Partition(stage.names.owners, 1)
    await damage_embedded_entry(broker, place)
    with capture_logs() as logs:
        running = await stage.start()
        await stage.until(
            lambda: any("owners/1 is damaged" in r for r in running.health.reasons(0)),
            "it is told",
        )
    told = [entry for entry in logs if entry["event"] == "task_not_started"]
    assert {entry["task"] for entry in told} == {0, 1}
    assert all("owners/1 is damaged" in entry["error"] for entry in told)
    await broker.inspection.skip(await broker.inspection.find(place, None))
    await stage.until(lambda: running.runs(range(TASKS)), "they start")


async def test_a_hole_in_what_the_index_follows_is_told_and_counted(
    stage: Stage, broker: Broker
) -> None:
    assert isinstance(broker, EmbeddedBroker)
    running = await stage.started()
    await stage.judged(await stage.send("users", user(1), partition=0))
    await stage.end(running)
    place = Partition(stage.names.accepted("users"), 0)
    await damage_embedded(broker, place)
    damage = await broker.inspection.find(place, 0)
    await broker.inspection.skip(damage)
    with capture_logs() as logs:
        running = await stage.started("anew")
        await stage.until(
            lambda: running.counted("buddy_accepted_skipped_messages_total") > 0, "it is counted"
        )
    assert "accepted_skipped" in {entry["event"] for entry in logs}
    (reason,) = running.health.reasons(stage.clock.steady())
    assert f"damaged offsets of {place.topic}/0 were skipped" in reason


async def test_skipped_rejections_are_told_though_no_service_reads_them(
    stage: Stage, broker: Broker
) -> None:
    assert isinstance(broker, EmbeddedBroker)
    place = Partition(stage.names.rejected("users"), 1)
    running = await stage.started()
    await broker.publish([ProducerRecord(place.topic, b"k", b"{}", partition=1)])
    await damage_embedded(broker, place)
    await broker.inspection.skip(await broker.inspection.find(place, 0))
    stage.clock.put_forward(5_001)
    await stage.until(
        lambda: running.counted("buddy_log_skipped_offsets_total") == 1, "it is counted"
    )
    (reason,) = running.health.reasons(stage.clock.steady())
    assert f"1 damaged offsets of {place.topic}/1 were skipped" in reason


@pytest.mark.parametrize("topic", ["parked", "progress"])
async def test_a_hole_in_an_internal_topic_is_told_once(
    stage: Stage, broker: Broker, topic: str
) -> None:
    assert isinstance(broker, EmbeddedBroker)
    running = await stage.started(grace=3_600_000, persist_after=0)
    await stage.send("milestones", milestone(1, 1), milestone(2, 2), partition=0)
    await stage.until(lambda: running.parked() == 2, "both are parked")
    await stage.end(running)
    place = Partition(f"{stage.names.prefix}.internal.{topic}", 0)
    await damage_embedded(broker, place)
    await broker.inspection.skip(await broker.inspection.find(place, 0))
    lost = {"parked": {"parked_lost"}, "progress": set[str]()}  # later progress says it all
    assert await _told_by_the_next(stage) == {"internal_skipped", *lost[topic]}
    assert await _told_by_the_next(stage) == set()


@pytest.mark.parametrize("topic", ["parked", "progress"])
async def test_what_is_skipped_under_running_tasks_is_written_again(
    stage: Stage, broker: Broker, topic: str
) -> None:
    assert isinstance(broker, EmbeddedBroker)
    running = await stage.started(grace=3_600_000, persist_after=0)
    parked = await stage.send("milestones", milestone(1, 1), milestone(2, 2), partition=0)
    await stage.until(lambda: running.parked() == 2, "both are parked")
    place = Partition(f"{stage.names.prefix}.internal.{topic}", 0)
    with capture_logs() as logs:
        await damage_embedded(broker, place)
        await broker.inspection.skip(await broker.inspection.find(place, 0))
        stage.clock.put_forward(5_001)
        await stage.until(
            lambda: any(e["event"] == "internal_skipped" for e in logs), "it has noticed"
        )
        (reason,) = running.health.reasons(stage.clock.steady())
        assert "what running tasks know is written there again" in reason
        await stage.end(running)
        running = await stage.started("two", grace=3_600_000)
        await stage.until(lambda: running.parked() == 2, "nothing is lost")
        await stage.send("users", user(1), user(2))
        await stage.judged()
    assert stage.verdicts(parked) == {"accepted": 2}
    told = [(e["event"], e.get("topic")) for e in logs if e["event"] in _LOSSES]
    assert told == [("internal_skipped", place.topic)], "once"
    await stage.books_balance()


async def test_a_hole_among_the_owners_is_told_once(stage: Stage, broker: Broker) -> None:
    """Whoever was named there is not fenced."""
    assert isinstance(broker, EmbeddedBroker)
    await stage.end(await stage.started())
    place = Partition(stage.names.owners, 0)
    await damage_embedded(broker, place)
    await broker.inspection.skip(await broker.inspection.find(place, 0))
    with capture_logs() as logs:
        for number in (1, 2):
            running = await stage.started(f"worker {number}")
            await stage.judged(await stage.send("users", user(number), partition=0))
            reasons = " ".join(running.health.reasons(stage.clock.steady()))
            assert ("a worker that was frozen before that is not fenced" in reasons) == (
                number == 1
            )
            await stage.end(running)
    told = [e["topic"] for e in logs if e["event"] == "internal_skipped"]
    assert told == [place.topic]


async def test_a_hole_in_a_topic_created_anew_is_another(stage: Stage, broker: Broker) -> None:
    assert isinstance(broker, EmbeddedBroker)
    place = Partition(stage.names.parked, 0)
    for number in (1, 2):
        await _park_one(stage, number)
        await damage_embedded(broker, place)
        await broker.inspection.skip(await broker.inspection.find(place, 0))
        assert await _told_by_the_next(stage) == {"internal_skipped", "parked_lost"}
        await delete_embedded_topic(broker, place.topic)
        await broker.create([wanted(stage.names, TASKS, 1024 * 1024)[place.topic]])


async def _park_one(stage: Stage, number: int) -> None:
    """A worker of that number parks a record, with a copy in the log, and ends."""
    running = await stage.started(f"worker {number}", grace=3_600_000, persist_after=0)
    await stage.send("milestones", milestone(number, number), partition=0)
    await stage.until(lambda: running.parked() == 1, "it is parked")
    await stage.end(running)


async def _told_by_the_next(stage: Stage) -> set[str]:
    """What of its state a worker says is lost, until each of its tasks has committed."""
    with capture_logs() as logs:
        running = await stage.started("anew", grace=3_600_000)
        await stage.until(
            lambda: running.counted("buddy_transactions_total", outcome="committed") >= TASKS,
            "every task has said where it is",
        )
        await stage.end(running)
    return {entry["event"] for entry in logs} & _LOSSES
