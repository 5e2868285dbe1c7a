"""`buddy reprocess`: what has been judged is read and judged once more, and nothing else is."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence

import pytest

from tests.contract.broker_kit import Another
from tests.contract.worker_kit import Stage, at, holders, two
from tests.unit.rows_kit import match, milestone, user
from worker.core.checkpoint import Counts
from worker.engine.reprocess import reprocess
from worker.engine.saved import read_progress_table
from worker.engine.session import Session
from worker.errors import BrokerUnavailable, Fenced
from worker.stream import Partition, ProducerRecord

pytestmark = pytest.mark.timeout(400)

TASKS = 4
LONG = 3_600_000


def offsets_of(places: Iterable[str], offset: int = 0) -> dict[int, int]:
    return {int(place.split("/")[1]): offset for place in places}


@pytest.mark.parametrize("workers", [1, 2])
async def test_reprocess_gives_each_record_a_second_outcome_and_others_none(
    stage: Stage, another: Another, workers: int
) -> None:
    if workers == 1:
        await stage.started(grace=LONG)
    else:
        await two(stage, grace=LONG)
    users = await stage.send("users", *(user(n) for n in range(1, 41)))
    users += await stage.send("users", at(50, "u1@example.com"))
    await stage.judged()
    good = await stage.send("milestones", *(milestone(n, n) for n in range(1, 41)))
    bad = await stage.send("milestones", (b"x", b"{}"))
    waiting = await stage.send("milestones", *(milestone(n, 60) for n in range(60, 64)))
    others = await stage.send("matches", *(match(100 + n, n, n + 1) for n in range(1, 21)))
    await stage.judged([*users, *good, *bad, *others])
    await stage.until(lambda: sum(w.parked() for w in stage.workers) == 4, "some are parked")

    admin = await another()
    for entity in ("milestones", "users"):
        back = await reprocess(admin, stage.names, entity, dict.fromkeys(range(TASKS), 0))
        assert sum(back.values()) >= len(good)
        for q in range(TASKS):  # the stream goes on in each task
            others += await stage.send("milestones", milestone(100 + len(others), 1), partition=q)
        await stage.judged(others)

    async def twice() -> bool:
        await stage.look()
        return all(len(stage.outcomes[place]) > 1 for place in (*users, *good, *bad))

    await stage.until_asked(twice, lambda: "a second outcome")
    await stage.until(lambda: sum(w.parked() for w in stage.workers) == 4, "parked once more")
    (late,) = await stage.send("users", user(60))
    await stage.judged([*waiting, late])
    for running in list(stage.workers):
        await stage.end(running)
    await stage.look(0.5)
    for place in (*users, *good, *bad):
        first, *more = stage.outcomes[place]
        assert more == [first], place
    for place in (*others, *waiting, late):
        assert stage.outcomes[place] == ["accepted"], place
    assert await stage.parked() == []
    assert set((await holders(stage)).values()) == {1}


async def test_reprocess_reaches_a_worker_that_has_nothing_to_do_and_whose_clock_went_back(
    stage: Stage, another: Another
) -> None:
    await stage.started()
    (place,) = await stage.send("users", user(1))
    await stage.judged()
    stage.clock.step(-LONG)
    await stage.send("users", user(2))
    await stage.judged()
    await reprocess(await another(), stage.names, "users", offsets_of([place]))
    stage.clock.put_forward(5_001)  # an idle task looks whether it has been taken over

    async def twice() -> bool:
        await stage.look()
        return len(stage.outcomes[place]) == 2

    await stage.until_asked(twice, lambda: "a second outcome", patience=20.0)
    assert stage.outcomes[place] == ["accepted", "accepted"]


async def test_reprocess_in_the_middle_of_a_stream(stage: Stage, another: Another) -> None:
    await two(stage)
    users = await stage.send("users", *(user(n) for n in range(1, 41)))
    await stage.judged()
    admin = await another()
    ended = asyncio.Event()
    later: list[str] = []

    async def stream() -> None:
        while not ended.is_set():
            for q in range(TASKS):
                row = milestone(1 + len(later), 1 + len(later) % 40)
                later.extend(await stage.send("milestones", row, partition=q))
            try:
                await asyncio.wait_for(ended.wait(), 0.01)
            except TimeoutError:
                continue

    async def twice() -> bool:
        await stage.look()
        return all(len(stage.outcomes[place]) > 1 for place in users)

    streaming = asyncio.create_task(stream())
    try:
        await reprocess(admin, stage.names, "users", dict.fromkeys(range(TASKS), 0))
        await stage.until_asked(twice, lambda: "a second outcome")
    finally:
        ended.set()
        await streaming
    await stage.judged()
    for running in list(stage.workers):
        await stage.end(running)
    await stage.look(0.5)
    for place in users:
        assert stage.outcomes[place] == ["accepted", "accepted"], place
    for place in later:
        assert stage.outcomes[place] == ["accepted"], place


async def test_reprocess_of_a_part_leaves_what_is_held_before_it_held(
    stage: Stage, another: Another
) -> None:
    running = await stage.started(grace=LONG)
    first, second, third = await stage.send(
        "milestones", *(milestone(n, 9) for n in (1, 2, 3)), partition=0
    )
    await stage.until(lambda: running.parked() == 3, "all wait")
    back = await reprocess(await another(), stage.names, "milestones", offsets_of([second]))
    assert back[0] >= 2  # a mark may lie behind the last
    await stage.send("users", user(9))
    await stage.judged()
    assert stage.verdicts([first, second, third]) == {"accepted": 3}
    await stage.books_balance()
    table = await read_progress_table(stage.broker, stage.names, 0)
    assert table.rows[b"0"].counts["milestones"] == Counts(read=3, accepted=3)


async def test_reprocess_of_what_has_not_been_read_changes_nothing(
    stage: Stage, another: Another
) -> None:
    running = await stage.started(held={"users"})
    places = await stage.send("users", *(user(n) for n in range(1, 9)))
    admin = await another()
    assert await reprocess(admin, stage.names, "users", offsets_of(places)) == dict.fromkeys(
        offsets_of(places), 0
    )
    running.held.clear()
    await stage.judged()
    await stage.books_balance()


async def test_a_reset_whose_release_is_fenced_is_not_repeated(
    stage: Stage, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker may take the tasks back as soon as the reset is committed (seed 1106521)."""
    await stage.started()
    sent = await stage.send("users", *(user(n) for n in range(1, 9)))
    await stage.judged()
    commit, resets = Session.commit, 0

    async def fenced(
        session: Session, messages: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
    ) -> list[tuple[int, int]]:
        nonlocal resets
        if all(message.value is None for message in messages):
            raise Fenced("a worker has taken the tasks back")
        resets += any(message.topic == stage.names.progress for message in messages)
        return await commit(session, messages, offsets)

    admin = await another()
    await stage.end(stage.workers[0])
    with monkeypatch.context() as patched:
        patched.setattr(Session, "commit", fenced)
        back = await reprocess(admin, stage.names, "users", dict.fromkeys(range(TASKS), 0))
    assert (sum(back.values()) >= len(sent), resets) == (True, 1)
    await stage.started("two")

    async def twice() -> bool:
        await stage.look()
        return all(len(stage.outcomes[place]) == 2 for place in sent)

    await stage.until_asked(twice, lambda: "a second outcome")


async def test_a_reset_that_gets_no_answer_is_said_to_be_possible(
    stage: Stage, another: Another, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = await stage.started()
    await stage.send("users", user(1))
    await stage.judged()
    await stage.end(running)
    commit = Session.commit

    async def unanswered(
        session: Session, messages: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
    ) -> list[tuple[int, int]]:
        written = await commit(session, messages, offsets)
        if offsets:
            raise BrokerUnavailable("cannot commit as w: no answer in time")
        return written

    monkeypatch.setattr(Session, "commit", unanswered)
    said = f"no answer in time; the records of {stage.names.input('users')} may be judged again"
    with pytest.raises(BrokerUnavailable, match=said):
        await reprocess(await another(), stage.names, "users", dict.fromkeys(range(TASKS), 0))
