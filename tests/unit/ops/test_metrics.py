"""Metrics and health: by real HTTP, with a settable clock, and against their own documentation."""

from __future__ import annotations

import json
import re
import socket
import sys
import time
import timeit
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest
import yaml

from schemas import ENTITIES
from tests.paths import ROOT
from worker.core.outbox import Tally
from worker.core.violations import Code
from worker.errors import ConfigurationError
from worker.ops import health as health_module
from worker.ops.health import Health, HealthLimits, ServiceHealth
from worker.ops.metrics import MOST_BLOCKING, Metrics
from worker.stream import Partition

NOW = 1_700_000_000_000
PAGE = (ROOT / "docs" / "metrics.md").read_text("utf-8")


class Clock:
    """Milliseconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(clock: Clock) -> Iterator[Health]:
    served = Health(fed(), clock, limits=HealthLimits(stall_seconds=60, ready_lag=1_000))
    served.start()
    yield served
    served.close()


def get(health: Health, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    """Status, content type and body."""
    connection = HTTPConnection("127.0.0.1", health.port, timeout=10)
    try:
        connection.request(method, path, headers=headers)
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


def hung_up(connection: socket.socket) -> bool:
    try:
        return connection.recv(100) == b""
    except ConnectionResetError:
        return True


def ready(health: Health) -> tuple[int, list[str]]:
    status, kind, body = get(health, "/ready")
    assert kind == "application/json"
    assert body.count("\n") == 1
    answer = json.loads(body)
    assert answer["ready"] is (status == 200)
    return status, answer["reasons"]


def well(part: ServiceHealth, clock: Clock) -> ServiceHealth:
    part.alive(clock.now)
    part.restored()
    part.tasks(2, 2)
    part.lag(10)
    return part


def tally() -> Tally:
    counted = Tally()
    for number, entity in enumerate(ENTITIES, 1):
        counted.read[entity] = 100 * number
        counted.accepted[entity] = 90 * number
        counted.deleted[entity] = number
        counted.rejected[entity] = 9 * number
        counted.unknown_fields[entity] = 3
        counted.parked[entity] = 4
    counted.violations["users", "email", Code.INVALID_EMAIL] = 9
    counted.violations["users", "email", Code.EMAIL_LOWERCASED] = 2
    counted.arrivals[NOW - 2_000] = 3
    counted.arrivals[NOW + 1_000] = 2
    counted.records_omitted = ["buddy.in.users/0/7"]
    counted.failures = [("buddy.in.users/0/8", "KeyError")]
    return counted


def fed() -> Metrics:
    """Every method called once, so that every metric has a sample."""
    metrics = Metrics()
    users, matches = Partition("buddy.in.users", 0), Partition("buddy.in.matches", 1)
    metrics.tally(tally(), NOW)
    metrics.anomalies.input_expired("users", 5)
    metrics.anomalies.input_recreated()
    metrics.anomalies.clock_stepped()
    metrics.anomalies.accepted_recreated()
    metrics.anomalies.rejected_recreated()
    metrics.anomalies.internal_recreated()
    metrics.anomalies.parked_lost("users", 3)
    metrics.parked({"matches": 7, "users": 6}, 5_000, 12.5)
    metrics.lag({users: 3, matches: 4})
    metrics.frontier(6, 2.5, [users])
    metrics.round()
    metrics.batch(0.2, 300)
    metrics.transaction("fenced")
    metrics.index(10, 20, 9)
    metrics.tasks(3, 2)
    metrics.restored(1.5)
    metrics.anomalies.split_keys(2)
    metrics.sink.applied(changed=1, deleted=2, repeats=3)
    metrics.anomalies.foreign_rows("sink", 4)
    metrics.anomalies.foreign_rows("index", 5)
    metrics.anomalies.state_rebuilt("index", 2)
    metrics.sink.expired(1)
    metrics.sink.lag({Partition("buddy.accepted.users", 0): 8})
    metrics.sink.export(3.0, finished=True)
    metrics.sink.active(is_active=True)
    metrics.sink.schedules({"weekly": 1_767_225_600.0})
    return metrics


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


def registered(metrics: Metrics) -> dict[str, tuple[str, tuple[str, ...], str]]:
    """Type, labels and help of every metric of the project, by its name as it is exposed."""
    found = {}
    suffixes = {"counter": "_total", "info": "_info"}
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


def test_a_batch_costs_next_to_nothing() -> None:
    metrics, counted = Metrics(), tally()

    def batch() -> None:
        metrics.tally(counted, NOW)
        metrics.parked({"matches": 3, "checkins": 4}, 5_000, 1.0)
        metrics.batch(0.1, 5_000)
        metrics.round()

    best = min(timeit.repeat(batch, number=100, repeat=20)) / 100
    assert best < 250e-6  # some 50 µs; a loaded machine must not fail it


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


# --- health -----------------------------------------------------------------------------------


def test_metrics_by_http(health: Health) -> None:
    status, kind, body = get(health, "/metrics")
    assert status == 200
    assert kind.startswith("text/plain; version=")
    assert 'buddy_records_read_total{entity="users"} 100.0\n' in body
    assert ("process_resident_memory_bytes" in body) == (sys.platform == "linux")
    assert "_created" not in body


def test_metrics_in_the_format_that_prometheus_asks_for(health: Health) -> None:
    asked = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.3"
    status, kind, body = get(health, "/metrics", Accept=asked)
    assert status == 200
    assert kind.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_alive_while_rounds_are_finished(health: Health, clock: Clock) -> None:
    worker = health.part("worker")
    assert get(health, "/live") == (200, "text/plain; charset=utf-8", "alive\n")
    for _ in range(5):
        clock.now += 59_000
        assert get(health, "/live")[0] == 200
        worker.alive(clock.now)


def test_not_alive_when_no_round_was_finished_for_long(health: Health, clock: Clock) -> None:
    worker, sink = health.part("worker"), health.part("sink")
    clock.now += 60_000
    sink.alive(clock.now)
    status, _, body = get(health, "/live")
    assert (status, body) == (503, "worker: nothing was finished for 60 s\n")
    worker.alive(clock.now)
    assert get(health, "/live")[0] == 200


def test_ready_when_restored_running_and_near_the_end(health: Health, clock: Clock) -> None:
    worker = health.part("worker")
    assert ready(health) == (503, ["worker: not restored yet"])
    well(worker, clock)
    assert ready(health) == (200, [])


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda part, clock: part.tasks(3, 1), "worker: 1 of 3 assigned tasks are running"),
        (
            lambda part, clock: part.lag(1_000),
            "worker: 1000 records are to be read, the limit is 1000",
        ),
        (
            lambda part, clock: part.expired(7, clock.now),
            "worker: 7 records were gone before they were read",
        ),
        (
            lambda part, clock: setattr(clock, "now", clock.now + 90_000),
            "worker: nothing was finished for 90 s",
        ),
    ],
)
def test_not_ready_says_why(health: Health, clock: Clock, spoil: Any, reason: str) -> None:
    spoil(well(health.part("worker"), clock), clock)
    assert ready(health) == (503, [reason])


def test_all_reasons_of_all_parts_are_told(health: Health, clock: Clock) -> None:
    worker = well(health.part("worker"), clock)
    worker.tasks(2, 0)
    worker.lag(5_000)
    health.part("sink")
    assert [reason.split(":")[0] for reason in ready(health)[1]] == ["worker", "worker", "sink"]


def test_a_worker_that_stands_by_is_ready(health: Health, clock: Clock) -> None:
    well(health.part("worker"), clock).tasks(0, 0)
    assert ready(health) == (200, [])


def test_what_keeps_a_service_from_its_work_is_told_until_it_is_over(
    health: Health, clock: Clock
) -> None:
    worker = well(health.part("worker"), clock)
    worker.hindered("index", "cannot read topic a: no answer", clock.now)
    clock.now += 5_000
    worker.hindered("index", "cannot read topic b: no answer", clock.now)
    worker.hindered("commits", "cannot commit as c: no answer", clock.now)
    clock.now += 2_000
    assert ready(health) == (
        503,
        [
            "worker: index: cannot read topic b: no answer (for 7 s)",
            "worker: commits: cannot commit as c: no answer (for 2 s)",
        ],
    )
    worker.free("index")
    worker.free("index")
    assert ready(health)[1] == ["worker: commits: cannot commit as c: no answer (for 2 s)"]
    worker.free("commits")
    assert ready(health) == (200, [])


def test_expired_input_is_told_for_good_and_forgiven_after_a_while(
    health: Health, clock: Clock
) -> None:
    worker = well(health.part("worker"), clock)
    worker.expired(7, clock.now)
    clock.now += 600_000
    worker.alive(clock.now)
    assert get(health, "/ready")[2] == '{"ready":true,"reasons":[],"expired":7}\n'


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/metrics/", 404),
        ("GET", "/live/../metrics", 404),
        ("GET", "/live?verbose=1", 200),
        ("POST", "/metrics", 405),
        ("DELETE", "/live", 405),
    ],
)
def test_other_requests(health: Health, method: str, path: str, status: int) -> None:
    assert get(health, path, method)[0] == status


def test_a_failure_inside_tells_clients_nothing(
    health: Health, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("secret")

    monkeypatch.setattr(health, "_metrics", fail)
    status, _, body = get(health, "/metrics")
    assert (status, body) == (500, "failed, see the log\n")
    out, err = capfd.readouterr()
    assert "secret" not in out + err


def test_who_dawdles_is_hung_up_on(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "_DEADLINE_SECONDS", 0.0)
    with socket.create_connection(("127.0.0.1", health.port), timeout=10) as connection:
        connection.sendall(b"GET /li")
        assert hung_up(connection)


def test_too_many_at_a_time_are_hung_up_on(health: Health, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health_module, "_MOST_CONNECTIONS", 2)
    address = ("127.0.0.1", health.port)
    with (
        socket.create_connection(address, timeout=10),
        socket.create_connection(address, timeout=10),
        socket.create_connection(address, timeout=10) as third,
    ):
        assert hung_up(third)


def test_what_is_no_http_is_answered_or_dropped_in_silence(
    health: Health, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.create_connection(("127.0.0.1", health.port), timeout=10) as connection:
        connection.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n\n")
        while connection.recv(1_000):
            pass
    assert get(health, "/live")[0] == 200
    assert capfd.readouterr().err == ""


def test_a_port_in_use_names_the_setting(health: Health, clock: Clock) -> None:
    second = Health(Metrics(), clock, port=health.port)
    with pytest.raises(ConfigurationError, match=r"in use: set metrics_port") as caught:
        second.start()
    assert "\n" not in str(caught.value)
    second.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_foreign_address_names_the_setting(clock: Clock, host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"set metrics_host"):
        Health(Metrics(), clock, host=host).start()


def test_close_frees_the_port_at_once_whoever_is_connected(clock: Clock) -> None:
    first = Health(Metrics(), clock)
    first.start()
    port = first.port
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"GET /li")
        first.close()
        assert hung_up(connection)
    second = Health(Metrics(), clock, port=port)
    second.start()
    assert get(second, "/live")[0] == 200
    second.close()
    second.close()
