"""The newest readable checkpoint of a task, and what is still to be read."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.status.status_kit import (
    ALL_READ,
    NOW,
    USERS,
    answers,
    behind,
    checkpoint,
    message,
    progress,
)
from worker.core.checkpoint import Checkpoint
from worker.status.broker_answers import TaskCheckpoint, latest_checkpoint, unread
from worker.status.report import report
from worker.stream import Message, OffsetRange


def test_the_newest_progress_counts() -> None:
    found = latest_checkpoint([message(progress(users=1)), message(progress(users=2), at=NOW + 1)])
    assert (found.checkpoint, found.committed) == (Checkpoint({"users": 2}, {}), NOW + 1)


@pytest.mark.parametrize(
    "garbage",
    [
        message(b"\xff"),
        message(b'{"next":{},"judged":{},"worker":"\xff"}'),
        message(b'{"zz":' + b"[" * 5_000),
        message(b"{}"),
        message(b'{"next":{},"judged":{},"counts":{"users":{"read":-5}}}'),
        message(b'{"next":{},"judged":{},"incidents":{"x":-7}}'),
        message(b"[]"),
        message(b'{"next": 3}'),
        message(b'{"counts": {"users": {"read": "many"}}}'),
        message(b"{}", key=b"0"),
        message(b"{}", key=b"somebody else"),
        message(None),
    ],
)
def test_garbage_is_passed_over_and_counted(garbage: Message) -> None:
    found = latest_checkpoint([garbage, message(progress(users=1)), garbage, garbage])
    assert (found.checkpoint, found.committed) == (Checkpoint({"users": 1}, {}), NOW)
    assert found.unreadable == 2
    assert latest_checkpoint([garbage]) == TaskCheckpoint(unreadable=1)


def test_progress_of_another_release_is_read_as_far_as_it_goes() -> None:
    value = b'{"next":{"users":1,"claims":5},"judged":{"users":-1},"held":{},"news":{"x":[1]}}'
    assert latest_checkpoint([message(value)]).checkpoint == Checkpoint(
        {"users": 1, "claims": 5}, {"users": -1}
    )


def test_what_is_read_is_no_lag() -> None:
    assert unread(answers()) == {}
    assert unread(behind()) == {USERS: 10}


def test_the_offset_that_the_group_was_told_counts_where_it_is_further() -> None:
    """As behind a transaction marker, of which no task makes a commit of its own."""
    assert unread(behind(group_offsets={USERS: 13})) == {}
    assert unread(behind(group_offsets={USERS: 12})) == {USERS: 12}
    assert unread(behind(group_offsets={USERS: 400})) == {USERS: 10}, "of an earlier topic"


@pytest.mark.parametrize(
    "changed",
    [
        {"topics": {"users": "id-of-the-one-before"}},
        {"next": ALL_READ | {"users": 400}},
    ],
)
def test_of_a_topic_that_was_made_anew_nothing_is_read(changed: dict[str, Any]) -> None:
    tasks = {0: TaskCheckpoint(checkpoint(**changed), NOW), 1: TaskCheckpoint(checkpoint(), NOW)}
    found = answers(tasks=tasks, group_offsets={USERS: 10})
    assert unread(found) == {USERS: 0}


def test_a_topic_that_has_lost_its_last_records_is_read() -> None:
    same = {"topics": {"users": "id-users"}, "next": ALL_READ | {"users": 400}}
    tasks = {0: TaskCheckpoint(checkpoint(**same), NOW), 1: TaskCheckpoint(checkpoint(), NOW)}
    assert unread(answers(tasks=tasks, group_offsets={USERS: 400})) == {}


def test_a_topic_of_which_no_identity_is_known_is_taken_as_the_same() -> None:
    tasks = {
        0: TaskCheckpoint(checkpoint(topics={"users": ""}), NOW),
        1: TaskCheckpoint(checkpoint(), NOW),
    }
    assert unread(answers(tasks=tasks)) == {}


def test_a_task_without_its_checkpoint_reads_everything_again() -> None:
    lost = dict.fromkeys((0, 1), TaskCheckpoint())
    found = answers(tasks=lost, group_offsets={USERS: 7})
    assert found.without_progress == {0}
    assert {place.number for place in unread(found)} == {0, 1}
    assert unread(found)[USERS] == 0
    figures = report(found, {})
    assert [task.begins_again for task in figures.tasks] == [True, False]
    assert [task.parked for task in figures.tasks] == [None, 0]
    assert figures.entities["users"].read is None


@pytest.mark.parametrize("why", [{"complete": False}, {"unreadable": 1}])
def test_a_checkpoint_that_is_only_hidden_is_not_taken_for_lost(why: dict[str, Any]) -> None:
    found = answers(tasks={0: TaskCheckpoint(**why)}, group_offsets={USERS: 7})
    assert not found.without_progress
    assert unread(found)[USERS] == 7


def test_a_task_that_never_committed_has_read_nothing_and_what_expired_is_no_lag() -> None:
    base = answers()
    found = answers(
        tasks={0: TaskCheckpoint(), 1: base.tasks[1]},
        spans={**base.spans, USERS: OffsetRange(4, 10)},
    )
    assert unread(found)[USERS] == 4
    assert {partition.number for partition in unread(found)} == {0}
