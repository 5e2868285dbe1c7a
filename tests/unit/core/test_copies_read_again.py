"""Copies of parked records in a log without their checkpoint, or with an older one.

Their records get one more verdict, and not two: what is read again leaves no copy for later.
"""

from __future__ import annotations

import msgspec
import pytest

from tests.unit.core_kit import FIRST_OFFSET, STEP, World, good, saved, uid
from worker.core.internal import parked_key, read_progress
from worker.core.parked import Envelope
from worker.core.task import Task

MANY = 8
HOUR = 3_600_000


def with_copies(*, decision_bytes: int = 2**23, numbers: range = range(MANY)) -> World:
    """A world whose task has parked milestones of users that are unknown, with copies."""
    world = World(grace=HOUR, persist_after=0)
    world.rules = msgspec.structs.replace(world.rules, decision_bytes=decision_bytes)
    world.tasks = [world.restored(0)]
    send(world, numbers)
    world.settle()
    assert len(world.parked[0]) == len(numbers)
    return world


def send(world: World, numbers: range) -> list[str]:
    """Milestones, each of a user of its own."""
    return [
        world.send("milestones", good("milestones", 1 + n, user_id=uid(n)), partition=0)
        for n in numbers
    ]


def lose_progress(world: World, *, persist_after: int = HOUR, **starts: int) -> None:
    """The topic of checkpoints is made anew, and the task is taken over."""
    world.progress, world.progress_was_lost = [[]], True
    take_over(world, persist_after=persist_after, **starts)


def take_over(world: World, *, persist_after: int = HOUR, **starts: int) -> None:
    world.rules = msgspec.structs.replace(world.rules, persist_after=persist_after)
    world.tasks = [world.restored(0, **starts)]


def outcomes(world: World) -> list[int]:
    """How many outcomes each milestone has."""
    return [len(o) for source, o in world.outcomes().items() if "milestones" in source]


def balances(world: World) -> bool:
    """Whether the books say that each record that was read has an outcome or waits."""
    counts = world.tasks[0].books.counts["milestones"]
    return counts.read == counts.accepted + counts.deleted + counts.rejected + counts.parked


@pytest.mark.parametrize("decision_bytes", [1, 2**23], ids=["full", "roomy"])
def test_a_record_that_is_read_again_leaves_no_copy(decision_bytes: int) -> None:
    world = with_copies(decision_bytes=decision_bytes)
    lose_progress(world)
    assert not len(world.tasks[0].parking)
    for n in range(MANY):
        world.send("users", good("users", n))
    world.settle()
    assert world.parked == [{}]
    take_over(world)  # finds nothing: `World.restored` would say so
    world.settle()
    assert outcomes(world) == [1] * MANY
    assert balances(world)


@pytest.mark.parametrize("persist_after", [0, HOUR], ids=["copied again", "in memory"])
@pytest.mark.parametrize("decision_bytes", [1, 2**23], ids=["full", "roomy"])
def test_a_record_that_is_parked_again_is_parked_once(
    decision_bytes: int, persist_after: int
) -> None:
    world = with_copies(decision_bytes=decision_bytes)
    lose_progress(world, persist_after=persist_after)
    for _ in range(3):
        world.round(most=1)
    assert len(world.parked[0]) == MANY, "what is parked again keeps its copy"
    assert not any(world.tasks[0].parking.in_memory())
    for _ in range(2):
        take_over(world, persist_after=persist_after)
        world.settle()
        assert len(world.tasks[0].parking) == MANY
    world.now += HOUR + 1
    world.finish()
    assert outcomes(world) == [1] * MANY
    assert balances(world)


def test_a_record_that_has_expired_is_judged_by_its_copy() -> None:
    world = with_copies()
    start = FIRST_OFFSET + STEP * 5
    lose_progress(world, milestones=start)
    assert len(world.tasks[0].parking) == 5
    world.round()
    assert balances(world)
    for n in range(MANY):
        world.send("users", good("users", n))
    world.finish()
    assert sorted(outcomes(world)) == [1] * MANY
    assert balances(world)


def test_records_of_another_topic_do_not_take_the_place_of_copies() -> None:
    """Their offsets are the same, so their ordinals must not be."""
    world = with_copies()
    log = world.inputs[next(p for p in world.inputs if "milestones" in p.topic)]
    log.clear()
    send(world, range(MANY, 2 * MANY))
    world.replaced = {"milestones"}
    lose_progress(world, persist_after=0)
    assert len(world.tasks[0].parking) == MANY
    world.settle()
    assert len(world.parked[0]) == 2 * MANY
    world.replaced = set()
    take_over(world)
    assert len(world.tasks[0].parking) == 2 * MANY
    for n in range(2 * MANY):
        world.send("users", good("users", n))
    world.finish()
    assert outcomes(world) == [2] * MANY
    rows = [world.row("milestones", f"{1 + n}:{uid(n)}") for n in range(2 * MANY)]
    assert all(rows)


def test_copies_of_an_earlier_topic_are_not_mixed_up_with_later_ones() -> None:
    world = with_copies(numbers=range(2))
    world.create_anew("milestones")
    later = send(world, range(2, 5))
    world.settle()
    assert len(world.parked[0]) == 5
    lose_progress(world)
    assert [p.message.offset for p in world.tasks[0].parking] == [3, 5]
    world.settle()
    for n in range(5):
        world.send("users", good("users", n))
    world.finish()
    found = world.outcomes()
    assert [len(found[source]) for source in later] == [2, 2, 1]  # two are of either topic
    assert all(world.row("milestones", f"{1 + n}:{uid(n)}") for n in range(5))


def with_older_checkpoint() -> World:
    """A world whose log has copies of eight milestones, and a checkpoint that knows of two."""
    world = with_copies(numbers=range(2))
    kept = len(world.progress[0])
    send(world, range(2, MANY))
    world.settle()
    del world.progress[0][kept:]
    world.progress_was_lost = True
    return world


def test_with_an_older_checkpoint_it_is_the_same() -> None:
    world = with_older_checkpoint()
    # The third has expired beyond the checkpoint, so its copy alone is left of it.
    start = FIRST_OFFSET + STEP * 3
    take_over(world, milestones=start)
    world.tasks[0].reading.next["milestones"] = start  # as the reader does
    assert world.missed.behind == STEP * (MANY - 2) - 1, "the copies prove it"
    assert len(world.tasks[0].parking) == 3
    for n in range(MANY):
        world.send("users", good("users", n))
    world.settle()
    assert world.parked == [{}]
    assert balances(world)
    take_over(world)
    assert not world.missed.behind
    world.settle()
    assert outcomes(world) == [1] * MANY


def test_with_an_older_checkpoint_and_an_input_that_lost_its_end_nothing_is_lost() -> None:
    world = with_older_checkpoint()
    log = world.inputs[next(p for p in world.inputs if "milestones" in p.topic)]
    del log[5:]
    world.replaced = {"milestones"}
    take_over(world)
    assert len(world.tasks[0].parking) == MANY
    world.replaced = set()
    send(world, range(MANY, MANY + 3))  # at the offsets of those that the input has lost
    for n in range(MANY + 3):
        world.send("users", good("users", n))
    world.finish()
    assert all(world.row("milestones", f"{1 + n}:{uid(n)}") for n in range(MANY + 3))
    assert balances(world)
    # Three were read again, after their copies; three offsets belong to two records each.
    assert outcomes(world) == [1, 1, 2, 2, 2, 2, 2, 2]


def test_with_a_checkpoint_of_an_earlier_topic_copies_of_this_one_are_read_again() -> None:
    world = with_copies(numbers=range(2))
    kept = len(world.progress[0])
    world.create_anew("milestones")
    later = send(world, range(2, 5))
    world.settle()
    del world.progress[0][kept:]
    world.progress_was_lost = True
    take_over(world)
    assert world.missed.behind
    assert [p.ordinal for p in world.tasks[0].parking] == [FIRST_OFFSET, FIRST_OFFSET + STEP]
    for n in range(5):
        world.send("users", good("users", n))
    world.finish()
    found = world.outcomes()
    assert [len(found[source]) for source in later] == [2, 2, 1]  # two are of either topic
    assert balances(world)


def test_what_has_expired_beyond_the_checkpoint_is_told_once() -> None:
    world = with_copies()
    lose_progress(world)
    world.round(most=1)
    start = FIRST_OFFSET + STEP * 4
    for expired in ({"milestones": STEP * 3 - 3}, {}):
        take_over(world, milestones=start)
        assert (world.missed.expired, world.missed.behind) == (expired, 0)
        world.round(most=0)
        assert balances(world)
    assert len(world.tasks[0].parking) == 4


def test_copies_lost_with_their_topic_are_told_though_the_checkpoint_is_older() -> None:
    world = with_copies()
    names = {"internal.parked": "a"}
    task = world.tasks[0]
    task.reading.topics |= names
    world.send("users", good("users", 500))
    world.round()
    state = saved(world.rules, 0, {b"0": world.progress[0][-1]}, {}, {})
    again = Task(0, world.rules)
    again.restore(state, world.moment)
    missed = again.compare_topics(
        world.identities, world.spans(0), {"internal.parked": "b"}, outdated=True
    )
    assert missed.parked == {"milestones": MANY}
    assert again.books.incidents["parked_lost"] == MANY


def test_copies_that_the_checkpoint_accounts_for_prove_nothing() -> None:
    world = with_copies()
    lose_progress(world)
    for read in range(MANY):
        take_over(world)
        assert not world.missed.behind
        assert len(world.tasks[0].parking) == read
        world.round(most=1)
    assert len(world.parked[0]) == MANY


def test_a_copy_whose_record_expires_before_it_is_read_is_noticed() -> None:
    world = with_copies()
    lose_progress(world)
    task = world.tasks[0]
    first, second = FIRST_OFFSET, FIRST_OFFSET + STEP
    assert task.has_unneeded("milestones", first, second)
    assert not task.has_unneeded("milestones", first, first)
    assert not task.has_unneeded("users", first, second)
    world.round(most=1)
    assert not task.has_unneeded("milestones", first, second)
    assert task.has_unneeded("milestones", first, second + STEP)


def test_users_that_wait_for_their_addresses_are_read_again() -> None:
    """Their requests are repeated: replies may have been read, and are in no checkpoint."""
    world = World(partitions=2)
    for number in range(MANY):
        world.send("users", good("users", 1 + number), partition=0)
    world.round(only=[0])
    waiting = len(world.parked[0])
    assert 0 < waiting < MANY
    world.progress[0].clear()
    world.progress_was_lost = True
    world.tasks[0] = world.restored(0)
    world.round(only=[0])
    assert len(world.parked[0]) == waiting
    world.tasks[0] = world.restored(0)
    world.finish()
    found = sorted(len(outcomes) for outcomes in world.outcomes().values())
    assert found == [1] * waiting + [2] * (MANY - waiting)
    assert all(world.row("users", uid(1 + number)) for number in range(MANY))


def test_the_order_of_versions_outlives_a_restart_while_copies_are_read_again() -> None:
    """The first version has no copy: it was rejected before."""
    world = World(persist_after=0)
    first = world.send("milestones", good("milestones", 1, user_id=uid(9)))
    world.finish()
    assert world.kind(first) == "rejected"
    second = world.send("milestones", good("milestones", 1, user_id=uid(9), points=7))
    world.settle()
    lose_progress(world)
    world.settle()
    judged = world.judged()["milestones"]
    take_over(world)
    world.settle()
    assert world.judged()["milestones"] >= judged
    world.send("users", good("users", 9))
    world.finish()
    assert [len(world.outcomes()[place]) for place in (first, second)] == [2, 1]
    row = world.row("milestones", f"1:{uid(9)}")
    assert row is not None
    assert row["points"] == 7


def test_no_copy_makes_the_state_of_the_task_unreadable() -> None:
    """A foreign copy may claim any ordinal that is read as valid."""
    world = with_copies(numbers=range(1))
    (value,) = world.parked[0].values()
    copy = msgspec.msgpack.decode(value, type=Envelope)
    for generation in (2**19 - 1, 2**19, 2**20, 2**22):
        forged = msgspec.structs.replace(copy, ordinal=(generation << 40) + copy.offset)
        key = parked_key("milestones", 0, forged.ordinal)
        world.parked[0][key] = msgspec.msgpack.encode(forged)
    world.replaced = {"milestones"}
    lose_progress(world, persist_after=0)
    world.replaced = set()
    sent = send(world, range(1, 4))
    world.settle()
    assert read_progress(b"0", world.progress[0][-1], 0) is not None
    world.create_anew("milestones")
    parked = {p.message.offset for p in world.tasks[0].parking}
    assert {int(place.rpartition("/")[2]) for place in sent} <= parked
