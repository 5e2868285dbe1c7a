"""Workers whose tasks have lost their checkpoints: what they remember, and parked records."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import DeleteTopic, Expire
from tests.contract.worker.recreated_kit import (
    LIMIT,
    TASKS,
    another_accepts,
    create_anew,
    with_parked,
)
from tests.contract.worker_kit import Stage, two
from tests.unit.rows_kit import match, user
from worker.brokers.contract import Broker
from worker.core.topics import wanted
from worker.stream import Partition

pytestmark = pytest.mark.timeout(400)


@pytest.mark.parametrize("kind", ["embedded"])  # a commit on Kafka fails after ten seconds
async def test_progress_that_is_missing_until_tasks_are_dropped_is_known_all_the_same(
    stage: Stage, broker: Broker, remove: DeleteTopic
) -> None:
    worker, parked = await with_parked(stage)
    with capture_logs() as logs:
        await remove(stage.names.progress)
        places = await stage.send("users", user(501))

        def none_runs() -> bool:
            return any(e["event"] == "commit_failed" for e in logs) and not worker.tasks

        await stage.until(none_runs, "the tasks are dropped")
        made = wanted(stage.names, TASKS, LIMIT)
        await broker.create([made[stage.names.progress]])
        await stage.judged(places)
        await another_accepts(stage, worker, parked)
    said = [entry["event"] for entry in logs]
    assert not {"parked_lost", "progress_lost", "internal_truncated"} & {*said}
    assert said.count("internal_recreated") == TASKS
    await stage.books_balance()


@pytest.mark.parametrize("other", ["internal.claims", "rejected.events"])
async def test_progress_that_is_created_anew_with_other_topics_is_known_all_the_same(
    stage: Stage, broker: Broker, remove: DeleteTopic, other: str
) -> None:
    """The worker begins anew with each of these topics, and remembers how far its tasks were."""
    worker, parked = await with_parked(stage)
    with capture_logs() as logs:
        await create_anew(
            stage, broker, remove, stage.names.progress, f"{stage.names.prefix}.{other}"
        )
        stage.clock.put_forward(5_001)
        await stage.until(
            lambda: any(entry["event"] == "topics_changed" for entry in logs), "it has noticed"
        )
        await stage.until(lambda: worker.runs(range(TASKS)), "it goes on")
        await stage.judged(await stage.send("users", user(501)))
        await another_accepts(stage, worker, parked)
    said = {entry["event"] for entry in logs}
    assert not {"parked_lost", "progress_lost", "internal_truncated"} & said
    await stage.books_balance()


async def test_tasks_of_another_worker_are_known_too_when_progress_is_created_anew(
    stage: Stage, broker: Broker, remove: DeleteTopic
) -> None:
    """The worker that is left has read their checkpoints, and cannot know that others follow."""
    one, other = await two(stage, grace=3_600_000, persist_after=0)
    first = await stage.send("users", *(user(500 + n) for n in range(8)))
    parked = await stage.send("matches", *(match(10 + n, n, n) for n in range(8)))
    await stage.judged(first)

    async def persisted() -> bool:
        return len(await stage.parked()) == 8

    await stage.until_asked(persisted, lambda: "all are parked, and their copies committed")
    own = len(other.tasks)
    gone = [stage.names.progress, stage.names.claims]
    with capture_logs() as logs:
        for topic in gone:
            await remove(topic)
        await stage.end(one)
        made = wanted(stage.names, TASKS, LIMIT)
        await broker.create([made[topic] for topic in gone])
        stage.clock.put_forward(5_001)
        await stage.until(lambda: other.parked() == 8 and other.runs(range(TASKS)), "it has all")
        await stage.send("users", *(user(n) for n in range(8)))
        await stage.judged()
    assert stage.verdicts([*first, *parked]) == {"accepted": 16}
    said = [entry["event"] for entry in logs]
    assert not {"parked_lost", "progress_lost"} & {*said}
    assert said.count("internal_truncated") == TASKS - own
    await stage.books_balance()


@pytest.mark.parametrize("has_expired", [False, True])
async def test_parked_records_get_one_verdict_though_progress_is_lost(
    stage: Stage, broker: Broker, remove: DeleteTopic, empty: Expire, has_expired: bool
) -> None:
    """Those that can be read again are judged again; the copies of the others count."""
    worker, parked = await with_parked(stage)
    await stage.end(worker)
    if has_expired:
        for number in range(TASKS):
            await empty(Partition(stage.names.input("matches"), number))
    await create_anew(stage, broker, remove, stage.names.progress)
    await stage.send("users", *(user(n) for n in range(8)))
    # Nothing is copied, so a record that is read again leaves no tombstone of its own.
    worker = await stage.started(grace=3_600_000, persist_after=3_600_000)
    await stage.judged(parked)
    await stage.end(worker)
    await nothing_is_left(stage)
    assert [stage.outcomes[place] for place in parked] == [["accepted"]] * 8


async def test_a_parked_record_that_expires_before_it_is_read_again_is_judged_by_its_copy(
    stage: Stage, broker: Broker, remove: DeleteTopic, empty: Expire
) -> None:
    worker, parked = await with_parked(stage)
    await stage.end(worker)
    await create_anew(stage, broker, remove, stage.names.progress)
    worker = await stage.start(grace=3_600_000, persist_after=3_600_000)
    worker.held = {"matches"}
    await stage.until(lambda: worker.runs(range(TASKS)), "its tasks have their inputs")
    with capture_logs() as logs:
        for number in range(TASKS):
            await empty(Partition(stage.names.input("matches"), number))
        await stage.send("matches", match(100, 500, 500))
        worker.held = set()
        await stage.until(
            lambda: any("judged by their copies" in str(e.get("reason")) for e in logs),
            "it notices",
        )
        await stage.send("users", *(user(n) for n in range(8)))
        await stage.judged(parked)
    await stage.end(worker)
    await nothing_is_left(stage)
    assert [stage.outcomes[place] for place in parked] == [["accepted"]] * 8


@pytest.mark.parametrize("records", [0, 60], ids=["empty", "with more records"])
async def test_parked_records_get_their_verdicts_though_input_and_progress_are_lost(
    stage: Stage, broker: Broker, remove: DeleteTopic, records: int
) -> None:
    """Nothing says that the input is another topic, but that it holds other records."""
    worker, parked = await with_parked(stage)
    await stage.end(worker)
    names = stage.names
    await create_anew(stage, broker, remove, names.progress, names.input("matches"))
    await stage.send("users", *(user(n) for n in range(8)))
    for n in range(records):
        await stage.send("matches", match(100 + n, 500, 500))
    worker = await stage.started(grace=3_600_000, persist_after=3_600_000)
    rows = {f"{10 + n}" for n in range(8)} | {f"{100 + n}" for n in range(records)}

    async def accepted() -> bool:
        return len(await stage.rows("matches")) == len(rows)

    await stage.until_asked(accepted, lambda: "all have their verdicts")
    await stage.end(worker)
    await nothing_is_left(stage)
    assert len(parked) == 8


async def nothing_is_left(stage: Stage) -> None:
    """The next worker finds nothing parked, and has lost nothing."""
    assert not await stage.parked()
    with capture_logs() as logs:
        worker = await stage.started(grace=3_600_000)
        await stage.look(0.5)
        assert worker.parked() == 0
        await stage.end(worker)
    assert not {"internal_truncated", "parked_lost"} & {entry["event"] for entry in logs}
