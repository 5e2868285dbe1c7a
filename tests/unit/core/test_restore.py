"""A task that is thrown away and restored from what was committed goes on as if nothing was."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from tests.unit.core_kit import FIRST_OFFSET, GRACE, Crash, World, good, owned, uid
from worker.core.checkpoint import Checkpoint, write_checkpoint
from worker.core.decode import RecordDecoder
from worker.core.internal import read_parked
from worker.core.rejection import Rejection
from worker.stream import Headers, Partition

CRASHES: list[Crash] = ["before commit", "after commit"]


def story(world: World, moment: int | None, crash: Crash, task: int) -> dict[str, object]:
    """Records of every fate, late references, a deletion, an update; a crash at one moment."""
    steps: list[list[tuple[str, Any, str | None]]] = [
        [("checkins", good("checkins", 1), None), ("matches", good("matches", 1), None)],
        [("users", good("users", 1), None), ("milestones", good("milestones", 4, points=1), None)],
        [("milestones", good("milestones", 4, points=2), None), ("checkins", None, uid(1))],
        [("users", good("users", 2), None), ("milestones", good("milestones", 5), None)],
        [("milestones", good("milestones", 5, user_id=uid(8)), None), ("users", b"{", uid(1))],
        [("events", good("events", 1, match_id=uid(9), attendees=[uid(2), uid(3)]), None)],
    ]
    for number, step in enumerate(steps):
        for entity, record, key in step:
            world.send(entity, record, key)
        world.now += 10
        world.round(crash={task: crash} if number == moment else None)
    world.finish()
    return {
        source: [(o.kind, o.codes, o.fields, o.message.key) for o in found]
        for source, found in world.outcomes().items()
    }


@pytest.mark.parametrize("crash", CRASHES)
@pytest.mark.parametrize("task", [0, 1])
@pytest.mark.parametrize("moment", range(6))
def test_a_crash_at_any_moment_changes_no_outcome(crash: Crash, task: int, moment: int) -> None:
    undisturbed = story(World(partitions=2), None, crash, task)
    assert story(World(partitions=2), moment, crash, task) == undisturbed


def test_what_is_not_committed_is_decided_anew() -> None:
    world = World()
    sent = world.send("users", good("users", 1))
    world.round(crash={0: "before commit"})
    assert world.kind(sent) == "open"
    world.settle()
    assert world.kind(sent) == "accepted"


def test_a_restored_task_reads_on_where_it_was() -> None:
    world = World(persist_after=0)
    world.send("users", good("users", 1))
    world.send("milestones", good("milestones", 5, user_id=uid(9)))
    world.settle()
    assert world.restored(0).reading.next == world.tasks[0].reading.next
    assert [p.message for p in world.restored(0).parking] == [
        p.message for p in world.tasks[0].parking
    ]


def test_an_idle_task_writes_nothing_and_after_a_restart_its_progress_at_most() -> None:
    world = World()
    world.send("users", good("users", 1))
    world.settle()
    assert not world.round()[0].outputs
    world.tasks[0] = world.restored(0)
    assert {m.topic for m in world.round()[0].outputs} <= {world.names.progress}
    assert not world.round()[0].outputs
    assert len(set(world.progress[0])) == 1


def test_the_order_within_a_key_outlives_a_restart() -> None:
    world = World()
    for points in (1, 2, 3):
        world.send("milestones", good("milestones", 5, points=points))
        world.round()
        world.now += 5
    world.tasks[0] = world.restored(0)
    world.send("users", good("users", 1))
    world.settle()
    row = world.row("milestones", f"5:{uid(1)}")
    assert row is not None
    assert row["points"] == 3


@pytest.mark.parametrize("restart", [False, True])
def test_the_order_within_a_key_outlives_a_clock_that_goes_back(restart: bool) -> None:
    """Another machine takes the task over whose clock is behind, or the clock is put right."""
    world = World()
    for points in (1, 2, 3):
        world.send("milestones", good("milestones", 5, points=points))
        world.round()
        world.now -= 5_000
    if restart:
        world.tasks[0] = world.restored(0)
    world.now += 15_000
    world.send("users", good("users", 1))
    world.settle()
    row = world.row("milestones", f"5:{uid(1)}")
    assert row is not None
    assert row["points"] == 3


@pytest.mark.parametrize("restart", [False, True])
def test_no_match_counts_as_judged_while_parked_after_a_clock_that_goes_back(
    restart: bool,
) -> None:
    world = World()
    for number in (1, 2, 3):
        world.send("matches", good("matches", number))
        world.round()
        world.now -= 5_000
    if restart:
        world.tasks[0] = world.restored(0)
    world.now += 15_000
    world.send("users", good("users", 5))
    world.settle()
    assert world.judged()["matches"] == 0


def test_the_grace_ends_for_all_after_a_clock_that_goes_back() -> None:
    world = World()
    first = world.send("milestones", good("milestones", 1))
    world.round()
    world.now -= 20_000
    second = world.send("milestones", good("milestones", 2))
    world.round()
    world.now += 20_000 + GRACE
    world.settle()
    assert [world.kind(first), world.kind(second)] == ["rejected", "rejected"]


def test_what_came_to_be_known_while_the_task_was_away_releases_what_waits() -> None:
    world = World(partitions=2)
    sent = world.send("milestones", good("milestones", 5), partition=0)
    world.round(only=[0])
    world.send("users", good("users", 1, email=owned(1, 2)), partition=1)
    for _ in range(3):
        world.round(only=[1])
    world.follow()
    world._pending[0] = ([], [])  # another worker takes over: nobody told it
    world.tasks[0] = world.restored(0)
    world.round(only=[0])
    assert world.kind(sent) == "accepted"


@pytest.mark.parametrize(
    "headers",
    [
        (("trace", b"x" * 1_500_000), ("buddy-replays", b"2")),
        (("buddy-replays", b"2"), ("buddy-replays", b"x" * 1_600_000)),
        (("buddy-replays", b"2"), *[("buddy-replays", b"3")] * 100_000),
        (("buddy-replays", b"2" * 1_600_000), ("buddy-replays", b"2")),
        (("x" * 1_500_000, b""), ("buddy-replays", b"2")),
    ],
    ids=["another", "a second", "many", "the first", "its name"],
)
def test_a_parked_record_with_headers_of_any_size_can_be_kept(headers: Headers) -> None:
    world = World(persist_after=0)
    sent = world.send("milestones", good("milestones", 5), headers=headers)
    world.round()
    [envelope] = world.parked[0].values()
    assert len(envelope) <= world.rules.rejection_limit
    kept = read_parked(next(iter(world.parked[0])), envelope, 0, world.names)
    assert kept is not None
    count = b"%d" % min(len(headers), 99_999)
    assert kept.headers == (("buddy-headers-omitted", count), ("buddy-replays", b"2"))
    world.tasks[0] = world.restored(0)
    world.send("users", good("users", 1))
    world.settle()
    assert world.kind(sent) == "accepted"


def test_the_rejection_of_a_copy_without_its_headers_says_so() -> None:
    world = World(persist_after=0)
    headers = (("trace", b"x" * 1_500_000), ("other", b""))
    sent = world.send("milestones", good("milestones", 5, user_id=uid(9)), headers=headers)
    world.round()
    world.tasks[0] = world.restored(0)
    world.finish()
    outcome = world.outcome(sent)
    assert outcome is not None
    told = msgspec.json.decode(outcome.message.value or b"", type=Rejection)
    assert told.headers_omitted == 2
    assert not told.is_whole


def test_a_copy_that_cannot_be_decoded_again_is_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(persist_after=0)
    sent = world.send("milestones", good("milestones", 5, user_id=uid(9)))
    world.settle()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(RecordDecoder, "decode", fail)
        world.tasks[0] = world.restored(0)
    world.settle()
    outcome = world.outcome(sent)
    assert outcome is not None
    assert (outcome.kind, outcome.codes) == ("rejected", ("internal_error",))
    assert world.parked[0] == {}


def test_a_copy_of_a_record_that_will_be_read_again_is_not_restored() -> None:
    """Its owner had persisted it and been fenced before the checkpoint said so."""
    world = World(persist_after=0)
    world.send("milestones", good("milestones", 5, user_id=uid(9)))
    world.settle()
    last = msgspec.json.decode(world.progress[0][-1], type=Checkpoint)
    before = Checkpoint(last.next | {"milestones": FIRST_OFFSET}, last.judged, last.topics)
    world.progress[0].append(write_checkpoint(before))
    task = world.restored(0)
    assert (len(task.parking), task.reading.next["milestones"]) == (0, FIRST_OFFSET)


def test_a_deletion_whose_user_has_lost_its_copy_is_settled_when_restored() -> None:
    world = World(partitions=2, persist_after=0)
    lost = world.send("users", good("users", 1, email=owned(1, 2)), partition=0)
    gone = world.delete("users", uid(1), partition=0)
    world.round(only=[0])
    assert len(world.parked[0]) == 2, "the deletion queues behind the user that waits"
    del world.parked[0][b"users/0/3"]
    world.parked_lost = {"users": 1}
    world.tasks[0] = world.restored(0)
    world.parked_lost = {}
    world.round(only=[0])
    assert (world.kind(lost), world.kind(gone)) == ("open", "deleted")


def test_garbage_among_requests_and_replies_is_entered_in_the_books() -> None:
    world = World()
    world.settle()
    for name in ("claims", "grants"):
        place = Partition(world.names.input(name), 0)
        world._append(place, world.now, b"0/1", b"garbage", ())
    world.round()
    last = msgspec.json.decode(world.progress[0][-1], type=Checkpoint)
    assert last.incidents["unreadable_internal"] == 2
    assert world.restored(0).books.incidents["unreadable_internal"] == 2
