"""Workers whose topics are deleted and created anew, under them and while they are away."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from schemas import ENTITIES
from tests.contract.broker_kit import DeleteTopic, Expire
from tests.contract.helpers import add_partitions
from tests.contract.worker.recreated_kit import (
    LIMIT,
    TASKS,
    another_accepts,
    create_anew,
    with_parked,
)
from tests.contract.worker_kit import Row, Stage, checkin, event
from tests.unit.rows_kit import match, milestone, user
from worker.brokers.contract import Broker
from worker.core.topics import wanted
from worker.stream import Partition

pytestmark = pytest.mark.timeout(400)


async def send_anew(stage: Stage, entity: str, *rows: Row) -> list[str]:
    """Send to a topic that was created anew: the outcomes of earlier coordinates are forgotten."""
    await stage.judged()
    places = await stage.send(entity, *rows)
    for place in places:
        stage.outcomes[place] = []
    return places


@pytest.mark.parametrize("records", [8, 60], ids=["fewer", "more"])
@pytest.mark.parametrize("running", [False, True], ids=["while it is away", "under a worker"])
async def test_every_record_of_the_new_topic_is_judged_once(
    stage: Stage, broker: Broker, remove: DeleteTopic, records: int, *, running: bool
) -> None:
    worker = await stage.started()
    await stage.send("users", *(user(n) for n in range(40)))
    await stage.judged()
    topic = stage.names.input("users")
    with capture_logs() as logs:
        if not running:
            await stage.end(worker)
        await create_anew(stage, broker, remove, topic)
        await send_anew(stage, "users", *(user(100 + n) for n in range(records)))
        if not running:
            worker = await stage.started("two")
        await stage.judged()
    said = {entry["partition"] for entry in logs if entry["event"] == "input_recreated"}
    assert said == set(range(TASKS))
    assert worker.counted("buddy_input_recreated_total") == TASKS
    reasons = worker.health.reasons(stage.clock.steady())
    assert f"worker: topic {topic} was created anew: read from its start" in reasons
    sent = await stage.send("milestones", *(milestone(1 + n, 100 + n) for n in range(8)))
    await stage.judged()
    assert stage.verdicts(sent) == {"accepted": 8}
    await stage.books_balance()


async def test_an_idle_worker_notices_too(
    stage: Stage, broker: Broker, remove: DeleteTopic
) -> None:
    worker = await stage.started()
    await stage.until(
        lambda: worker.counted("buddy_transactions_total", outcome="committed") >= TASKS,
        "every task has said which topics it reads",
    )
    topic = stage.names.input("events")
    await remove(topic)
    stage.clock.put_forward(5_001)

    def complains() -> bool:
        reasons = worker.health.reasons(stage.clock.steady())
        return any(f"topic {topic} is missing" in reason for reason in reasons)

    await stage.until(complains, "it says what it waits for")
    await broker.create([wanted(stage.names, TASKS, LIMIT)[topic]])
    await stage.until(
        lambda: worker.counted("buddy_input_recreated_total") == TASKS, "it has noticed"
    )
    await stage.until(lambda: not complains(), "it waits no longer")
    await stage.books_balance()


async def test_parked_records_of_the_old_topic_get_their_verdict(
    stage: Stage, broker: Broker, remove: DeleteTopic
) -> None:
    worker = await stage.started(grace=3_600_000, persist_after=0)
    old = await stage.send("matches", *(match(10 + n, n, n) for n in range(8)))
    await stage.send("checkins", *(checkin(20 + n, 10 + n) for n in range(8)))
    await stage.until(lambda: worker.parked() == 16, "all are parked")
    await create_anew(stage, broker, remove, stage.names.input("matches"))
    stage.clock.put_forward(5_001)
    await stage.until(
        lambda: worker.counted("buddy_input_recreated_total") == TASKS, "it has noticed"
    )
    await stage.send("users", *(user(n) for n in range(8)))
    await stage.judged()
    assert stage.verdicts(old) == {"accepted": 8}
    await stage.books_balance()


async def test_all_topics_with_another_number_of_partitions(
    stage: Stage, broker: Broker, remove: DeleteTopic
) -> None:
    worker = await stage.started()
    await stage.send("users", *(user(n) for n in range(20)))
    await stage.judged()
    every = list(stage.names.every())
    await create_anew(stage, broker, remove, *every, partitions=TASKS + 2)
    stage.clock.put_forward(5_001)
    stage.tasks = TASKS + 2
    await stage.until(lambda: worker.runs(range(TASKS + 2)), "it runs the new tasks")
    assert stage.names.input(next(iter(ENTITIES))) in every


async def test_what_tasks_had_parked_that_are_no_more_is_told(
    stage: Stage, broker: Broker, remove: DeleteTopic
) -> None:
    worker, _ = await with_parked(stage)
    await create_anew(stage, broker, remove, *stage.names.every(), partitions=1)
    stage.clock.put_forward(5_001)
    await stage.until(lambda: worker.runs([0]), "it runs the task that is left")
    await stage.until(
        lambda: worker.counted("buddy_parked_lost_records_total", entity="matches") == 8,
        "those of the others are told at once, its own with its first commit",
    )


@pytest.mark.parametrize("running", [False, True], ids=["while it is away", "under a worker"])
@pytest.mark.parametrize(
    ("what", "lost"), [("accepted", "its rows are gone"), ("rejected", "its rejections are gone")]
)
async def test_a_topic_that_no_worker_reads_is_told_too(
    stage: Stage, broker: Broker, remove: DeleteTopic, what: str, lost: str, *, running: bool
) -> None:
    worker = await stage.started()
    await stage.send("users", *(user(n) for n in range(8)))
    await stage.judged(await stage.send("milestones", *(milestone(1 + n, n) for n in range(8))))
    topic = f"{stage.names.prefix}.{what}.milestones"
    if not running:
        await stage.end(worker)
    await create_anew(stage, broker, remove, topic)
    if not running:
        worker = await stage.started("two")
    stage.clock.put_forward(5_001)
    await stage.until(
        lambda: worker.counted(f"buddy_{what}_recreated_total") == 1, "it has noticed"
    )
    reasons = " ".join(worker.health.reasons(stage.clock.steady()))
    assert f"topic {topic} was created anew: {lost}" in reasons


async def test_what_running_tasks_know_is_written_again(
    stage: Stage, broker: Broker, remove: DeleteTopic
) -> None:
    worker, parked = await with_parked(stage)
    names = stage.names
    with capture_logs() as logs:
        await create_anew(
            stage, broker, remove, names.parked, names.progress, names.granted, names.owners
        )
        stage.clock.put_forward(5_001)
        await stage.until(
            lambda: worker.counted("buddy_internal_recreated_total") == 4 * TASKS, "it has noticed"
        )
        await another_accepts(stage, worker, parked)
    losses = {"parked_lost", "progress_lost", "input_expired", "task_not_started"}
    assert not losses & {entry["event"] for entry in logs}
    assert sum(e["event"] == "internal_recreated" for e in logs) == 4 * TASKS
    await stage.books_balance()


async def test_what_is_removed_under_running_tasks_is_written_again(
    stage: Stage, empty: Expire
) -> None:
    worker, parked = await with_parked(stage)
    place = Partition(stage.names.progress, 0)
    with capture_logs() as logs:
        await empty(place)
        stage.clock.put_forward(5_001)
        await stage.until(
            lambda: any(e["event"] == "internal_skipped" for e in logs), "it has noticed"
        )
        await another_accepts(stage, worker, parked)
    said = [(e["topic"], e["partition"]) for e in logs if e["event"] == "internal_skipped"]
    assert said == [place], "once"
    assert not {"parked_lost", "progress_lost"} & {entry["event"] for entry in logs}
    await stage.books_balance()


@pytest.mark.parametrize("kind", ["embedded"])  # with Kafka it takes four seconds
async def test_topics_of_state_that_are_missing_are_told_until_they_are_back(
    stage: Stage, broker: Broker, remove: DeleteTopic
) -> None:
    worker = await stage.started()
    await stage.judged(await stage.send("users", user(1)))
    gone = [stage.names.parked, stage.names.granted, stage.names.owners]

    def complains() -> bool:
        reasons = worker.health.reasons(stage.clock.steady())
        return any(f"topic {gone[0]} is missing (and 2 more): run" in one for one in reasons)

    with capture_logs() as logs:
        for topic in gone:
            await remove(topic)
        stage.clock.put_forward(5_001)
        await stage.until(complains, "it is told")
        await create_anew(stage, broker, remove, *gone)
        stage.clock.put_forward(5_001)
        await stage.until(lambda: not complains(), "they are back")
    assert [e["topic"] for e in logs if e["event"] == "internal_missing"] == gone


async def test_internal_and_accepted_topics_created_anew_are_told(
    stage: Stage, broker: Broker, remove: DeleteTopic
) -> None:
    worker = await stage.started(grace=3_600_000, persist_after=0)
    await stage.judged(await stage.send("users", user(500)))
    await stage.send("matches", *(match(10 + n, n, n) for n in range(8)))
    await stage.send("events", event(40, 10))
    await stage.until(lambda: worker.parked() == 9, "all are parked")
    names = stage.names
    await stage.end(worker)
    with capture_logs() as logs:
        await create_anew(
            stage, broker, remove, names.parked, names.granted, names.accepted("users")
        )
        worker = await stage.started("one", grace=3_600_000)
        await stage.until(
            lambda: sum(e["count"] for e in logs if e["event"] == "parked_lost") == 9,
            "each task tells what it lacks once it has committed",
        )
        lost = {e["entity"]: 0 for e in logs if e["event"] == "parked_lost"}
        for entry in logs:
            if entry["event"] == "parked_lost":
                lost[entry["entity"]] += entry["count"]
        assert lost == {"matches": 8, "events": 1}
        assert worker.counted("buddy_parked_lost_records_total", entity="matches") == 8
        await stage.end(worker)
        await create_anew(stage, broker, remove, names.progress)
        worker = await stage.started("one", grace=3_600_000)
    said = {entry["event"] for entry in logs}
    assert {"accepted_recreated", "internal_recreated", "progress_lost"} <= said
    told = sum(entry["event"] == "progress_lost" for entry in logs)
    assert worker.counted("buddy_progress_lost_total") == told
    reasons = " ".join(worker.health.reasons(stage.clock.steady()))
    assert "is empty: all that is in the inputs is judged again" in reasons


@pytest.mark.parametrize("running", [False, True], ids=["while it is away", "under a worker"])
async def test_inputs_and_state_created_anew_together_are_told(
    stage: Stage, broker: Broker, remove: DeleteTopic, running: bool
) -> None:
    """The checkpoints that would say so are gone; what a worker and its index know is left."""
    worker, _ = await with_parked(stage)
    names = stage.names
    inputs = [names.input(entity) for entity in ENTITIES]
    if not running:
        await stage.end(worker)
    with capture_logs() as logs:
        await create_anew(stage, broker, remove, *inputs, *names.of_state())
        if not running:
            worker = await stage.started(grace=3_600_000)
        told, times = ("progress", TASKS) if not running else ("input", TASKS * len(ENTITIES))
        counted = {"progress": "buddy_progress_lost_total", "input": "buddy_input_recreated_total"}
        await stage.until(lambda: worker.counted(counted[told]) == times, "it has noticed")
        await stage.until(lambda: worker.runs(range(TASKS)), "it goes on")
    said = [entry["event"] for entry in logs]
    assert said.count("progress_lost") == (0 if running else TASKS)
    assert "internal_truncated" not in said
    reasons = " ".join(worker.health.reasons(stage.clock.steady()))
    assert ("is empty: all that is in the inputs is judged again" in reasons) is not running
    sent = await send_again(stage, "users", user(500), user(501))
    assert stage.verdicts(sent) == {"accepted": 2}


async def send_again(stage: Stage, entity: str, *rows: Row) -> list[str]:
    """Send to a topic that was created anew, and wait for these outcomes alone."""
    stage.outcomes.clear()
    places = await stage.send(entity, *rows)
    await stage.judged(places)
    return places


@pytest.mark.kafka
@pytest.mark.parametrize("kind", ["kafka"])
async def test_partitions_that_were_added_are_told(
    stage: Stage, broker: Broker, request: pytest.FixtureRequest
) -> None:
    """The topic stays the same one, and new keys go where no task reads."""
    worker = await stage.started()
    await stage.judged(await stage.send("users", user(1)))
    topic = stage.names.input("users")
    address = request.getfixturevalue("kafka_address")
    await add_partitions(broker, address, topic, TASKS + 2)
    stage.clock.put_forward(5_001)

    def complains() -> bool:
        reasons = worker.health.reasons(stage.clock.steady())
        return any(f"but {topic} has {TASKS + 2}: create it anew" in one for one in reasons)

    await stage.until(complains, "it says what to do")
