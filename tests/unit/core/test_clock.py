"""A task whose wall clock is set: no wait becomes longer, and no verdict comes before its time."""

from __future__ import annotations

import json

import pytest

from tests.unit.core_kit import GRACE, World, good, uid

HOUR = 3_600_000
STEPS = [-24 * HOUR, -HOUR, HOUR, 24 * HOUR]


def orphan(world: World, number: int) -> str:
    return world.send("milestones", good("milestones", number, user_id=uid(900)))


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("parked_before", [True, False])
def test_the_grace_is_as_long_as_ever_when_the_clock_is_set(step: int, parked_before: bool) -> None:
    world = World()
    if parked_before:
        lost = orphan(world, 1)
        world.settle()
        world.stepped = step
    else:
        world.stepped = step
        lost = orphan(world, 1)
        world.settle()
    world.now += GRACE - 1
    world.settle()
    assert world.kind(lost) == "open"
    world.now += 1
    world.settle()
    assert world.kind(lost) == "rejected"


@pytest.mark.parametrize("persist_after", [0, 10_000], ids=["kept", "held"])
def test_a_clock_that_was_a_day_ahead_for_a_moment_holds_up_nobody_after_a_restart(
    persist_after: int,
) -> None:
    world = World(persist_after=persist_after)
    world.stepped = 24 * HOUR
    first = orphan(world, 1)
    world.settle()
    world.stepped = 0
    second = orphan(world, 2)
    world.settle()
    world.tasks[0] = world.restored(0)
    world.now += GRACE
    world.settle()
    assert (world.kind(first), world.kind(second)) == ("rejected", "rejected")


@pytest.mark.parametrize("step", STEPS)
def test_what_is_held_gets_its_copy_in_time_whatever_the_clock_says(step: int) -> None:
    world = World()
    orphan(world, 1)
    world.settle()
    world.stepped = step
    world.now += world.rules.persist_after
    assert world.tasks[0].has_to_persist(world.moment)
    world.settle()
    assert len(world.parked[0]) == 1


def test_stamps_that_leave_are_of_the_wall_clock() -> None:
    world = World()
    world.stepped = HOUR
    world.send("users", b"{")
    world.settle()
    (rejected,) = [m for m in world.committed if ".rejected." in m.topic]
    assert json.loads(rejected.value or b"")["rejected_at"] == "2026-01-01T01:00:00Z"


def test_a_clock_that_was_set_back_takes_the_present_for_no_future() -> None:
    world = World()
    world.stepped = -HOUR
    sent = world.send("users", good("users", 1, joined_at="2026-01-01T00:00:00Z"))
    late = world.send("users", good("users", 2, joined_at="2026-01-01T00:01:00.001Z"))
    world.settle()
    assert (world.kind(sent), world.kind(late)) == ("accepted", "rejected")
