"""Garbage in internal topics: skipped, counted and named; a worker starts and works beside it."""

from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Another
from tests.contract.worker_kit import Running, Stage, at
from tests.unit.rows_kit import milestone, user
from worker.brokers.contract import Broker
from worker.engine.reprocess import reprocess
from worker.stream import Partition, ProducerRecord

pytestmark = pytest.mark.timeout(400)

TASKS = 2
LONG = 3_600_000
GARBAGE = (b"", b"\x00", b"{", b"null", b"\xff" * 40, b'{"next":{"users":-1},"judged":{}}',
           b"[" * 100_000, b'{"next":{},"judged":{"users":9223372036854775807}}')  # fmt: skip


async def litter(stage: Stage, broker: Broker, *, ours: bool) -> None:
    """Leave garbage in every internal topic, also under keys `ours` where it is wanted."""
    names = stage.names
    keys = {
        names.progress: (b"0", b"1"),
        names.parked: (b"milestones/0/1", b"milestones/x/1"),
        names.granted: (bytes(16).hex().encode(),),
        names.claims: (b"0/0",),
        names.grants: (b"0",),
    }
    await broker.publish(
        [
            ProducerRecord(topic, key, value, partition=q)
            for topic, known in keys.items()
            for key in (b"x", b"\xff", *(known if ours else ()))
            for value in GARBAGE
            for q in range(TASKS)
        ]
    )


def skipped(running: Running) -> float:
    return running.counted("buddy_unreadable_internal_messages_total")


@pytest.mark.parametrize("when", ["before the first start", "running", "stopped"])
async def test_a_worker_works_beside_garbage(stage: Stage, broker: Broker, when: str) -> None:
    if when == "before the first start":
        await litter(stage, broker, ours=False)
    running = await stage.started("one", grace=LONG)
    waiting = await stage.send("milestones", *(milestone(n, n) for n in range(1, 21)))
    first = await stage.send("users", *(at(100 + n, f"a{n}@x.org") for n in range(20)))
    await stage.judged(first)
    await stage.until(lambda: running.parked() == 20, "all are parked")
    if when == "running":
        with capture_logs() as logs:
            await litter(stage, broker, ours=True)
            await stage.until(lambda: skipped(running) > 0, "it is counted")
        said = [entry for entry in logs if entry["event"] == "unreadable_internal"]
        assert {(e["log_level"], e["offset"] >= 0, e["count"] > 0) for e in said} == {
            ("error", True, True)
        }
    if when == "stopped":
        await stage.end(running)
        await litter(stage, broker, ours=True)
        running = await stage.started("one", grace=LONG)
        await stage.until(lambda: running.parked() == 20, "what was parked is there")
    second = await stage.send("users", *(user(n) for n in range(1, 21)))
    second += await stage.send("users", *(at(200 + n, f"a{n}@x.org") for n in range(20)))
    await stage.judged()
    assert skipped(running) > 0
    assert stage.verdicts([*first, *waiting, *second[:20]]) == {"accepted": 60}
    assert stage.verdicts(second[20:]) == {"rejected duplicate_email": 20}
    await stage.end(running)
    again = await stage.started("two")
    await stage.send("milestones", *(milestone(n, n) for n in range(30, 40)))
    await stage.judged()
    await stage.end(again)


async def test_a_barrier_passes_by_no_progress_but_the_tasks_own(
    stage: Stage, broker: Broker
) -> None:
    running = await stage.started(held={"users"})
    late = await stage.send("users", *(user(n) for n in range(1, 9)))
    (waiting,) = await stage.send("milestones", milestone(1, 1))
    await stage.until(lambda: bool(running.blocked_by()), "the frontier is noted")
    seen = skipped(running)
    lies = [
        ProducerRecord(
            stage.names.progress, key, b'{"next":{"users":99},"judged":{"users":99}}', partition=q
        )
        for q in range(TASKS)
        for key in (b"", b"x", b"%d" % (1 - q), b"00")
    ]
    await broker.publish(lies)
    await stage.until(lambda: skipped(running) == seen + len(lies), "they are read")
    assert running.blocked_by()
    running.held.clear()
    await stage.judged()
    assert stage.verdicts([*late, waiting]) == {"accepted": 9}
    await stage.books_balance()


async def test_a_lost_progress_stops_one_task_and_reprocess_has_it_judged_anew(
    stage: Stage, broker: Broker, another: Another
) -> None:
    place = Partition(stage.names.progress, 0)
    await broker.publish([ProducerRecord(place.topic, b"0", b"garbage", partition=0)])
    with capture_logs() as logs:
        running = await stage.start(grace=LONG)
        await stage.until(lambda: set(running.tasks) == {1}, "the other task goes on")
        here = await stage.send("users", user(1), partition=1)
        await stage.until(
            lambda: any(entry["event"] == "task_not_started" for entry in logs), "it is told"
        )
    said = next(entry["error"] for entry in logs if entry["event"] == "task_not_started")
    assert f"{place.topic}/0" in said
    assert "offset 0" in said
    assert "buddy reprocess users --offset 0:0" in said
    reason = "worker: 1 of 2 assigned tasks are running"
    await stage.until(
        lambda: reason in running.health.reasons(stage.clock.steady()), "it is not ready"
    )
    there = await stage.send("users", *(user(n) for n in range(2, 9)), partition=0)
    back = await reprocess(await another(), stage.names, "users", {0: 0})
    assert back[0] >= len(there)
    await stage.judged([*here, *there])
    await stage.books_balance()
