"""Parked records without a copy in the log: held for a while, read again after a restart."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.core_kit import (
    FIRST_OFFSET,
    GRACE,
    HOLD,
    STEP,
    Crash,
    Decision,
    World,
    good,
    to_json,
    uid,
)
from worker.core.checkpoint import Checkpoint
from worker.core.known import IndexDelta
from worker.core.outbox import Tally
from worker.core.recent import RecentRows
from worker.core.round import Round, TaskBatch
from worker.core.task import Task
from worker.core.topics import TASK_INPUTS
from worker.stream import Message

CRASHES: list[Crash] = ["before commit", "after commit"]


def milestone(world: World, number: int, user: int = 1) -> str:
    return world.send("milestones", good("milestones", number, user_id=uid(user)))


def kept(world: World) -> list[tuple[bytes | None, bool]]:
    """What was written of parked records: the key, and whether it is a copy or its end."""
    topic = world.names.parked
    return [(m.key, m.value is not None) for m in world.committed if m.topic == topic]


def held(world: World) -> dict[str, dict[int, list[int]]]:
    return msgspec.json.decode(world.progress[0][-1], type=Checkpoint).in_memory


def at(place: int) -> int:
    return FIRST_OFFSET + STEP * place


def test_what_waits_for_a_moment_leaves_no_copy_in_the_log() -> None:
    world = World()
    sent = milestone(world, 5)
    decision = world.round()[0]
    assert decision.tally.parked == {"milestones": 1}
    assert held(world) == {"milestones": {world.now: [at(0)]}}
    world.send("users", good("users", 1))
    world.settle()
    assert world.kind(sent) == "accepted"
    assert kept(world) == []
    assert held(world) == {}


def test_what_waits_for_longer_is_kept_and_struck_out_once_released() -> None:
    world = World()
    sent = milestone(world, 5)
    world.round()
    world.now += HOLD - 1
    assert not world.tasks[0].has_to_persist(world.moment)
    assert not world.round()[0].outputs
    world.now += 1
    assert world.tasks[0].has_to_persist(world.moment)
    world.round()
    assert not world.tasks[0].has_to_persist(world.moment)
    assert kept(world) == [(b"milestones/0/3", True)]
    assert held(world) == {}
    world.send("users", good("users", 1))
    world.settle()
    assert world.kind(sent) == "accepted"
    assert kept(world) == [(b"milestones/0/3", True), (b"milestones/0/3", False)]


def test_of_too_many_the_oldest_are_kept() -> None:
    world = World(most_in_memory=2)
    for number in range(1, 4):
        milestone(world, number)
    world.round()
    assert kept(world) == [(b"milestones/0/3", True)]
    milestone(world, 7)
    world.round()
    assert [key for key, _ in kept(world)] == [b"milestones/0/3", b"milestones/0/5"]
    assert held(world) == {"milestones": {world.now: [at(2), at(3)]}}


def test_a_user_that_waits_for_an_answer_is_kept_at_once() -> None:
    world = World(partitions=2)
    world.send("users", good("users", 1), partition=0)
    world.send("users", good("users", 2), partition=0)
    world.send("users", good("users", 3), partition=0)
    decision = world.round(only=[0])[0]
    assert len(world.parked[0]) == decision.tally.parked["users"] > 0


@pytest.mark.parametrize("most", [1, 2, 100])
def test_a_restart_reads_again_what_was_held_and_nothing_else(most: int) -> None:
    world = World()
    world.send("users", good("users", 1))
    world.settle()
    sent = [milestone(world, 1 + number, user=1 + number % 2) for number in range(6)]
    world.settle()
    assert held(world) == {"milestones": {world.now: [at(1), at(3), at(5)]}}
    world.tasks[0] = world.restored(0)
    assert world.tasks[0].reading.next["milestones"] == at(1)
    later = milestone(world, 8)
    read = 0
    for _ in range(8):
        read += world.round(most)[0].tally.read["milestones"]
    assert read == 1, "records that are read again do not count again"
    assert held(world) == {"milestones": {world.now: [at(1), at(3), at(5)]}}
    world.send("users", good("users", 2))
    world.settle()
    assert [world.kind(one) for one in [*sent, later]] == ["accepted"] * 7
    assert kept(world) == []


@pytest.mark.parametrize("crash", CRASHES)
def test_a_second_crash_while_held_records_are_read_again_loses_none(crash: Crash) -> None:
    world = World()
    sent = [milestone(world, 1 + number) for number in range(4)]
    world.settle()
    for _ in range(4):
        world.tasks[0] = world.restored(0)
        world.round(1)
        world.round(1, crash={0: crash})
    assert held(world) == {"milestones": {world.now: [at(0), at(1), at(2), at(3)]}}
    assert world.judged()["milestones"] == 0
    world.send("users", good("users", 1))
    world.settle()
    assert [world.kind(one) for one in sent] == ["accepted"] * 4


def test_progress_stands_at_what_is_still_to_be_read_again() -> None:
    world = World()
    first, second = milestone(world, 1), milestone(world, 2, user=2)
    world.settle()
    world.tasks[0] = world.restored(0)
    world.send("users", good("users", 1))
    world.round(1)  # reads the first milestone and user 1
    assert world.kind(first) == "accepted"
    assert world.judged()["milestones"] == 1
    assert held(world) == {"milestones": {world.now: [at(1)]}}
    world.tasks[0] = world.restored(0)
    assert world.tasks[0].reading.next["milestones"] == at(1)
    world.finish()
    assert world.kind(second) == "rejected"


def test_the_first_reading_and_the_arrival_outlive_a_restart() -> None:
    world = World()
    late = "2026-01-01T00:01:00.001Z"  # in the future when it arrives, no more when read again
    future = world.send("milestones", good("milestones", 5, reached_at=late))
    edge = world.send(
        "milestones", good("milestones", 6, reached_at="2026-01-01T00:01:00Z"), appended=False
    )
    world.round()
    world.tasks[0] = world.restored(0)
    world.now += GRACE // 2
    world.settle()
    world.send("users", good("users", 1))
    world.settle()
    assert (world.kind(future), world.kind(edge)) == ("rejected", "accepted")


@pytest.mark.parametrize("told", [False, True])
def test_those_that_expired_before_they_were_read_again_block_nothing(told: bool) -> None:
    world = World()
    lost, found = milestone(world, 1), milestone(world, 2)
    world.settle()
    task = world.tasks[0] = world.restored(0, **({"milestones": at(1)} if told else {}))
    if told:
        assert world.missed.expired == {"milestones": 1}
    else:
        task.reading.next["milestones"] = at(
            1
        )  # a reader goes on at the earliest message that there is
    assert task.reading.next["milestones"] == at(1)
    world.send("users", good("users", 1))
    world.settle()
    assert world.kind(found) == "accepted"
    assert world.judged()["milestones"] == 2
    assert held(world) == {}
    assert world.kind(lost) == "open"


def test_where_all_that_was_held_has_expired_reading_goes_on_behind() -> None:
    world = World()
    milestone(world, 1)
    world.send("users", good("users", 2))
    done = milestone(world, 2, user=2)
    world.settle()
    task = world.tasks[0] = world.restored(0, milestones=at(1))
    assert world.missed.expired == {"milestones": 1}
    assert task.reading.next["milestones"] == at(2)
    world.settle()
    assert world.kind(done) == "accepted"
    assert (held(world), world.judged()["milestones"]) == ({}, 2)


def test_a_restart_gives_nobody_more_time_whatever_else_is_read() -> None:
    world = World()
    sent = milestone(world, 1)
    world.settle()
    world.now += GRACE
    world.tasks[0] = world.restored(0)
    world.send("matches", good("matches", 1))  # waits, and comes before it
    world.settle()
    assert world.kind(sent) == "rejected"


def test_a_restart_holds_nothing_for_longer_whatever_else_is_read() -> None:
    world = World()
    milestone(world, 1)
    world.settle()
    world.now += HOLD
    world.tasks[0] = world.restored(0)
    world.send("matches", good("matches", 1))
    world.settle()
    assert kept(world) == [(b"milestones/0/3", True)]


def test_a_farewell_keeps_everything() -> None:
    world = World()
    sent = [milestone(world, 1), world.send("matches", good("matches", 1))]
    world.settle()
    written = world.tasks[0].flush_parked(world.moment)
    assert [m.topic for m in written].count(world.names.parked) == 2
    progress = msgspec.json.decode(written[-1].value or b"", type=Checkpoint)
    assert progress.in_memory == {}
    assert progress.judged["milestones"] == at(0)
    world._commit(0, Decision(written, Tally()))
    world.tasks[0] = world.restored(0)
    assert len(world.tasks[0].parking) == 2
    world.send("users", good("users", 1))
    world.send("users", good("users", 2))
    world.settle()
    assert [world.kind(one) for one in sent] == ["accepted", "accepted"]


def test_an_idle_task_has_nothing_to_say_at_the_end() -> None:
    world = World()
    world.send("users", good("users", 1))
    world.settle()
    assert world.tasks[0].flush_parked(world.moment) == []


@pytest.mark.thorough
def test_the_progress_of_any_number_of_held_records_fits_into_its_topic() -> None:
    world, limit = World(), 60_000
    task = world.tasks[0] = Task(0, msgspec.structs.replace(world.rules, rejection_limit=limit))
    first = 10**15  # as long as they get, and each read at a moment of its own
    nothing, recent = IndexDelta([], []), RecentRows(world.index)
    for name in TASK_INPUTS:
        task.reading.next[name] = first
    topic = world.names.input("milestones")
    for offset in range(first, first + 1_800):
        value = to_json(good("milestones", 1 + offset - first))
        message = Message(topic, 0, offset, world.now, None, value, (), True)
        world.now += 1
        batches = {0: TaskBatch([message], {"milestones": offset + 1})}
        decision = Round({0: task}, batches, recent).decide(nothing, world.moment)
    assert limit // 2 < len(decision.outputs[-1].value or b"") < limit


def test_the_order_within_a_key_outlives_a_restart() -> None:
    world = World()
    first = world.send("milestones", good("milestones", 5, points=1))
    world.settle()
    world.now += HOLD
    world.round()
    second = world.send("milestones", good("milestones", 5, points=2))
    world.settle()
    assert len(kept(world)) == 1, "the first is kept, the second held"
    world.tasks[0] = world.restored(0)
    world.send("users", good("users", 1))
    world.settle()
    assert [world.kind(one) for one in (first, second)] == ["accepted"] * 2
    rows = [m.value for m in world.committed if m.topic == world.names.accepted("milestones")]
    assert [b'"points":1' in (row or b"") for row in rows] == [True, False]
