"""The state of a running task, written again: its topics were recreated or emptied under it."""

from __future__ import annotations

import msgspec

from tests.unit.core_kit import World, good, owned

TOPICS = ("internal.progress", "internal.parked", "internal.granted", "internal.owners")


def written(world: World, number: int) -> set[str]:
    """The topics that the next round of a task writes to."""
    decision = world.round(only=[number])[number]
    return {message.topic.partition(".")[2] for message in decision.outputs}


def test_copies_owner_and_checkpoint_are_written_again() -> None:
    world = World(persist_after=0)
    world.send("milestones", good("milestones", 5))
    world.settle()
    task, before = world.tasks[0], world.parked[0]
    task.owner = "me"
    world.parked[0] = {}
    task.write_again(dict.fromkeys(TOPICS, "two"))
    assert task.writes_again
    assert written(world, 0) == {"internal.parked", "internal.owners", "internal.progress"}
    assert world.parked[0] == before
    assert not task.writes_again
    assert task.reading.topics["internal.parked"] == "two"
    assert written(world, 0) == set()


def test_reservations_are_written_again() -> None:
    world = World(partitions=2)
    world.send("users", good("users", 2, email=owned(1, 2)), partition=0)
    world.round(only=[0])
    world.round(only=[1])
    task, before = world.tasks[1], world.granted[1]
    assert len(before) == 1
    world.granted[1] = {}
    task.write_again({})
    assert "internal.granted" in written(world, 1)
    assert world.granted[1] == before


def test_a_record_that_is_settled_in_the_same_round_gets_no_copy() -> None:
    world = World(persist_after=0)
    sent = world.send("milestones", good("milestones", 5))
    world.settle()
    task = world.tasks[0]
    task.write_again({})
    world.send("users", good("users", 1))
    decision = world.round(only=[0])[0]
    copies = [m.value for m in decision.outputs if m.topic == world.names.parked]
    assert (world.kind(sent), copies) == ("accepted", [None])


def test_copies_are_written_again_bit_by_bit() -> None:
    world = World(persist_after=0)
    for number in range(1, 9):
        world.send("milestones", good("milestones", number, title="x" * 200))
    world.settle()
    task = world.tasks[0]
    task.settings = msgspec.structs.replace(task.settings, decision_bytes=1_000)
    task.write_again({})
    rounds = 0
    while task.writes_again:
        world.parked[0] = {}
        world.round(only=[0])
        rounds += 1
    assert rounds > 2


def test_earlier_owners_are_struck_out_once() -> None:
    world = World()
    world.settle()
    task = world.tasks[0]
    task.strike_out(["one", "two"])
    written = [m for m in world.round(only=[0])[0].outputs if m.topic == world.names.owners]
    assert [(m.key, m.value) for m in written] == [(b"one", None), (b"two", None)]
    assert not any(m.topic == world.names.owners for m in world.round(only=[0])[0].outputs)
