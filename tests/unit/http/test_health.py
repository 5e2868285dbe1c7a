"""What the API says of the process that started it, and what it costs to ask."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from worker.http.health import ServicesHealth
from worker.ops.instruments import Instruments


class Services(ThreadingHTTPServer):
    """Answers once it may."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.asked = 0
        self.is_asked = threading.Event()
        self.may_answer = threading.Event()
        self.status = 200


class _Handler(BaseHTTPRequestHandler):
    server: Services

    def do_GET(self) -> None:
        self.server.asked += 1
        self.server.is_asked.set()
        self.server.may_answer.wait()
        self.send_response(self.server.status)
        self.send_header("Content-Length", "9")
        self.end_headers()
        self.wfile.write(b"theirs 1\n")

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def services() -> Iterator[Services]:
    with Services() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.may_answer.set()
            server.shutdown()
            thread.join()


@pytest.fixture
def health(services: Services) -> ServicesHealth:
    make = Instruments()
    make.gauge("ours", "A metric of the API.").set(2)
    return ServicesHealth(f"127.0.0.1:{services.server_port}", make.registry)


async def test_probes_of_a_process_that_hangs_share_one_thread(
    services: Services, health: ServicesHealth
) -> None:
    asking = [asyncio.create_task(health.ask("/live")) for _ in range(20)]
    await asyncio.to_thread(services.is_asked.wait)
    asking.pop(0).cancel()
    services.may_answer.set()
    answers = await asyncio.gather(*asking)
    assert {(answer.status, answer.content) for answer in answers} == {(200, b"theirs 1\n")}
    assert services.asked == 1
    await health.ask("/live")
    assert services.asked == 2, "the next one asks anew"


async def test_metrics_of_both_processes_are_answered(
    services: Services, health: ServicesHealth
) -> None:
    services.may_answer.set()
    lines = (await health.ask("/metrics")).content.decode().splitlines()
    assert {"theirs 1", "ours 2.0"} <= set(lines)


async def test_no_metrics_are_added_to_an_error(services: Services, health: ServicesHealth) -> None:
    services.status = 500
    services.may_answer.set()
    answer = await health.ask("/metrics")
    assert (answer.status, answer.content) == (500, b"theirs 1\n")
