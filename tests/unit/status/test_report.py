"""What the report says; the end-to-end test is in tests/contract."""

from __future__ import annotations

import msgspec

from schemas import ENTITIES
from tests.unit.status.status_kit import ALL_READ, EVENTS, NOW, USERS, answers, checkpoint
from worker.core.checkpoint import Checkpoint, Counts
from worker.status.broker_answers import TaskCheckpoint
from worker.status.report import report, time_of
from worker.stream import GroupMember, Partition


def test_counts_are_summed_over_the_tasks() -> None:
    counts = Counts(read=5, accepted=2, deleted=1, rejected=1, parked=1)
    tasks = {
        0: TaskCheckpoint(
            checkpoint(counts={"users": counts, "events": counts}, worker="a", since=NOW), NOW
        ),
        1: TaskCheckpoint(
            checkpoint(
                counts={"users": counts},
                incidents={"input_expired": 3, "clock_stepped": 0},
                oldest=NOW - 1_000,
            ),
            None,
            unreadable=2,
        ),
    }
    base = answers()
    ends = {**base.ends, EVENTS: 14, USERS: 7}  # users were appended between the two requests
    found = report(answers(tasks=tasks, ends=ends, exact=False), {EVENTS: 4, USERS: 2})
    users = msgspec.structs.asdict(found.entities["users"])
    assert users == {name: 2 * n for name, n in msgspec.structs.asdict(counts).items()} | {
        "lag": 2,
        "blocked": 0,
    }
    assert (found.entities["events"].lag, found.entities["events"].blocked) == (4, 4)
    assert list(found.entities) == list(ENTITIES)
    first, second = found.tasks
    assert (first.owner, first.worker, first.since) == ("w", "a", "2023-11-14T22:13:20Z")
    assert (first.committed, first.parked, first.lag) == ("2023-11-14T22:13:20Z", 2, 2)
    assert (second.owner, second.worker, second.since, second.committed) == ("w", None, None, None)
    assert found.oldest_parked == "2023-11-14T22:13:19Z"
    assert found.incidents == {"input_expired": 3}
    assert found.unreadable_progress == 2
    assert not found.lag_is_exact
    assert [worker.tasks for worker in found.workers] == [[0, 1]]


def test_what_was_skipped_is_told_by_topic_and_of_this_prefix_alone() -> None:
    names = ("p.rejected.users", "p.exports", "other.exports")
    skipped = {Partition(name, number): 2 for name in names for number in (0, 1)}
    found = report(answers(skipped=skipped), {})
    assert found.skipped == {"p.rejected.users": 4, "p.exports": 4}


def test_without_a_lag_it_is_exact_on_every_broker() -> None:
    assert report(answers(exact=False), {}).lag_is_exact
    assert report(answers(exact=True), {USERS: 4}).lag_is_exact


def test_of_two_sinks_one_is_active() -> None:
    pair = [GroupMember("one", frozenset()), GroupMember("two", frozenset({0}))]
    found = report(answers(sinks=pair), {})
    assert found.sinks is not None
    assert [(sink.name, sink.active) for sink in found.sinks] == [("one", False), ("two", True)]
    assert report(answers(sinks=None), {}).sinks is None


def test_a_stamp_that_no_clock_ever_said_is_unknown() -> None:
    assert time_of(2**62) is None
    assert time_of(None) is None


def test_what_no_book_was_kept_of_is_unknown() -> None:
    """After an upgrade, until a worker has committed; a task that never began has done nothing."""
    old = TaskCheckpoint(Checkpoint(ALL_READ, {}), NOW)
    found = report(answers(tasks={0: old, 1: TaskCheckpoint(checkpoint(), NOW)}), {})
    users = found.entities["users"]
    assert (users.read, users.parked, users.lag) == (None, None, 0)
    assert [task.parked for task in found.tasks] == [None, 0]
    assert (
        report(answers(tasks={0: TaskCheckpoint(), 1: TaskCheckpoint()}), {}).entities["users"].read
        == 0
    )


def test_the_order_in_which_a_broker_lists_members_is_not_told() -> None:
    members = [GroupMember(name, frozenset()) for name in ("b", "a")]
    found = report(answers(workers=members, sinks=members), {})
    assert [worker.name for worker in found.workers] == ["a", "b"]
    assert found.sinks is not None
    assert [sink.name for sink in found.sinks] == ["a", "b"]
