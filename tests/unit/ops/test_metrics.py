"""Metrics: what each method changes, and their own documentation."""

from __future__ import annotations

import re
import sys
import time
from types import FrameType

import pytest
import yaml

from tests.paths import ROOT
from tests.unit.metrics_kit import NOW, fed, tally
from worker.core.violations import Code
from worker.http.metrics import HttpMetrics
from worker.http.operations import NAMES
from worker.ops.metrics import MOST_BLOCKING, Metrics
from worker.stream import Partition

PAGE = (ROOT / "docs" / "metrics.md").read_text("utf-8")


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def registered(metrics: Metrics) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Type, labels and help of every metric of the project, by its name as it is exposed."""
    found = {}
    suffixes = {"counter": "_total", "info": "_info"}
    HttpMetrics(metrics.instruments, NAMES)
    for metric in metrics.registry.collect():
        if metric.name.startswith("buddy_"):
            labels = sorted({n for sample in metric.samples for n in sample.labels} - {"le"})
            name = metric.name + suffixes.get(metric.type, "")
            found[name] = metric.type, tuple(labels), metric.documentation
    return found


# --- metrics ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("buddy_records_read_total", {"entity": "users"}, 100),
        ("buddy_rows_accepted_total", {"entity": "matches"}, 180),
        ("buddy_deletions_total", {"entity": "milestones"}, 8),
        ("buddy_rejections_total", {"entity": "users"}, 9),
        (
            "buddy_violations_total",
            {"entity": "users", "field": "email", "code": "invalid_email", "severity": "error"},
            9,
        ),
        (
            "buddy_violations_total",
            {
                "entity": "users",
                "field": "email",
                "code": "email_lowercased",
                "severity": "warning",
            },
            2,
        ),
        ("buddy_verdict_seconds_bucket", {"le": "0.01"}, 2),
        ("buddy_verdict_seconds_bucket", {"le": "2.5"}, 5),
        ("buddy_verdict_seconds_sum", {}, 6.0),
        ("buddy_users_waited_total", {}, 4),
        ("buddy_users_waiting", {}, 6),
        ("buddy_unknown_fields_total", {"entity": "feedback"}, 3),
        ("buddy_records_parked_total", {"entity": "feedback"}, 4),
        ("buddy_records_omitted_total", {}, 1),
        ("buddy_internal_errors_total", {}, 1),
        ("buddy_input_expired_records_total", {"entity": "users"}, 5),
        ("buddy_input_truncated_records_total", {"entity": "users"}, 6),
        ("buddy_input_recreated_total", {}, 1),
        ("buddy_clock_steps_total", {}, 1),
        ("buddy_accepted_recreated_total", {}, 1),
        ("buddy_rejected_recreated_total", {}, 1),
        ("buddy_keys_in_two_partitions_total", {}, 2),
        ("buddy_internal_recreated_total", {}, 1),
        ("buddy_parked_lost_records_total", {"entity": "users"}, 3),
        ("buddy_parked_records", {"entity": "matches"}, 7),
        ("buddy_parked_records", {"entity": "checkins"}, 0),
        ("buddy_parked_oldest_age_seconds", {}, 12.5),
        ("buddy_lag_records", {"topic": "buddy.in.matches", "partition": "1"}, 4),
        ("buddy_verdicts_waiting_records", {}, 6),
        ("buddy_verdicts_oldest_wait_seconds", {}, 2.5),
        ("buddy_verdicts_blocking", {"topic": "buddy.in.users", "partition": "0"}, 1),
        ("buddy_verdicts_blocking_partitions", {}, 1),
        ("buddy_rounds_total", {}, 1),
        ("buddy_batch_duration_seconds_sum", {}, 0.2),
        ("buddy_batch_records_sum", {}, 300),
        ("buddy_transactions_total", {"outcome": "fenced"}, 1),
        ("buddy_transactions_total", {"outcome": "failed"}, 0),
        ("buddy_index_entries", {"kind": "users"}, 10),
        ("buddy_index_entries", {"kind": "matches"}, 20),
        ("buddy_index_entries", {"kind": "addresses"}, 9),
        ("buddy_tasks", {"state": "assigned"}, 3),
        ("buddy_tasks", {"state": "running"}, 2),
        ("buddy_task_restore_duration_seconds_count", {}, 1),
        ("buddy_sink_rows_applied_total", {"outcome": "changed"}, 1),
        ("buddy_sink_rows_applied_total", {"outcome": "deleted"}, 2),
        ("buddy_sink_rows_applied_total", {"outcome": "repeat"}, 3),
        ("buddy_foreign_rows_total", {"reader": "sink"}, 4),
        ("buddy_foreign_rows_total", {"reader": "index"}, 5),
        ("buddy_state_rebuilt_total", {"state": "index"}, 2),
        ("buddy_sink_expired_messages_total", {}, 1),
        ("buddy_sink_lag_messages", {"topic": "buddy.accepted.users", "partition": "0"}, 8),
        ("buddy_exports_total", {"outcome": "finished"}, 1),
        ("buddy_exports_total", {"outcome": "failed"}, 0),
        ("buddy_export_duration_seconds_sum", {}, 3),
        ("buddy_sink_active", {}, 1),
        ("buddy_schedule_next_timestamp_seconds", {"schedule": "weekly"}, 1_767_225_600),
    ],
)
def test_what_a_method_is_told_is_in_its_metric(
    name: str, labels: dict[str, str], expected: float
) -> None:
    assert value(fed(), name, **labels) == expected


def test_a_passive_sink_tells_of_no_schedule() -> None:
    metrics = fed()
    metrics.sink.active(is_active=False)
    assert value(metrics, "buddy_sink_active") == 0
    assert value(metrics, "buddy_schedule_next_timestamp_seconds", schedule="weekly") is None


def test_counters_add_up() -> None:
    metrics = fed()
    metrics.tally(tally(), NOW)
    assert value(metrics, "buddy_records_read_total", entity="users") == 200


def test_two_processes_share_nothing() -> None:
    fed()
    assert value(Metrics(), "buddy_records_read_total", entity="users") == 0


def test_every_code_is_there_before_it_is_first_found() -> None:
    violations = {m.name: m for m in Metrics().registry.collect()}["buddy_violations"]
    assert {sample.labels["code"] for sample in violations.samples} == set(Code)
    assert len(violations.samples) < 500
    assert {sample.value for sample in violations.samples} == {0}


def test_a_partition_that_moved_away_is_forgotten() -> None:
    metrics = fed()
    metrics.lag({Partition("buddy.in.users", 0): 1, Partition("buddy.in.users", 1): 2})
    assert value(metrics, "buddy_lag_records", topic="buddy.in.users", partition="0") == 1
    assert value(metrics, "buddy_lag_records", topic="buddy.in.users", partition="1") == 2
    assert value(metrics, "buddy_lag_records", topic="buddy.in.matches", partition="1") is None
    metrics.lag({})
    assert value(metrics, "buddy_lag_records", topic="buddy.in.users", partition="0") is None


def test_a_barrier_names_few_partitions_and_counts_all() -> None:
    metrics = Metrics()
    metrics.frontier(1, 1.0, [Partition("buddy.in.users", number) for number in range(1_000)])
    blocking = {m.name: m for m in metrics.registry.collect()}["buddy_verdicts_blocking"]
    assert len(blocking.samples) == MOST_BLOCKING
    assert value(metrics, "buddy_verdicts_blocking_partitions") == 1_000
    metrics.frontier(0, 0.0)
    assert value(metrics, "buddy_verdicts_blocking", topic="buddy.in.users", partition="0") is None
    assert value(metrics, "buddy_verdicts_blocking_partitions") == 0


def test_a_batch_that_only_releases_is_told_from_one_that_reads() -> None:
    metrics = Metrics()
    metrics.batch(0.01, 0)
    metrics.batch(0.2, 5_000)
    assert value(metrics, "buddy_batch_records_bucket", le="0.0") == 1
    assert value(metrics, "buddy_batch_records_count") == 2


def test_the_last_round_is_stamped() -> None:
    metrics = Metrics()
    assert value(metrics, "buddy_round_finished_timestamp_seconds") == 0
    before = time.time()
    metrics.round()
    stamp = value(metrics, "buddy_round_finished_timestamp_seconds")
    assert stamp is not None
    assert before <= stamp <= time.time()


def test_a_batch_costs_the_same_however_many_records_it_has() -> None:
    metrics = Metrics()

    def calls(records: int) -> int:
        """The function calls that a batch of so many records of each kind takes."""
        counted = tally()
        for counts in (counted.read, counted.accepted, counted.rejected):
            for entity in counts:
                counts[entity] *= records
        for violation in counted.violations:
            counted.violations[violation] *= records
        made = 0

        def count(_frame: FrameType, event: str, _arg: object) -> None:
            nonlocal made
            made += event in ("call", "c_call")

        sys.setprofile(count)
        try:
            metrics.tally(counted, NOW)
            metrics.parked({"matches": 3 * records, "checkins": 4 * records}, 5_000, 1.0)
            metrics.batch(0.1, records)
            metrics.round()
        finally:
            sys.setprofile(None)
        return made

    calls(1)  # the labels exist from now on
    assert calls(1) == calls(1_000_000) < 1_000


# --- the documentation ------------------------------------------------------------------------


def test_every_metric_is_documented_as_it_is() -> None:
    rows = re.findall(r"^\| `(buddy_\w+)` \| (\w+) \| (.*?) \| (.*?) \|$", PAGE, re.MULTILINE)
    documented = {
        name: (kind, tuple(sorted(re.findall(r"`(\w+)`", labels))), text)
        for name, kind, labels, text in rows
    }
    assert len(rows) == len(documented)
    assert documented == registered(fed())


def test_alerts_name_metrics_that_exist() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    rules = [
        rule for block in blocks for g in yaml.safe_load(block)["groups"] for rule in g["rules"]
    ]
    assert rules
    samples = {sample.name for m in fed().registry.collect() for sample in m.samples}
    for rule in rules:
        assert rule["alert"]
        assert rule["annotations"]["summary"]
        used = set(re.findall(r"\bbuddy_\w+", rule["expr"]))
        assert used
        assert used <= samples


def test_names_follow_the_conventions() -> None:
    for name, (kind, _, text) in registered(fed()).items():
        assert (kind == "counter") == name.endswith("_total"), name
        assert text.endswith("."), name
        assert not re.search(r"_(ms|millis|minutes|percent|count|sum|bucket)\b", name), name
