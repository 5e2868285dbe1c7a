"""An input's topic that is deleted and created anew: read from its start, and nothing mixed up."""

from __future__ import annotations

import msgspec
import pytest

from tests.unit import core_kit
from tests.unit.core_kit import FIRST_OFFSET, GRACE, STEP, World, good, uid
from worker.core.books import Books
from worker.core.checkpoint import Checkpoint, Counts
from worker.core.known import IndexDelta
from worker.core.recent import RecentRows
from worker.core.round import Decision, Round, TaskBatch
from worker.core.task import Task
from worker.core.topics import TASK_INPUTS
from worker.stream import OffsetRange


def kinds(world: World, source: str) -> list[str]:
    return [outcome.kind for outcome in world.outcomes()[source]]


def alone(world: World, task: Task, batch: TaskBatch) -> Decision:
    """What a worker decides whose only task this is; its index is synchronised."""
    one = Round({task.number: task}, {task.number: batch}, RecentRows(world.index))
    return one.decide(IndexDelta([], []), world.moment, synchronised=True)


def saved(world: World) -> Checkpoint:
    return msgspec.json.decode(world.progress[0][-1], type=Checkpoint)


@pytest.mark.parametrize("records", [1, 3, 5], ids=["fewer", "as many", "more"])
def test_it_is_read_from_its_start(records: int) -> None:
    world = World()
    for number in range(3):
        world.send("users", good("users", 1 + number))
    world.settle()
    world.create_anew("users")
    assert world.missed.recreated == ("users",)
    assert world.tasks[0].reading.next["users"] == FIRST_OFFSET
    sent = [world.send("users", good("users", 10 + number)) for number in range(records)]
    world.settle()
    before = ["accepted"] * 2
    assert [kinds(world, s) for s in sent] == [
        before if place < 3 else ["accepted"] for place in range(records)
    ]
    assert saved(world).topics["users"] == "one'"
    assert saved(world).incidents["input_recreated"] == 1
    assert saved(world).counts["users"] == Counts(read=3 + records, accepted=3 + records)


def test_the_same_topic_is_not_read_again() -> None:
    world = World()
    world.send("users", good("users", 1))
    world.settle()
    world.tasks = [world.restored(0)]
    assert world.missed.recreated == ()
    assert world.tasks[0].reading.next["users"] == FIRST_OFFSET + STEP


def test_a_broker_without_identities_recreates_nothing() -> None:
    world = World()
    world.identities = dict.fromkeys(TASK_INPUTS, "")
    world.send("users", good("users", 1))
    world.settle()
    world.tasks = [world.restored(0)]
    assert world.missed.recreated == ()


def test_a_kept_record_of_the_old_topic_and_one_of_the_new_at_its_offset_are_two() -> None:
    world = World(persist_after=0)
    place = world.send("milestones", good("milestones", 1, user_id=uid(7)))
    world.settle()
    world.create_anew("milestones")
    assert world.send("milestones", good("milestones", 2, user_id=uid(8))) == place
    world.settle()
    assert len(world.parked[0]) == 2
    assert saved(world).counts["milestones"].parked == 2
    world.tasks = [world.restored(0)]
    world.send("users", good("users", 7))
    world.settle()
    assert [m.key for m in world.committed if ".accepted.milestones" in m.topic] == [
        b"1:" + uid(7).encode()
    ]
    world.send("users", good("users", 8))
    world.settle()
    assert kinds(world, place) == ["accepted", "accepted"]
    assert world.parked[0] == {}


def test_records_of_one_key_stay_in_order_across_the_topics() -> None:
    world = World(persist_after=0)
    world.send("milestones", good("milestones", 1, user_id=uid(7), points=1))
    world.settle()
    world.create_anew("milestones")
    world.send("milestones", good("milestones", 1, user_id=uid(7), points=2))
    world.settle()
    world.tasks = [world.restored(0)]
    world.send("users", good("users", 7))
    world.settle()
    row = world.row("milestones", f"1:{uid(7)}")
    assert row is not None
    assert row["points"] == 2


def test_a_match_of_the_old_topic_that_waits_keeps_verdicts_waiting() -> None:
    world = World(persist_after=0)
    world.send("matches", good("matches", 1, participant_id=uid(7), buddy_id=uid(8)))
    world.settle()
    world.create_anew("matches")
    assert world.tasks[0].parking.count("matches") == 1
    world.settle()
    assert saved(world).judged["matches"] == -1
    orphan = world.send("checkins", good("checkins", 3, match_id=uid(1)))
    world.settle()
    for number in (7, 8):
        world.send("users", good("users", number))
    world.now += GRACE
    world.settle()
    # The match has come, so nothing was missing; the new topic, which is empty, is judged.
    assert world.outcomes()[orphan][0].codes == ()
    assert saved(world).judged["matches"] == FIRST_OFFSET


def test_held_records_are_lost_with_the_topic_and_counted() -> None:
    world = World()
    world.send("milestones", good("milestones", 1, user_id=uid(7)))
    world.settle()
    world.create_anew("milestones")
    assert world.missed.expired["milestones"] == 1 + FIRST_OFFSET
    world.settle()
    assert saved(world).in_memory == {}


@pytest.mark.parametrize("topic", ["claims", "grants"])
def test_an_address_is_asked_for_again_where_question_or_answer_went_with_a_topic(
    topic: str,
) -> None:
    world = World(partitions=2)
    for number in range(8):  # some of their addresses are owned by the other task
        world.send("users", good("users", 1 + number), partition=0)
    world.round(only=[0])
    waiting = len(world.parked[0])
    assert waiting > 0
    world.create_anew(topic)
    world.finish()
    assert sum(".accepted.users" in m.topic for m in world.committed) == 8


def test_a_grant_whose_settlement_went_with_the_claims_ends_all_the_same() -> None:
    world = World(partitions=2)
    for number in range(8):
        world.send("users", good("users", 1 + number), partition=0)
    for task in (0, 1, 0):  # asked, granted, judged: the settlements are in claims
        world.round(only=[task])
    assert len(world.tasks[1].addresses) > 0
    world.create_anew("claims")
    world.finish()
    assert [len(task.addresses) for task in world.tasks] == [0, 0]
    assert sum(".accepted.users" in m.topic for m in world.committed) == 8


@pytest.mark.parametrize("topic", ["claims", "grants"])
def test_a_worker_that_stops_before_it_has_asked_again_leaves_that_to_the_next_one(
    topic: str,
) -> None:
    world = World(partitions=2)
    for number in range(8):
        world.send("users", good("users", 1 + number), partition=0)
    world.round(only=[0])
    world.create_anew(topic)
    assert [task.flush_parked(world.moment) for task in world.tasks] == [[], []]
    world.tasks = [world.restored(number) for number in range(2)]
    world.finish()
    assert sum(".accepted.users" in m.topic for m in world.committed) == 8


def test_what_was_gone_before_the_first_start_is_missed() -> None:
    world = World()
    task = world.restored(0, users=FIRST_OFFSET + 40)
    assert world.missed.expired["users"] == FIRST_OFFSET + 40
    assert task.books.incidents["input_expired"] == FIRST_OFFSET * 8 + 40


@pytest.mark.parametrize("persist_after", [0, 10_000], ids=["kept", "held"])
def test_parked_records_whose_copies_are_gone_are_counted(persist_after: int) -> None:
    world = World(persist_after=persist_after)
    for number in (1, 2, 3):
        world.send("milestones", good("milestones", number, user_id=uid(7)))
    world.settle()
    lost = len(world.parked[0])
    assert lost == (0 if persist_after else 3)
    world.parked[0].clear()
    world.parked_lost = {"milestones": lost} if lost else {}
    world.tasks = [world.restored(0)]
    world.settle()
    assert saved(world).incidents.get("parked_lost", 0) == lost
    assert saved(world).counts["milestones"].parked == 3 - lost


@pytest.mark.parametrize("copies", ["all", "none"])
def test_a_release_without_books_said_where_the_first_parked_record_was(copies: str) -> None:
    world = World(persist_after=0)
    for number in (1, 2, 3):
        world.send("milestones", good("milestones", number, user_id=uid(7)))
    world.settle()
    old = saved(world)
    world.progress[0] = [msgspec.json.encode({"next": old.next, "judged": old.judged})]
    if copies == "none":
        world.parked[0].clear()
        world.parked_lost = {"milestones": 1}  # at least
    world.tasks = [world.restored(0)]
    assert dict(world.missed.parked) == world.parked_lost


def test_what_a_release_without_books_held_was_not_parked() -> None:
    world = World()
    world.send("milestones", good("milestones", 1, user_id=uid(7)))
    world.settle()
    old = saved(world)
    fields = {"next": old.next, "judged": old.judged, "held": old.in_memory}
    world.progress[0] = [msgspec.json.encode(fields)]
    world.tasks = [world.restored(0)]
    assert not world.missed.parked


def test_a_kind_that_stays_in_the_log_is_found_once() -> None:
    books = Books()
    assert books.note_faults("internal_skipped", "parked A", 3) == 3
    assert books.note_faults("internal_skipped", "parked A", 3) == 0
    assert books.note_faults("internal_skipped", "parked A", 5) == 2
    assert books.note_faults("internal_skipped", "parked B", 1) == 1  # created anew
    books.incident("unreadable_internal", 9)  # in claims
    assert books.note_faults("unreadable_internal", "parked B", 1) == 1
    assert books.incidents == {"internal_skipped": 6, "unreadable_internal": 10}


def test_where_the_log_has_a_hole_addresses_are_asked_for_again() -> None:
    """The end of a record may have been in the hole: nobody would answer what it had asked."""
    world = World(partitions=2)
    for number in range(8):
        world.send("users", good("users", 1 + number), partition=0)
    world.round(only=[0])
    task = Task(0, world.rules)
    progress = {b"0": world.progress[0][-1]}
    kept = core_kit.saved(world.rules, 0, progress, world.parked[0], {})
    task.restore(msgspec.structs.replace(kept, doubtful=True), world.moment)
    task.compare_topics(world.identities, world.spans(0))
    decision = alone(world, task, TaskBatch([], {}))
    asked = [m for m in decision.outputs if m.topic == world.names.claims]
    assert len(asked) == len(world.parked[0]) > 0


def test_other_topics_that_were_created_anew_are_noticed_by_the_progress_alone() -> None:
    world = World()
    first = {
        "accepted.users": "a",
        "accepted.matches": "b",
        "rejected.users": "c",
        "internal.progress": "d",
        "internal.granted": "e",
        "internal.owners": "g",
    }
    task = Task(0, world.rules)
    spans = dict.fromkeys(TASK_INPUTS, OffsetRange(0, 10**6))
    assert task.compare_topics(world.identities, spans, first).others == ()
    world.send("users", good("users", 1))
    decision = alone(world, task, TaskBatch(*world._read(world.tasks[0], None)))
    value = next(m.value for m in decision.outputs if m.topic == world.names.progress)
    again = Task(0, world.rules)
    again.restore(core_kit.saved(world.rules, 0, {b"0": value or b""}, {}, {}), world.moment)
    anew = (
        "accepted.users",
        "rejected.users",
        "internal.progress",
        "internal.granted",
        "internal.owners",
    )
    missed = again.compare_topics(world.identities, spans, first | dict.fromkeys(anew, "f"))
    assert missed.others == anew
    assert again.books.incidents["accepted_recreated"] == 1
    assert again.books.incidents["rejected_recreated"] == 1
    assert again.books.incidents["internal_recreated"] == 3
