"""Whether the services work, and whether an input stands still."""

from __future__ import annotations

from typing import Any

import msgspec
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
from worker.core.checkpoint import Counts
from worker.status.broker_answers import (
    BrokerAnswers,
    TaskCheckpoint,
    latest_checkpoint,
    with_earlier,
)
from worker.status.trouble import STALLED_MS, may_be_still, stalled, trouble, undecided
from worker.stream import GroupMember, OffsetRange, Partition

LATE = Partition("p.in.events", 0)


def trouble_of(
    found: BrokerAnswers, waiting: dict[Partition, int | None], services: Any = ("worker",)
) -> Any:
    return trouble(found, 3, stalled(found, waiting), services)


def test_all_is_well() -> None:
    assert trouble_of(answers(), {}) is None
    assert trouble_of(behind(), {USERS: NOW - STALLED_MS + 1}) is None, "it has only just come"
    busy = behind(tasks=dict.fromkeys((0, 1), TaskCheckpoint(checkpoint(), NOW - STALLED_MS + 1)))
    assert trouble_of(busy, {USERS: NOW - 3_600_000}) is None, "a backlog is being worked on"


def test_no_worker() -> None:
    line = trouble_of(answers(workers=[]), {})
    assert line.startswith("no worker is running: start 'buddy worker'")
    assert "3 records are to be read" in line


@pytest.mark.parametrize("committed", [NOW - STALLED_MS, None])
@pytest.mark.parametrize("since", [NOW - 95_000, None])
def test_a_lag_that_nobody_reduces(committed: int | None, since: int | None) -> None:
    tasks = {0: TaskCheckpoint(checkpoint(), committed), 1: TaskCheckpoint(checkpoint(), NOW)}
    line = trouble_of(behind(tasks=tasks), {USERS: since})
    assert line.startswith("nobody reduces the lag of task 0: a record has waited for ")
    assert ("95 s" if since else "30 s") in line


def test_another_program_in_a_group_is_told_for_its_service() -> None:
    strangers = {"worker": "console-2, another program, is in group p-worker", "sink": None}
    assert trouble_of(answers(strangers=strangers), {}) == strangers["worker"]
    sinks = [GroupMember("s", frozenset({0}))]
    assert trouble_of(answers(strangers=strangers, sinks=sinks), {}, ["sink"]) is None
    assert trouble_of(answers(strangers=strangers, workers=[]), {}).startswith("no worker is")


def test_many_stalled_tasks_are_one_line() -> None:
    many = {Partition(USERS.topic, number): 40_000 for number in range(50)}
    line = trouble(answers(tasks=dict.fromkeys(range(50), TaskCheckpoint())), 3, many, ["worker"])
    assert line is not None
    assert "task 0, 1, 2, 3, 4, 5, 6, 7 and 42 more" in line


def test_each_service_is_looked_at_where_it_is_asked_for() -> None:
    without = answers(workers=[], sinks=[GroupMember("s", frozenset({0}))])
    assert trouble_of(without, {}, ["sink"]) is None
    assert trouble_of(answers(), {}, ["sink"]).startswith("no sink is running: start 'buddy sink'")
    assert trouble_of(answers(), {}, ["worker", "sink"]).startswith("no sink")
    assert "DESCRIBE on group p-sink" in trouble_of(answers(sinks=None), {}, ["sink"])


def history(*positions: tuple[int, dict[str, int]]) -> TaskCheckpoint:
    """What progress of task 0 says that was written so many seconds ago, oldest first."""
    return latest_checkpoint(
        message(progress(**{**ALL_READ, **where}), b"0", 0, NOW - seconds * 1_000)
        for seconds, where in positions
    )


def of_task_0(task: TaskCheckpoint, **changes: Any) -> BrokerAnswers:
    """Users and events of task 0 are still to be read."""
    base = answers()
    spans = {**base.spans, USERS: OffsetRange(0, 13), LATE: OffsetRange(0, 13)}
    return answers(tasks={0: task, 1: TaskCheckpoint(checkpoint(), NOW)}, spans=spans, **changes)


def test_a_task_that_commits_does_not_reduce_the_lag_of_an_input_that_it_does_not_read() -> None:
    """It commits each ten seconds: other inputs, verdicts of what is parked."""
    task = history(*((seconds, {"users": 100 - seconds}) for seconds in range(90, -1, -10)))
    found = of_task_0(task)
    assert stalled(found, {USERS: NOW - 95_000}) == {}
    assert stalled(found, {LATE: NOW - 29_000}) == {}, "it has only just come"
    line = trouble_of(found, {LATE: NOW - 95_000})
    assert line.startswith("nobody reduces the lag of task 0: a record has waited for 95 s")
    assert "p.in.events/0" in line
    assert "its position has not moved, though the task commits" in line


def test_an_input_that_has_moved_within_the_time_is_read() -> None:
    task = history(
        (90, {"events": 3}), (40, {"events": 3}), (25, {"events": 4}), (0, {"events": 4})
    )
    assert task.unmoved_since["events"] == NOW - 25_000
    assert stalled(of_task_0(task), {LATE: NOW - 95_000}) == {}


def test_an_input_that_moved_long_ago_may_stand_still_now() -> None:
    """Progress is written seldom, so what was looked at reaches back to when it moved."""
    task = history((90, {"events": 3}), (40, {"events": 4}), (0, {"events": 4}))
    found = of_task_0(task)
    assert may_be_still(found, LATE)
    assert list(stalled(found, {LATE: NOW - 95_000})) == [LATE]


def test_of_a_topic_that_was_made_anew_the_position_is_another() -> None:
    task = with_earlier(
        TaskCheckpoint(
            checkpoint(topics={"events": "new"}), NOW, unmoved_since={"events": NOW}, earliest=NOW
        ),
        message(progress(**ALL_READ), b"0", 0, NOW - 60_000),
    )
    assert task.unmoved_since["events"] == NOW


def test_earlier_progress_is_asked_for_only_where_it_decides() -> None:
    task = history((1, {"users": 9}), (0, {}))
    found = of_task_0(task)
    assert not may_be_still(found, USERS), "it moves"
    assert may_be_still(found, LATE)
    assert undecided(found, {LATE: NOW - 29_000, USERS: NOW - 95_000}) == set()
    assert undecided(found, {LATE: NOW - 95_000}) == {0}
    assert trouble_of(found, {LATE: NOW - 95_000}) is None, "nobody knows"
    for seconds, waits in ((20, True), (31, False)):
        task = with_earlier(task, message(progress(**ALL_READ), b"0", 0, NOW - seconds * 1_000))
        found = of_task_0(task)
        assert bool(undecided(found, {LATE: NOW - 95_000})) is waits
    assert list(stalled(found, {LATE: NOW - 95_000})) == [LATE]
    assert undecided(of_task_0(TaskCheckpoint()), {LATE: None}) == set()


def test_what_waits_for_its_turn_behind_a_backlog_is_not_stalled() -> None:
    task = history((90, {"users": 0}), (31, {"users": 4}), (0, {"users": 5}))
    found = of_task_0(task)
    assert stalled(found, {USERS: NOW - 95_000, LATE: NOW - 95_000}) == {}
    assert list(stalled(found, {USERS: NOW - 9_000, LATE: NOW - 95_000})) == [LATE], "no backlog"
    other = of_task_0(
        msgspec.structs.replace(task, checkpoint=checkpoint(next=ALL_READ)),
        workers=[GroupMember("a", frozenset({0})), GroupMember("b", frozenset({1}))],
    )
    elsewhere = {Partition(USERS.topic, 1): NOW - 95_000, LATE: NOW - 95_000}
    assert list(stalled(other, elsewhere)) == [LATE], "another worker's backlog is no reason"
    stuck = history((90, {}), (0, {}))
    both = stalled(of_task_0(stuck), {USERS: NOW - 95_000, LATE: NOW - 95_000})
    assert both.keys() == {USERS, LATE}


def test_where_records_are_parked_an_input_may_be_paused_for_a_grace_and_then_it_is_said() -> None:
    task = history((95, {}), (0, {}))
    counts = {"checkins": Counts(parked=7), "users": Counts(parked=2)}
    task = msgspec.structs.replace(task, checkpoint=checkpoint(counts=counts))
    assert trouble_of(of_task_0(task, grace_ms=70_000), {LATE: NOW - 95_000}) is None
    line = trouble_of(of_task_0(task, grace_ms=60_000), {LATE: NOW - 95_000})
    assert "7 records of its kind are parked in this worker: the input may be paused" in line


def test_records_that_another_task_of_the_worker_has_parked_may_pause_an_input_too() -> None:
    still = history((105, {}), (0, {}))
    counts = {"feedback": Counts(parked=7)}
    parked = TaskCheckpoint(checkpoint(counts=counts), NOW)
    found = of_task_0(still, grace_ms=70_000)
    together = msgspec.structs.replace(found, tasks={0: still, 1: parked})
    assert trouble_of(together, {LATE: NOW - 95_000}) is None
    line = trouble_of(together, {LATE: NOW - 100_001})
    assert "7 records of its kind are parked in this worker: the input may be paused" in line
    silent = TaskCheckpoint(checkpoint(), NOW - 100_000)
    paused = msgspec.structs.replace(found, tasks={0: silent, 1: parked})
    assert "the input may be paused" in trouble_of(paused, {LATE: NOW - 100_001})
    hung = msgspec.structs.replace(parked, committed=NOW - 100_000)
    paused = msgspec.structs.replace(found, tasks={0: silent, 1: hung})
    assert "nothing was committed meanwhile" in trouble_of(paused, {LATE: NOW - 100_001})
    apart = [GroupMember("a", frozenset({0})), GroupMember("b", frozenset({1}))]
    line = trouble_of(msgspec.structs.replace(together, workers=apart), {LATE: NOW - 95_000})
    assert "its position has not moved" in line


def test_checkpoints_that_cannot_be_read_do_not_say_that_somebody_works() -> None:
    """With nothing to read, nothing else would tell that the task does not start."""
    base = answers()
    hidden = msgspec.structs.replace(base.tasks[1], complete=False)
    found = answers(tasks={0: base.tasks[0], 1: hidden})
    line = trouble(found, 0, {}, ["worker"])
    assert line is not None
    assert line.startswith("whether anybody works on task 1 is unknown: its checkpoints in")
    assert trouble(found, 0, {}, ["sink"]) != line
