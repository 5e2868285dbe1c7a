"""An input that has lost its last records: what is left is judged once, and what is new too."""

from __future__ import annotations

from collections import Counter

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.core_kit import FIRST_OFFSET, GRACE, NOW, STEP, World, good, uid
from worker.core.checkpoint import Checkpoint, write_checkpoint
from worker.core.moments import Moment
from worker.core.reading import Reading
from worker.core.topics import TASK_INPUTS


def saved(world: World) -> Checkpoint:
    return msgspec.json.decode(world.progress[0][-1], type=Checkpoint)


def kinds(world: World, source: str) -> list[str]:
    return [outcome.kind for outcome in world.outcomes()[source]]


def users(world: World, first: int, count: int) -> list[str]:
    return [world.send("users", good("users", first + number)) for number in range(count)]


@pytest.mark.parametrize("records", [0, 1, 2, 5])
def test_reading_goes_on_at_the_end(records: int) -> None:
    world = World()
    old = users(world, 1, 4)
    world.settle()
    world.truncate("users", 2)
    assert world.missed.truncated == {"users": 2 * STEP}
    assert (world.missed.recreated, world.missed.expired) == ((), {})
    assert world.tasks[0].reading.next["users"] == FIRST_OFFSET + 2 * STEP
    new = users(world, 10, records)
    world.settle()
    assert [kinds(world, s) for s in old[:2]] == [["accepted"]] * 2
    again = {s for s in new if s in old}
    assert {tuple(kinds(world, s)) for s in again} <= {("accepted", "accepted")}
    assert {tuple(kinds(world, s)) for s in {*new} - again} <= {("accepted",)}
    assert saved(world).incidents["input_truncated"] == 2 * STEP
    assert saved(world).earlier == {"users": 1}
    assert saved(world).judged["users"] == FIRST_OFFSET + STEP * (2 + records)
    world.tasks = [world.restored(0)]
    assert world.missed.truncated == {}, "it is told once"


def test_an_input_that_is_whole_is_not_truncated() -> None:
    world = World()
    users(world, 1, 3)
    world.settle()
    users(world, 10, 1)
    world.truncate("users", 1)  # which nobody had read
    assert world.missed.truncated == {}
    assert saved(world).earlier == {}


def test_records_in_memory_are_read_again_or_gone() -> None:
    world = World()
    kept, lost = (
        world.send("milestones", good("milestones", number, user_id=uid(7))) for number in (1, 2)
    )
    world.settle()
    assert saved(world).in_memory["milestones"]
    world.truncate("milestones", 1)
    assert world.missed.truncated == {"milestones": STEP}
    assert world.missed.expired == {"milestones": 1}
    assert world.tasks[0].reading.next["milestones"] == FIRST_OFFSET
    new = world.send("milestones", good("milestones", 3, user_id=uid(8)))
    assert new == lost
    world.settle()
    assert saved(world).counts["milestones"].parked == 2
    world.send("users", good("users", 7))
    world.send("users", good("users", 8))
    world.settle()
    assert (kinds(world, kept), kinds(world, new)) == (["accepted"], ["accepted"])


def test_a_truncation_while_records_are_read_again_ends_that_there() -> None:
    world = World()
    kept = world.send("milestones", good("milestones", 1, user_id=uid(7)))
    known = users(world, 1, 1)
    done = [world.send("milestones", good("milestones", 2 + n, user_id=uid(1))) for n in range(3)]
    world.settle()
    world.truncate("milestones", 2)
    world.truncate("milestones", 0)  # and once more, before a round
    new = [world.send("milestones", good("milestones", 8 + n, user_id=uid(1))) for n in range(2)]
    world.send("users", good("users", 7))
    world.settle()
    assert [kinds(world, s) for s in (kept, done[0], *known)] == [["accepted"]] * 3
    assert [kinds(world, s) for s in new] == [["accepted"] * 2] * 2


def test_a_copy_of_a_lost_record_and_the_record_at_its_offset_are_two() -> None:
    world = World(persist_after=0)
    lost = world.send("milestones", good("milestones", 1, user_id=uid(7), points=1))
    world.settle()
    world.truncate("milestones", 1)
    new = world.send("milestones", good("milestones", 1, user_id=uid(7), points=2))
    assert new == lost
    world.settle()
    assert len(world.parked[0]) == 2
    assert saved(world).judged["milestones"] == -1, "frontiers wait for the copy"
    world.tasks = [world.restored(0)]
    world.send("users", good("users", 7))
    world.settle()
    assert kinds(world, new) == ["accepted"] * 2
    row = world.row("milestones", f"1:{uid(7)}")
    assert row is not None
    assert row["points"] == 2, "the order within the key holds"


def test_a_match_that_is_gone_from_its_input_keeps_verdicts_waiting() -> None:
    world = World(persist_after=0)
    world.send("matches", good("matches", 1, participant_id=uid(7), buddy_id=uid(8)))
    world.settle()
    world.truncate("matches", 1)
    world.settle()
    orphan = world.send("checkins", good("checkins", 3, match_id=uid(1)))
    world.settle()
    for number in (7, 8):
        world.send("users", good("users", number))
    world.now += GRACE
    world.settle()
    assert world.outcomes()[orphan][0].codes == ()


def test_without_identities_nothing_is_truncated() -> None:
    world = World()
    world.identities = dict.fromkeys(TASK_INPUTS, "")
    users(world, 1, 2)
    world.settle()
    world.truncate("users", 1)
    assert (world.missed.truncated, world.missed.recreated) == ({}, ())
    assert world.tasks[0].reading.next["users"] == FIRST_OFFSET + 2 * STEP


def test_a_checkpoint_that_names_no_topics_may_be_of_another_one() -> None:
    world = World()
    users(world, 1, 2)
    world.settle()
    old = saved(world)
    world.progress[0] = [write_checkpoint(msgspec.structs.replace(old, topics={}))]
    world.truncate("users", 1)
    assert (world.missed.truncated, world.missed.recreated) == ({}, ("users",))
    assert world.tasks[0].reading.next["users"] == FIRST_OFFSET


@pytest.mark.parametrize("topic", ["claims", "grants"])
def test_an_address_is_asked_for_again_where_question_or_answer_is_gone(topic: str) -> None:
    world = World(partitions=2)
    for number in range(8):
        world.send("users", good("users", 1 + number), partition=0)
    world.round(only=[0])
    assert world.parked[0]
    if topic == "claims":
        world.round(only=[1])
        world.truncate(topic, len(world.parked[0]), partition=1)
    else:
        world.round(only=[1])
        world.round(only=[0])
        assert not world.parked[0]
        world.truncate(topic, 1, partition=0)
    assert list(world.missed.truncated) == [topic]
    world.finish()
    assert sum(".accepted.users" in m.topic for m in world.committed) == 8


def test_the_latest_append_time_is_kept() -> None:
    world = World()
    users(world, 1, 1)
    world.settle()
    assert saved(world).arrived == {"users": NOW}
    world.send("users", good("users", 2), timestamp=NOW - 5)  # the broker's clock was set
    world.send("milestones", good("milestones", 1, user_id=uid(1)), appended=False)
    world.settle()
    assert saved(world).arrived == {"users": NOW}
    world.tasks = [world.restored(0)]
    for timestamp in (NOW + 7, NOW + 3):
        world.send("users", good("users", 3), timestamp=timestamp)
    world.settle()
    assert saved(world).arrived == {"users": NOW + 7}


def test_copies_of_judged_records_are_told() -> None:
    """The topic of parked records has lost its last messages: the removals of the copies."""
    world = World(persist_after=0)
    for number in (1, 2):
        world.send("milestones", good("milestones", number, user_id=uid(7)))
    world.settle()
    copies = dict(world.parked[0])
    world.send("users", good("users", 7))
    world.settle()
    assert not world.parked[0]
    world.parked[0] = copies
    world.surplus = 2
    task = world.restored(0)
    assert task.doubtful
    assert task.books.incidents["internal_truncated"] == 1


@pytest.mark.parametrize(
    ("committed", "behind"), [({}, 0), ({"users": 2}, 0), ({"users": 3, "claims": 9}, 1)]
)
def test_group_offsets_beyond_the_checkpoint_are_told(
    committed: dict[str, int], behind: int
) -> None:
    reading = Reading()
    reading.restore(Checkpoint({"users": 2}, {}, {"users": "a"}), Moment(NOW, NOW))
    assert reading.behind(committed) == behind
    reading.earlier = {"users": 1}
    assert reading.behind(committed) == 0, "they may be of the topic before"


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("users"), st.integers(1, 3)),
        st.tuples(st.just("milestones"), st.integers(1, 3)),
        st.tuples(st.just("truncate users"), st.integers(1, 4)),
        st.tuples(st.just("truncate milestones"), st.integers(1, 4)),
        st.tuples(st.sampled_from(["round", "settle", "take over"]), st.integers(1, 2)),
    ),
    max_size=14,
)


@given(STEPS, st.sampled_from([0, 10_000]))
def test_no_record_is_judged_twice_and_none_that_is_left_is_forgotten(
    steps: list[tuple[str, int]], persist_after: int
) -> None:
    world = World(persist_after=persist_after)
    sent = 0
    for what, count in steps:
        if what in {"users", "milestones"}:
            for _ in range(count):
                sent += 1
                # Half of the milestones refer to a user that comes later, or never.
                about = {"user_id": uid(sent - 1 + 2 * (sent % 2))} if what == "milestones" else {}
                world.send(what, good(what, sent, **about))
        elif what.startswith("truncated"):
            name = what.split()[1]
            log = world.inputs[next(p for p in world.inputs if p.topic == world.names.input(name))]
            world.truncate(name, min(count, len(log)))
        elif what == "round":
            world.round(count)
        elif what == "settle":
            world.settle()
        else:
            world.tasks = [world.restored(0)]
    world.finish()
    judged = Counter(_records(world))
    assert not {record for record, times in judged.items() if times > 1}
    left = {
        (world.names.entity_of(place.topic), message.value)
        for place, log in world.inputs.items()
        for message in log
        if place.topic in {world.names.input("users"), world.names.input("milestones")}
    }
    expected = {(entity, _key(entity, value)) for entity, value in left}
    assert expected <= judged.keys()


def _records(world: World) -> list[tuple[str, str]]:
    """The entity and the own number of each record with an outcome, once for each outcome."""
    found = []
    for message in world.committed:
        kind, _, entity = message.topic.removeprefix(f"{world.names.prefix}.").partition(".")
        if kind == "accepted":
            found.append((entity, _key(entity, message.value)))
        elif kind == "rejected":
            record = msgspec.json.decode(message.value or b"")["record"]
            found.append((entity, _key(entity, msgspec.json.encode(record))))
    return found


def _key(entity: str, value: bytes | None) -> str:
    record = msgspec.json.decode(value or b"")
    return str(record["id"] if entity == "users" else record["milestone_id"])
