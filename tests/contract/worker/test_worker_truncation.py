"""Topics that lose their last messages, as after a loss of power.

Of inputs nothing is judged twice; what other topics have lost is told.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Another, Truncate
from tests.contract.worker_kit import Row, Running, Stage, two
from tests.kafka_server import KafkaServer
from tests.proofs.simulation.broker.connection import MemoryBroker
from tests.unit.rows_kit import match, milestone, user
from worker.brokers.partitioner import partition_for
from worker.engine.reprocess import reprocess
from worker.errors import BrokerUnavailable, NobodyWorks
from worker.stream import Partition

pytestmark = pytest.mark.timeout(400)

TASKS = 2


@pytest.fixture
def kafka_address(kafka_server: KafkaServer) -> str:
    return kafka_server.address


async def send(stage: Stage, entity: str, *rows: Row, partition: int = 0) -> list[str]:
    """Send one batch, also to a broker that is just coming back.

    Of a coordinate that was used before, the earlier outcomes are kept, followed by "truncated".
    """
    before = {place: list(outcomes) for place, outcomes in stage.outcomes.items()}
    places: list[str] = []

    async def sent() -> bool:
        try:
            places.extend(await stage.send(entity, *rows, partition=partition))
        except BrokerUnavailable:
            return False
        return True

    await stage.until_asked(sent, lambda: "the broker takes a record")
    for place in places:
        stage.outcomes[place] = [*before[place], "truncated"] if place in before else []
    return places


async def judged(stage: Stage, places: list[str]) -> None:
    """Until each of these records has an outcome after the truncation."""

    async def there() -> bool:
        try:
            await stage.look()
        except BrokerUnavailable:
            return False
        return all(stage.outcomes[place][-1:] not in ([], ["truncated"]) for place in places)

    await stage.until_asked(there, lambda: f"outcomes: {[stage.outcomes[p] for p in places]}")


def told(logs: list[MutableMapping[str, Any]]) -> list[tuple[str, int, int]]:
    return [
        (e["topic"], e["partition"], e["count"]) for e in logs if e["event"] == "input_truncated"
    ]


def assert_told(stage: Stage, running: Running, place: Partition, count: int) -> None:
    assert running.counted("buddy_input_truncated_records_total", entity="users") == count
    reasons = running.health.reasons(stage.clock.steady())
    assert any(f"{place.topic}/0 has lost its last records: {count} " in r for r in reasons)
    task = running.tasks[0].task
    assert task.books.incidents["input_truncated"] == count
    assert "unreadable_internal" not in task.books.incidents


@pytest.mark.parametrize("records", [2, 5], ids=["shorter", "longer"])
async def test_an_input_that_has_grown_again_while_no_worker_looked(
    stage: Stage, truncate: Truncate, records: int
) -> None:
    place = Partition(stage.names.input("users"), 0)
    worker = await stage.started(grace=0)
    first = [p for n in range(4) for p in await send(stage, "users", user(n))]
    await judged(stage, first)
    await stage.end(worker)
    await truncate(place, 2)
    fresh = await send(stage, "users", *(user(10 + n) for n in range(records)))
    with capture_logs() as logs:
        worker = await stage.started("two", grace=0)
        await judged(stage, fresh)
        await stage.end(worker)
        await stage.end(await stage.started("three", grace=0))
    assert told(logs) == [(place.topic, 0, 2)], "once"
    await stage.look(0.5)
    assert [stage.outcomes[p] for p in first[:2]] == [["accepted"]] * 2
    assert [stage.outcomes[p] for p in first[2:]] == [["accepted", "truncated", "accepted"]] * 2
    assert {tuple(stage.outcomes[p]) for p in {*fresh} - {*first}} <= {("accepted",)}


@pytest.mark.parametrize("running", [False, True], ids=["while it is away", "under a worker"])
async def test_what_is_left_is_judged_once_and_what_is_new_too(
    stage: Stage, truncate: Truncate, *, running: bool
) -> None:
    place = Partition(stage.names.input("users"), 0)
    worker = await stage.started(grace=0)
    first = [p for n in range(4) for p in await send(stage, "users", user(2 * n), user(2 * n + 1))]
    (waits,) = await send(stage, "milestones", milestone(1, 0), partition=1)
    await judged(stage, [*first, waits])
    with capture_logs() as logs:
        if not running:
            await stage.end(worker)
        await truncate(place, 4)
        if running:
            await stage.until(lambda: bool(told(logs)), "it is told")
        # Without a worker there are new records in the place of old ones before one looks.
        fresh = await send(stage, "users", user(20), user(21))
        if not running:
            worker = await stage.started("two", grace=0)
        await judged(stage, fresh)
        more = await send(stage, "users", *(user(n) for n in range(22, 27)))
        # Frontiers pass, and none relies on what was judged of the records that are gone.
        orphan, known = await send(
            stage, "milestones", milestone(2, 900), milestone(3, 25), partition=1
        )
        await judged(stage, [*more, orphan, known])
    assert told(logs) == [(place.topic, 0, 4)]
    assert not [e for e in logs if e["event"] in {"input_recreated", "unreadable_internal"}]
    assert_told(stage, worker, place, 4)
    await stage.end(worker)
    await stage.look(0.5)
    reused = {*fresh, *more} & {*first}
    assert {len(stage.outcomes[p]) for p in {*first} - reused} == {1}
    assert [stage.outcomes[p] for p in sorted(reused)] == [
        ["accepted", "truncated", "accepted"]
    ] * 4
    assert [stage.outcomes[p] for p in (*more[-3:], known)] == [["accepted"]] * 4
    assert stage.outcomes[orphan] == ["rejected orphaned_user_id"]
    assert len(await stage.rows("users")) == 8 + 7


@pytest.mark.parametrize("kind", ["embedded"])  # the rule does not depend on the broker
async def test_reprocess_leaves_a_truncation_to_a_worker(
    stage: Stage, truncate: Truncate, another: Another
) -> None:
    first = await send(stage, "users", user(1), user(2))
    first += await send(stage, "users", user(3), user(4))
    worker = await stage.started(grace=0)
    await judged(stage, first)
    await stage.end(worker)
    await truncate(Partition(stage.names.input("users"), 0), 2)
    with pytest.raises(NobodyWorks, match=r"in\.users/0 ends at 2 and was read up to 4"):
        await reprocess(await another(), stage.names, "users", {0: 1})
    await stage.started("two", grace=0)
    assert await reprocess(await another(), stage.names, "users", {0: 1}) == {0: 1}
    (fresh,) = await send(stage, "users", user(9))
    await judged(stage, [fresh])
    assert [stage.outcomes[place] for place in first] == [
        ["accepted"],
        ["accepted"] * 2,
        ["accepted", "truncated", "accepted"],
        ["accepted"],
    ]


async def test_a_frontier_of_another_worker_does_not_wait_for_lost_records(
    stage: Stage, truncate: Truncate
) -> None:
    one, other = await two(stage, grace=0)
    (owner,) = [w for w in (one, other) if 0 in w.tasks]
    (waiter,) = [w for w in (one, other) if 1 in w.tasks]
    place = Partition(stage.names.input("users"), 0)
    first = await send(stage, "users", user(1), user(2))
    first += await send(stage, "users", user(3), user(4))
    await judged(stage, first)
    owner.held.add("users")
    reading = owner.loop._reading
    await stage.until(lambda: owner.loop._reading not in {None, reading}, "it reads no users")
    await send(stage, "users", user(5), user(6))  # is lost unread
    (orphan,) = await send(stage, "milestones", milestone(1, 900), partition=1)
    await stage.until(lambda: place in waiter.blocked_by(), "the frontier waits for them")
    with capture_logs() as logs:
        await truncate(place, 2)
        owner.held.clear()
        await judged(stage, [orphan])
    assert told(logs) == [(place.topic, 0, 2)]
    assert stage.outcomes[orphan] == ["rejected orphaned_user_id"]
    assert [stage.outcomes[place] for place in first[:2]] == [["accepted"]] * 2


@pytest.mark.parametrize("which", ["parked", "progress", "accepted"])
async def test_what_other_topics_have_lost_is_told(
    stage: Stage, truncate: Truncate, which: str
) -> None:
    names = stage.names
    place = {
        "parked": Partition(names.parked, 0),
        "progress": Partition(names.progress, 0),
        "accepted": Partition(names.accepted("users"), partition_for(user(9)[0] or b"", TASKS)),
    }[which]
    options: dict[str, Any] = {"grace": 3_600_000, "persist_after": 0}
    worker = await stage.started(**options)
    waiting = await send(stage, "matches", *(match(10 + n, 1, 2) for n in range(8)))
    await stage.until(lambda: worker.parked() == 8, "all are parked")
    await stage.end(worker)  # the group's offsets are saved as well
    end = (await stage.broker.spans([place]))[place].end
    worker = await stage.started("two", **options)
    await judged(stage, [*await send(stage, "users", user(1), user(2), user(9)), *waiting])
    await stage.end(worker)
    await truncate(place, end)
    with capture_logs() as logs:
        worker = await stage.started("two", **options)
        event = "accepted_truncated" if which == "accepted" else "internal_truncated"
        await stage.until(lambda: any(entry["event"] == event for entry in logs), "it is told")
        (said,) = [entry for entry in logs if entry["event"] == event]
        await stage.until(
            lambda: any(event in t.task.books.incidents for t in worker.tasks.values()), "in books"
        )
    assert (said["topic"], said["partition"]) == (place.topic, place.number)
    if which == "parked":
        assert said["count"] == 8
    reasons = " ".join(worker.health.reasons(stage.clock.steady()))
    assert f"{place.topic}/{place.number} has lost its last" in reasons
    metric = {"accepted": "buddy_accepted_truncated_messages_total"}.get(
        which, "buddy_internal_truncated_total"
    )
    assert worker.counted(metric) > 0
    await stage.end(worker)
    with capture_logs() as logs:
        await stage.end(await stage.started("two", **options))
    assert not [entry for entry in logs if entry["event"] == event], "once"


# On Kafka the broker has to be restarted, which may be an outage: then the copies are lost.
@pytest.mark.parametrize("kind", ["memory", "embedded"])
async def test_copies_that_the_log_loses_under_a_worker_are_written_again(
    stage: Stage, truncate: Truncate
) -> None:
    place = Partition(stage.names.parked, 0)
    options: dict[str, Any] = {"grace": 3_600_000, "persist_after": 0}
    worker = await stage.started(**options)
    waiting = await send(stage, "matches", *(match(10 + n, 1, 2) for n in range(8)))
    await stage.until(lambda: worker.parked() == 8, "all are parked")
    handle = worker.tasks[0]
    await stage.until(lambda: place in handle.written, "the copies are committed")
    with capture_logs() as logs:
        await truncate(place, 0)
        await stage.until(
            lambda: any(entry["event"] == "internal_truncated" for entry in logs), "it is told"
        )
        await stage.until(lambda: place in handle.written, "the copies are written again")
    assert [(e["topic"], e["partition"]) for e in logs if e["event"] == "internal_truncated"] == [
        (place.topic, 0)
    ]
    assert handle.task.books.incidents["internal_truncated"] == 1
    assert worker.counted("buddy_internal_truncated_total") == 1
    reasons = " ".join(worker.health.reasons(stage.clock.steady()))
    assert f"{place.topic}/0 has lost its last messages: what running tasks know is" in reasons
    await stage.end(worker)  # what has a copy is not written at the end
    with capture_logs() as logs:
        worker = await stage.started("two", **options)
        await judged(stage, [*await send(stage, "users", user(1), user(2)), *waiting])
    assert not [e for e in logs if e["event"] in {"parked_lost", "internal_truncated"}]
    await stage.look(0.5)
    assert [stage.outcomes[p] for p in waiting] == [["accepted"]] * 8
    await stage.end(worker)


@pytest.mark.parametrize("kind", ["memory"])  # which lets go of the group's offsets
async def test_checkpoints_that_are_lost_with_the_groups_offsets_are_told(
    stage: Stage, truncate: Truncate
) -> None:
    place = Partition(stage.names.progress, 0)
    worker = await stage.started(grace=0)
    await judged(stage, await send(stage, "users", user(1)))
    await stage.end(worker)
    end = (await stage.broker.spans([place]))[place].end
    worker = await stage.started("two", grace=0)
    await judged(stage, await send(stage, "users", user(2)))
    await stage.end(worker)
    await truncate(place, end)
    assert isinstance(stage.broker, MemoryBroker)
    stage.broker.cluster.offsets.clear()
    with capture_logs() as logs:
        worker = await stage.started("two", grace=0)
        await stage.until(
            lambda: any(entry["event"] == "internal_truncated" for entry in logs), "it is told"
        )
        await stage.end(worker)
    assert [(e["topic"], e["partition"]) for e in logs if e["event"] == "internal_truncated"] == [
        (place.topic, 0)
    ]
    assert worker.counted("buddy_internal_truncated_total") == 1
    reasons = " ".join(worker.health.reasons(stage.clock.steady()))
    assert f"{place.topic}/0 has lost its last messages: records that had been judged" in reasons
    with capture_logs() as logs:
        await stage.end(await stage.started("two", grace=0))
    assert not [entry for entry in logs if entry["event"] == "internal_truncated"], "once"
