"""Metrics for Prometheus. docs/metrics.md lists them; a test compares the two.

Rules: ids, addresses and texts of records are never labels; every label has few values. Counters
exist from the start with every value of their labels, since Prometheus does not notice an increase
that comes with a new series. Methods take plain values and cost a few microseconds. Any thread may
read meanwhile.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Final, Literal

from prometheus_client import Counter, Info, ProcessCollector

from schemas import ENTITIES
from worker import __version__
from worker.core.possible import possible_violations
from worker.core.violations import WARNINGS, Code
from worker.ops.anomaly_metrics import AnomalyMetrics
from worker.ops.desk_metrics import DeskMetrics
from worker.ops.histogram import BulkHistogram
from worker.ops.instruments import Instruments
from worker.ops.sink_metrics import SinkMetrics
from worker.stream import Partition

if TYPE_CHECKING:
    from worker.core.outbox import Tally

MOST_BLOCKING: Final = 20
"""Partitions that block verdicts and are named at most. Their number is a metric of its own."""

Outcome = Literal["committed", "failed", "fenced"]


_REFERRING: Final = tuple(name for name in ENTITIES if name != "users")
_VERDICT_SECONDS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 3_600)
_BATCH_SECONDS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_BATCH_RECORDS: Final = (0, 1, 10, 50, 100, 500, 1_000, 2_500, 5_000, 10_000)
_RESTORE_SECONDS: Final = (0.1, 0.25, 0.5, 1, 2, 4, 8, 15, 30, 60, 120)


class Metrics:
    """All metrics of one process. Instances share nothing."""

    def __init__(self) -> None:
        self._make = Instruments()
        self.registry: Final = self._make.registry
        ProcessCollector(registry=self.registry)
        info = Info("buddy_build", "Version of the program.", registry=self.registry)
        info.info({"version": __version__, "python": platform.python_version()})
        self._records()
        self.anomalies = AnomalyMetrics(self._make)
        self._waiting()
        self._work()
        self.sink = SinkMetrics(self._make)
        self.desk = DeskMetrics(self._make)

    @property
    def instruments(self) -> Instruments:
        """Makes further metrics of the process."""
        return self._make

    # --- outcomes of records ------------------------------------------------------------------

    def tally(self, tally: Tally, now: int) -> None:
        """Count a decision at `now` (ms). Call this only once the decision is committed."""
        for children, counts in (
            (self._read, tally.read),
            (self._accepted, tally.accepted),
            (self._deleted, tally.deleted),
            (self._rejected, tally.rejected),
            (self._unknown_fields, tally.unknown_fields),
        ):
            for entity, count in counts.items():
                children[entity].inc(count)
        for entity, count in tally.parked.items():
            (self._users_asked if entity == "users" else self._newly_parked[entity]).inc(count)
        for labels, count in tally.violations.items():
            child = self._violations.get(labels) or self._violation(*labels)
            child.inc(count)
        for moment, count in tally.arrivals.items():
            self._verdict_seconds.observe(max(0, now - moment) / 1000, count)
        if tally.records_omitted:
            self._omitted.inc(len(tally.records_omitted))
        if tally.failures:
            self._failures.inc(len(tally.failures))

    # --- parked records, lag, frontiers -------------------------------------------------------

    def parked(self, records: Mapping[str, int], memory: int, oldest_seconds: float) -> None:
        """Set the parked records by entity (absent: none), their bytes, and the oldest's age."""
        for entity, gauge in self._parked.items():
            gauge.set(records.get(entity, 0))
        self._users_waiting.set(records.get("users", 0))
        self._parked_bytes.set(memory)
        self._parked_oldest.set(oldest_seconds)

    def lag(self, records: Mapping[Partition, int]) -> None:
        """Set the lag of each input partition that this worker owns; forget all others."""
        self._lag.set(records)

    def frontier(
        self, records: int, oldest_seconds: float, blocking: Sequence[Partition] = ()
    ) -> None:
        """Set how many records wait for a definitive verdict, and how long the oldest has waited.

        `blocking` are the inputs not judged far enough; the first `MOST_BLOCKING` are named.
        """
        self._verdicts_waiting.set(records)
        self._verdicts_oldest.set(oldest_seconds)
        self._blocking_number.set(len(blocking))
        self._blocking.set(dict.fromkeys(blocking[:MOST_BLOCKING], 1))

    # --- the worker ---------------------------------------------------------------------------

    def round(self) -> None:
        """Count a finished round of the worker, and note its time."""
        self._rounds.inc()
        self._round_finished.set_to_current_time()

    def batch(self, seconds: float, records: int) -> None:
        """Observe a committed batch of one task: seconds since judging began, records read."""
        self._batch_seconds.observe(seconds)
        self._batch_records.observe(records)

    def transaction(self, outcome: Outcome) -> None:
        """Count a transaction of a task by its outcome."""
        self._transactions[outcome].inc()

    def index(self, users: int, matches: int, addresses: int) -> None:
        """Set the number of entries of the index."""
        self._index["users"].set(users)
        self._index["matches"].set(matches)
        self._index["addresses"].set(addresses)

    def tasks(self, assigned: int, running: int) -> None:
        """Set how many tasks the group assigns to this worker, and how many of them run."""
        self._tasks["assigned"].set(assigned)
        self._tasks["running"].set(running)

    def restored(self, seconds: float) -> None:
        """Observe the time to take over and restore a task."""
        self._restore_seconds.observe(seconds)

    # --- definitions --------------------------------------------------------------------------

    def _records(self) -> None:
        self._read = self._make.by_entity(
            "buddy_records_read", "Records read from the inputs, deletions among them."
        )
        self._accepted = self._make.by_entity("buddy_rows_accepted", "Records accepted as rows.")
        self._deleted = self._make.by_entity("buddy_deletions", "Deletions carried out.")
        self._rejected = self._make.by_entity("buddy_rejections", "Records rejected.")
        self._every_violation = Counter(
            "buddy_violations",
            "Violations found, warnings of accepted records among them.",
            ("entity", "field", "code", "severity"),
            registry=self.registry,
        )
        self._violations: dict[tuple[str, str, Code], Counter] = {}
        for name, entity in ENTITIES.items():
            for field, code in possible_violations(entity):
                self._violation(name, field, code)
        self._verdict_seconds = BulkHistogram(
            "buddy_verdict_seconds",
            "Time from a record's arrival to its verdict, parked records among them.",
            _VERDICT_SECONDS,
            self.registry,
        )
        self._unknown_fields = self._make.by_entity(
            "buddy_unknown_fields", "Fields of accepted records that no column is for (dropped)."
        )
        self._newly_parked = self._make.counters(
            "buddy_records_parked",
            "Records that had to wait for a reference, or behind one of their own key.",
            "entity",
            _REFERRING,
        )
        self._users_asked = self._make.counter(
            "buddy_users_waited",
            "Users that had to wait for their address, or behind one of their own key.",
        )
        self._omitted = self._make.counter(
            "buddy_records_omitted",
            "Rejections too large to hold the original record or its headers.",
        )
        self._failures = self._make.counter(
            "buddy_internal_errors", "Records that could not be judged because the program failed."
        )

    def _waiting(self) -> None:
        self._parked = self._make.gauges(
            "buddy_parked_records",
            "Records that wait now for a reference, or behind one of their own key.",
            "entity",
            _REFERRING,
        )
        self._users_waiting = self._make.gauge(
            "buddy_users_waiting",
            "Users that wait now for their address, or behind one of their own key.",
        )
        self._parked_bytes = self._make.gauge(
            "buddy_parked_bytes", "Memory that parked records take, by estimate."
        )
        self._parked_oldest = self._make.gauge(
            "buddy_parked_oldest_age_seconds", "Time since the first reading of the oldest of them."
        )
        self._lag = self._make.by_partition(
            "buddy_lag_records",
            "Records to be read, gaps and records of open transactions among them.",
        )
        self._verdicts_waiting = self._make.gauge(
            "buddy_verdicts_waiting_records",
            "Records after their grace that wait for a definitive verdict.",
        )
        self._verdicts_oldest = self._make.gauge(
            "buddy_verdicts_oldest_wait_seconds", "Time that the oldest frontier has been open."
        )
        self._blocking = self._make.by_partition(
            "buddy_verdicts_blocking",
            "1 for an input partition that is not judged far enough (the first 20).",
        )
        self._blocking_number = self._make.gauge(
            "buddy_verdicts_blocking_partitions", "How many such partitions there are."
        )

    def _work(self) -> None:
        self._rounds = self._make.counter("buddy_rounds", "Rounds of the worker finished.")
        self._round_finished = self._make.gauge(
            "buddy_round_finished_timestamp_seconds", "When the last round was finished (0: never)."
        )
        self._batch_seconds = self._make.histogram(
            "buddy_batch_duration_seconds",
            "Time from judging a batch of one task to its commit.",
            _BATCH_SECONDS,
        )
        self._batch_records = self._make.histogram(
            "buddy_batch_records", "Records read in a batch of one task.", _BATCH_RECORDS
        )
        self._transactions = self._make.counters(
            "buddy_transactions",
            "Transactions of tasks; fenced: another worker has the task now.",
            "outcome",
            ("committed", "failed", "fenced"),
        )
        self._index = self._make.gauges(
            "buddy_index_entries",
            "Entries of the index.",
            "kind",
            ("users", "matches", "addresses"),
        )
        self._tasks = self._make.gauges(
            "buddy_tasks",
            "Tasks that the group assigns to this worker, and those that run.",
            "state",
            ("assigned", "running"),
        )
        self._restore_seconds = self._make.histogram(
            "buddy_task_restore_duration_seconds",
            "Time to take a task over and restore it.",
            _RESTORE_SECONDS,
        )

    def _violation(self, entity: str, field: str, code: Code) -> Counter:
        severity = "warning" if code in WARNINGS else "error"
        child = self._every_violation.labels(entity, field, code.value, severity)
        self._violations[entity, field, code] = child
        return child
