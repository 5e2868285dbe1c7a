"""Health: by real HTTP, with a settable clock."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any

import pytest

from tests.unit.metrics_kit import fed
from worker.errors import ConfigurationError
from worker.ops import health as health_module
from worker.ops.health import Health, HealthLimits, ServiceHealth
from worker.ops.metrics import Metrics


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
