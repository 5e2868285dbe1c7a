"""What keeps a worker from its work is told, until it is over; waits grow while it lasts."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import AsyncMock, Mock

import pytest
from structlog.testing import capture_logs

from tests.clock_kit import SettableClock
from worker.brokers.contract import Broker
from worker.core.outbox import Tally
from worker.core.reading import Missed
from worker.core.task_settings import TaskSettings
from worker.core.topics import Names
from worker.engine.reports import WorkerReports
from worker.errors import BrokerUnavailable, DamagedLog, Fenced
from worker.ops.health import Health
from worker.ops.metrics import Metrics
from worker.stream import OffsetRange, Partition
from worker.waiting import Backoff

RULES = TaskSettings(names=Names())
HERE = Partition("buddy.in.users", 0)
ROWS = Partition("buddy.accepted.users", 0)
REJECTED = Partition("buddy.rejected.users", 0)
FOLLOWER = SimpleNamespace(accepted=[ROWS], progress=[])
REFUSED = BrokerUnavailable("cannot commit as buddy-task-0: Kafka refuses it")


@pytest.fixture
def reports(clock: SettableClock) -> WorkerReports:
    metrics = Metrics()
    part = Health(metrics, clock.steady).part("worker")
    part.restored()
    return WorkerReports(metrics, part, clock)


def reasons(reports: WorkerReports, clock: SettableClock) -> list[str]:
    reports.health.alive(clock.steady())
    return reports.health.reasons(clock.steady())


def tasks(*numbers: int, running: Iterable[int] | None = None) -> Any:
    runs = numbers if running is None else running
    return SimpleNamespace(assigned=frozenset(numbers), running=dict.fromkeys(runs))


def test_an_outage_is_told_until_rounds_have_gone_well_for_a_while(
    reports: WorkerReports, clock: SettableClock
) -> None:
    reports.outage("broker", BrokerUnavailable("cannot join group g: no answer"), 0.2)
    assert reasons(reports, clock) == ["worker: broker: cannot join group g: no answer (for 0 s)"]
    clock.advance(4_000)
    reports.free("broker")
    assert reasons(reports, clock) == ["worker: broker: cannot join group g: no answer (for 4 s)"]
    clock.advance(4_999)
    reports.free("broker")
    assert reasons(reports, clock) == ["worker: broker: cannot join group g: no answer (for 8 s)"]
    clock.advance(1)
    reports.free("broker")
    assert reasons(reports, clock) == []


def test_an_index_that_cannot_follow_is_told(reports: WorkerReports, clock: SettableClock) -> None:
    reports.followed(None)
    reports.followed(BrokerUnavailable("cannot read topic a: no answer"))
    assert reasons(reports, clock) == ["worker: index: cannot read topic a: no answer (for 0 s)"]
    reports.followed(None)
    clock.advance(5_000)
    reports.followed(None)
    assert reasons(reports, clock) == []


def test_a_task_that_does_not_commit_is_told_until_it_does(
    reports: WorkerReports, clock: SettableClock
) -> None:
    reports.not_committed([0], REFUSED)
    assert reasons(reports, clock) == [f"worker: tasks: {REFUSED} (for 0 s)"]
    reports.not_started(1, BrokerUnavailable("cannot start the writer buddy-task-1: no answer"))
    clock.advance(10_000)
    assert (
        "cannot start the writer buddy-task-1: no answer (for 10 s)" in reasons(reports, clock)[0]
    )
    reports.tasks(tasks(0, 1))
    assert len(reasons(reports, clock)) == 1
    reports.committed({0: Tally()}, clock.steady())
    reports.tasks(tasks(0, 1, running=[0]))
    assert "worker: 1 of 2 assigned tasks are running" in reasons(reports, clock)
    reports.tasks(tasks(0, 1))
    clock.advance(5_000)
    reports.tasks(tasks(0, 1))
    assert reasons(reports, clock) == []


def test_a_round_that_does_not_commit_is_told_until_one_does(
    reports: WorkerReports, clock: SettableClock
) -> None:
    reports.not_committed([1, 0], REFUSED)
    clock.advance(10_000)
    reports.tasks(tasks(0, 1))
    assert len(reasons(reports, clock)) == 1
    reports.committed({1: Tally()}, clock.steady())  # a session writes for all of its tasks
    reports.tasks(tasks(0, 1))
    clock.advance(5_000)
    reports.tasks(tasks(0, 1))
    assert reasons(reports, clock) == []


def test_of_a_round_each_task_is_counted_and_the_transaction_once(
    reports: WorkerReports, clock: SettableClock
) -> None:
    tallies = {0: Tally(), 1: Tally()}
    tallies[0].read["users"] += 2
    tallies[1].accepted["users"] += 3
    reports.committed(tallies, clock.steady())
    sample = reports.metrics.registry.get_sample_value
    assert sample("buddy_transactions_total", {"outcome": "committed"}) == 1
    assert sample("buddy_records_read_total", {"entity": "users"}) == 2
    assert sample("buddy_rows_accepted_total", {"entity": "users"}) == 3


async def test_what_hinders_the_logs_upkeep_is_told_until_it_is_over(
    reports: WorkerReports, clock: SettableClock
) -> None:
    broker = SimpleNamespace(
        skipped=AsyncMock(return_value={}),
        damage=AsyncMock(return_value=[]),
        hindrance=Mock(side_effect=["a process hangs", None]),
    )
    await reports.look_for_damage(cast("Broker", broker))
    assert reasons(reports, clock) == ["worker: log upkeep: a process hangs (for 0 s)"]
    clock.advance(5_000)
    await reports.look_for_damage(cast("Broker", broker))
    assert reasons(reports, clock) == []


def test_a_task_whose_outcome_is_refused_is_told_whatever_others_commit(
    reports: WorkerReports, clock: SettableClock
) -> None:
    reports.refused(1, "too large for buddy.rejected.users")
    for _ in range(9):
        reports.committed({0: Tally()}, clock.steady())
        reports.tasks(tasks(0, 1, running=[0]))
        clock.advance(5_000)
    assert reasons(reports, clock) == [
        "worker: 1 of 2 assigned tasks are running",
        "worker: refused outcomes: too large for buddy.rejected.users (for 45 s)",
    ]
    reports.committed({0: Tally(), 1: Tally()}, clock.steady())
    reports.tasks(tasks(0, 1))
    assert reasons(reports, clock) == []
    reports.refused(1, "too large again")
    reports.tasks(tasks(0))
    assert reasons(reports, clock) == [], "another worker has it now"


async def test_damaged_state_of_a_task_counts_until_it_starts(
    reports: WorkerReports, clock: SettableClock
) -> None:
    line = "buddy.internal.parked/1 is damaged from offset 7"

    async def counted(*known: str) -> float | None:
        broker = Mock(damage=AsyncMock(return_value=[*known]), skipped=AsyncMock(return_value={}))
        broker.hindrance.return_value = None
        clock.advance(5_000)
        await reports.look_for_damage(cast("Broker", broker))
        return reports.metrics.registry.get_sample_value("buddy_log_damaged_places")

    reports.not_started(1, DamagedLog(line))
    reports.tasks(tasks(0, 1, running=[0]))
    assert [await counted(), await counted(line), await counted("another")] == [1, 1, 2]
    reports.not_started(1, REFUSED)
    assert await counted() == 0
    reports.not_started(1, DamagedLog(line))
    reports.tasks(tasks(0, 1))
    assert await counted() == 0


def test_a_refused_round_is_an_error_only_where_it_cannot_go_on(reports: WorkerReports) -> None:
    with capture_logs() as logs:
        reports.refused(0, None)
        reports.refused(0, "too large")
    said = [(line["event"], line["task"], line["error"]) for line in logs]
    assert said == [("commit_refused", 0, "too large")]


@pytest.mark.parametrize(
    ("name", "event"),
    [
        ("internal.progress", "internal_recreated"),
        ("internal.parked", "internal_recreated"),
        ("internal.granted", "internal_recreated"),
        ("internal.owners", "internal_recreated"),
        ("rejected.users", "rejected_recreated"),
        ("accepted.users", "accepted_recreated"),
    ],
)
def test_a_topic_that_was_created_anew_is_told_as_what_it_is(
    reports: WorkerReports, name: str, event: str
) -> None:
    task: Any = SimpleNamespace(number=0)
    with capture_logs() as logs:
        reports.missed(Missed(others=(name,)), task, RULES)
    assert [(line["event"], line["topic"]) for line in logs] == [(event, f"buddy.{name}")]


def test_a_task_that_another_worker_has_keeps_nobody_from_anything(
    reports: WorkerReports, clock: SettableClock
) -> None:
    reports.not_committed([0], Fenced("another worker writes as buddy-task-0 now"))
    assert reasons(reports, clock) == []
    reports.not_committed([0], REFUSED)
    reports.tasks(tasks(1))
    clock.advance(5_000)
    reports.tasks(tasks(1))
    assert reasons(reports, clock) == []


class Inputs:
    """A broker and a reader of one partition: read up to 5, readable and written as set."""

    def __init__(self) -> None:
        self.stable = self.end = 5
        self.rows = self.rejections = 0
        """So many messages are in an open transaction on the accepted topic, or the rejected."""

    async def spans(
        self, partitions: Iterable[Partition], *, uncommitted: bool = False
    ) -> dict[Partition, OffsetRange]:
        ends = {
            ROWS: 7 + self.rows * uncommitted,
            REJECTED: 7 + self.rejections * uncommitted,
            HERE: self._end(uncommitted),
        }
        return {p: OffsetRange(0, ends.get(p, 0)) for p in partitions}

    def _end(self, uncommitted: bool) -> int:
        return self.end if uncommitted else self.stable

    def position(self, _partition: Partition) -> int:
        return 5


async def test_records_behind_an_open_transaction_are_lag_and_told_after_a_while(
    reports: WorkerReports, clock: SettableClock
) -> None:
    inputs = Inputs()
    task = SimpleNamespace(number=0, reading=SimpleNamespace(next={"users": 5}))
    owned = SimpleNamespace(running={0: SimpleNamespace(assigned=True, task=task)})

    async def measure(milliseconds: int) -> list[str]:
        clock.advance(milliseconds)
        await reports.measure_lag(owned, FOLLOWER, inputs, inputs, RULES)  # type: ignore[arg-type]
        return reasons(reports, clock)

    assert await measure(5_000) == []
    inputs.end = 9
    assert await measure(5_000) == []
    assert (
        reports.metrics.registry.get_sample_value(
            "buddy_lag_records", {"topic": HERE.topic, "partition": "0"}
        )
        == 4
    )
    assert await measure(10_000) == []
    with capture_logs() as logs:
        (reason,) = await measure(5_000)
    assert reason.startswith("worker: inputs: 4 records of buddy.in.users/0 are behind a")
    assert "open at offset 5 for 15 s" in reason
    assert [(line["event"], line["count"], line["seconds"]) for line in logs] == [
        ("input_blocked", 4, 15)
    ]
    inputs.stable = 7  # another one is open now
    assert await measure(5_000) == []
    inputs.stable = 9
    assert await measure(30_000) == []
    # The index cannot follow behind one either, so no orphan gets its verdict.
    inputs.rows = 2
    assert await measure(5_000) == []
    with capture_logs() as logs:
        (reason,) = await measure(15_000)
    assert reason.startswith("worker: followed topics: 2 records of buddy.accepted.users/0 are")
    assert [line["event"] for line in logs] == ["accepted_blocked"]
    inputs.rows = 0
    assert await measure(5_000) == []
    # Whoever watches rejections sees none behind one.
    inputs.rejections = 3
    assert await measure(5_000) == []
    with capture_logs() as logs:
        (reason,) = await measure(15_000)
    assert reason.startswith("worker: followed topics: 3 records of buddy.rejected.users/0 are")
    assert [line["event"] for line in logs] == ["accepted_blocked"]
    inputs.rejections = 0
    assert await measure(5_000) == []


def test_waits_grow_until_nothing_has_failed_for_a_while(clock: SettableClock) -> None:
    backoff = Backoff(clock.steady, first=0.2, longest=5.0)
    for longest in (0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        wait = backoff.failed()
        assert longest / 2 <= wait <= longest
        assert not backoff.ready()
        clock.advance(int(wait * 1000) + 1)
        assert backoff.ready()
        backoff.succeeded()  # between failures: no success
    clock.advance(5_000)
    backoff.succeeded()
    assert backoff.failed() <= 0.2


def test_waits_grow_on_where_nothing_is_tried_for_a_while(clock: SettableClock) -> None:
    backoff = Backoff(clock.steady, first=0.2, longest=5.0)
    for longest in (0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0):
        assert backoff.failed() >= longest / 2
        clock.advance(5_000)
        for _ in range(10):
            clock.advance(1_000)
            backoff.untried()
            assert backoff.ready()
        clock.advance(4_999)
        backoff.succeeded()
    clock.advance(1)
    backoff.succeeded()
    assert backoff.failed() <= 0.2
    backoff.untried()
    assert not backoff.ready(), "a wait is not cut short"
