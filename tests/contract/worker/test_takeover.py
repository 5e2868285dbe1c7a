"""Take-overs: the earlier owner of a task writes nothing more, however it ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from tests.contract.broker_kit import Another
from tests.contract.helpers import eventually
from tests.contract.worker_kit import Stage
from tests.unit.rows_kit import milestone, user
from worker.brokers.contract import Broker
from worker.brokers.kafka.committer import KafkaCommitter
from worker.core.ownership import owner_record, owners_before, writer_name
from worker.engine.reprocess import reprocess
from worker.errors import BuddyError
from worker.stream import Partition, ProducerRecord

pytestmark = pytest.mark.timeout(400)

TASKS = 4
LONG = 3_600_000
BOUND = 8.0
"""Seconds from the death of a worker until its tasks work again (docs/operations/running.md)."""
DEAD = "d" * 32


async def owners(stage: Stage, number: int) -> list[str]:
    """Who would have to be fenced by whoever takes the task over now."""
    place = Partition(stage.names.owners, number)
    end = (await stage.broker.spans([place], uncommitted=True))[place].end
    reader = stage.broker.reader(uncommitted=True)
    reader.assign({place: 0})
    messages = []
    try:
        while reader.position(place) < end:
            messages += await reader.read(1_000, 0.5)
    finally:
        await reader.close()
    return owners_before(messages, end)


# --- a worker that lives ------------------------------------------------------------------------


async def test_a_worker_that_is_fenced_for_one_task_takes_all_up_again_in_another_session(
    stage: Stage, another: Another
) -> None:
    worker = await stage.started(grace=LONG)
    await stage.judged(await stage.send("users", *(user(n) for n in range(1, 41))))
    first = worker.owner
    worker.hold_commits()
    for q in range(TASKS):
        await stage.send(
            "milestones", *(milestone(10 * q + n, n) for n in range(1, 9)), partition=q
        )
    await stage.until(lambda: worker.loop._rounds.commit is not None, "a commit is on its way")
    # Somebody else takes one task over for a moment, and changes nothing.
    assert await reprocess(await another(), stage.names, "feedback", {2: LONG}) == {2: 0}
    worker.thaw()
    await stage.until(
        lambda: worker.owner not in ("", first) and worker.runs(range(TASKS)), "all is taken up"
    )
    assert {owned.task.owner for owned in worker.tasks.values()} == {worker.owner}
    assert worker.counted("buddy_transactions_total", outcome="fenced") == 1
    await stage.judged()
    assert set(stage.verdicts(stage.outcomes)) == {"accepted"}
    for q in range(TASKS):
        assert await owners(stage, q) == [worker.owner], "the first one is struck out"
    await stage.books_balance()


async def test_a_task_that_another_worker_gets_is_handed_over_and_the_others_go_on(
    stage: Stage,
) -> None:
    one = await stage.started("one", grace=LONG)
    first = one.owner
    stopped = asyncio.Event()

    async def stream() -> None:
        number = 0
        while not stopped.is_set():
            for q in range(TASKS):
                number += 1
                await stage.send("users", user(number), partition=q)
                await stage.send("milestones", milestone(number, number), partition=(q + 1) % TASKS)

    async with running(stream(), stopped):
        other = await stage.start("two", grace=LONG)
        await stage.until(
            lambda: all(len(w.tasks) == 2 and w.runs(w.tasks.keys()) for w in (one, other)),
            "two workers share the tasks",
        )
    await stage.judged()
    assert one.owner == first
    for worker in (one, other):
        assert worker.counted("buddy_transactions_total", outcome="fenced") == 0
        for q in worker.tasks:
            assert await owners(stage, q) == [worker.owner]
    assert set(stage.verdicts(stage.outcomes)) == {"accepted"}
    await stage.books_balance()
    for q in range(TASKS):
        assert await owners(stage, q) == [], "whoever stops in order gives everything up"


async def test_a_task_is_not_handed_over_before_the_round_on_its_way_is_committed(
    stage: Stage,
) -> None:
    one = await stage.started("one", grace=LONG)
    await stage.judged(await stage.send("users", *(user(n) for n in range(1, 10))))
    checked = asyncio.Event()

    class Slow:
        """The last look at the topics before a commit takes long."""

        async def check(self) -> None:
            await checked.wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(one.loop._rounds, "_identities", Slow())
        for q in range(TASKS):
            await stage.send(
                "milestones", *(milestone(10 * q + n, n) for n in range(1, 9)), partition=q
            )
        await stage.until(lambda: one.loop._rounds.commit is not None, "a commit is on its way")
        other = await stage.start("two", grace=LONG)
        await stage.until(
            lambda: len(other.tasks) == 2 and other.runs(other.tasks.keys()), "two has its share"
        )
        checked.set()
    await stage.judged()
    assert set(stage.verdicts(stage.outcomes)) == {"accepted"}
    await stage.books_balance()


async def test_a_reset_is_not_lost_to_a_worker_that_takes_over_at_once(
    stage: Stage, another: Another
) -> None:
    worker = await stage.started()
    places = await stage.send("users", *(user(n) for n in range(1, 41)))
    await stage.judged()
    admin = await another()
    for outcomes in (2, 3, 4):
        first = worker.owner
        back = await reprocess(admin, stage.names, "users", dict.fromkeys(range(TASKS), 0))
        assert sum(back.values()) >= len(places)
        stage.clock.put_forward(5_001)  # an idle worker looks whether it has been taken over

        async def again(wanted: int = outcomes) -> bool:
            await stage.look()
            return all(len(stage.outcomes[place]) == wanted for place in places)

        await stage.until_asked(again, lambda: "an outcome for each reset", patience=30.0)
        assert worker.owner not in ("", first)


# --- a worker that is killed --------------------------------------------------------------------


@asynccontextmanager
async def killed_before_the_end(
    broker: Broker, group: str, name: str, messages: Sequence[ProducerRecord]
) -> AsyncIterator[None]:
    """What a writer leaves that is killed while it commits: on Kafka, an open transaction."""
    committer: Any = await broker.committer(name, group)
    if not isinstance(committer, KafkaCommitter):  # the embedded broker keeps nothing of it
        yield
        return
    written = asyncio.Event()

    async def never() -> None:
        written.set()
        await asyncio.Event().wait()

    committer._producer.commit_transaction = never
    commit = asyncio.create_task(committer.commit(messages, {}))
    await written.wait()
    places = {Partition(m.topic, m.partition or 0) for m in messages}

    async def behind() -> bool:
        stable = await broker.spans(places)
        return all(
            span.end > stable[p].end
            for p, span in (await broker.spans(places, uncommitted=True)).items()
        )

    assert await eventually(behind, bool)
    try:
        yield
    finally:
        commit.cancel()
        with suppress(asyncio.CancelledError, BuddyError):
            await commit


@pytest.mark.parametrize("when", ["while it takes over", "in a round"])
async def test_a_worker_that_is_killed_in_a_commit_holds_nobody_up_for_long(
    stage: Stage, another: Another, when: str
) -> None:
    names, places = stage.names, range(TASKS)
    doomed = await another()
    writer = writer_name(names, DEAD)
    said = [owner_record(names, q, DEAD) for q in places]
    if when == "in a round":
        committer = await doomed.committer(writer, stage.group)
        await committer.commit(said, {})
        await committer.close()
        topics = (names.progress, names.accepted("users"), names.parked)
        said = [ProducerRecord(t, b"k", b"never", partition=q) for t in topics for q in places]
    async with killed_before_the_end(doomed, stage.group, writer, said):
        began = time.monotonic()
        worker = await stage.started()
        assert time.monotonic() - began < BOUND
        await stage.send("users", *(user(n) for n in range(1, 21)))
        await stage.send("milestones", *(milestone(n, n) for n in range(1, 21)))
        await stage.judged()
        assert time.monotonic() - began < BOUND
        for q in places:
            assert await owners(stage, q) == [worker.owner], "the dead one is struck out"
    assert set(stage.verdicts(stage.outcomes)) == {"accepted"}
    assert set(await stage.rows("users")) == {user(n)[0] for n in range(1, 21)}
    await stage.books_balance()


@asynccontextmanager
async def running(work: Any, stopped: asyncio.Event) -> AsyncIterator[None]:
    """Work that goes on meanwhile, until it is told to stop."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        stopped.set()
        await task
