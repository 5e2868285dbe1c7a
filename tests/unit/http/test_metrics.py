"""What requests leave in the metrics of the API."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from prometheus_client import CollectorRegistry
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route, Router
from starlette.types import Message, Scope

from worker.http.event_streams import EventStreams
from worker.http.guard import Guard
from worker.http.metrics import HttpMetrics
from worker.ops.instruments import Instruments


class World:
    """An application of two operations behind the guard, and its metrics."""

    def __init__(self) -> None:
        make = Instruments()
        self.registry: CollectorRegistry = make.registry
        self.metrics = HttpMetrics(make, ["get_one", "stream_all"])
        self.streams = EventStreams(self.metrics)
        self.seen_while_open: float | None = None
        routes = [
            Route("/one/{how}", self.one, name="get_one"),
            Route("/all", self.all, name="stream_all"),
        ]
        self.app = Guard(Router(routes), None, self.metrics)

    async def one(self, request: Request) -> Response:
        if request.path_params["how"] == "gone":
            raise ClientDisconnect
        if request.path_params["how"] == "broken":
            raise ZeroDivisionError
        return Response(status_code=int(request.path_params["how"]))

    async def all(self, request: Request) -> Response:
        async def events() -> AsyncIterator[bytes]:
            self.seen_while_open = self.value("buddy_http_streams")
            yield b":\n\n"

        return self.streams.answer(request, events())

    def value(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(name, labels)

    async def get(self, path: str, host: str = "127.0.0.1") -> int:
        """The status of the answer; 0 if there is none."""
        scope: Scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "method": "GET",
            "path": path,
            "root_path": "",
            "query_string": b"",
            "headers": [(b"host", host.encode())],
        }
        status = 0

        async def receive() -> Message:
            return {"type": "http.request"}

        async def send(message: Message) -> None:
            nonlocal status
            status = message.get("status", status)

        await self.app(scope, receive, send)
        return status


@pytest.mark.parametrize(
    ("path", "status", "operation", "counted"),
    [
        ("/one/204", 204, "get_one", "2xx"),
        ("/one/307", 307, "get_one", "3xx"),
        ("/one/429", 429, "get_one", "4xx"),
        ("/one/broken", 500, "get_one", "5xx"),
        ("/none", 404, "other", "4xx"),
    ],
)
async def test_a_request_is_counted_once(
    path: str, status: int, operation: str, counted: str
) -> None:
    world = World()
    assert await world.get(path) == status
    labels = {"operation": operation, "status": counted}
    assert world.value("buddy_http_requests_total", **labels) == 1
    total = sum(
        sample.value
        for metric in world.registry.collect()
        for sample in metric.samples
        if sample.name == "buddy_http_requests_total"
    )
    assert total == 1
    assert world.value("buddy_http_request_duration_seconds_count", operation=operation) == 1
    assert world.value("buddy_http_requests_refused_total") == (status == 429)


async def test_a_client_that_leaves_has_no_status() -> None:
    world = World()
    assert await world.get("/one/gone") == 0
    assert world.value("buddy_http_requests_total", operation="get_one", status="4xx") == 0
    assert world.value("buddy_http_request_duration_seconds_count", operation="get_one") == 1


async def test_what_is_refused_before_it_is_routed_has_no_operation() -> None:
    world = World()
    assert await world.get("/one/204", host="elsewhere.example") == 421
    labels = {"operation": "other", "status": "4xx"}
    assert world.value("buddy_http_requests_total", **labels) == 1


async def test_a_stream_is_open_until_its_end() -> None:
    world = World()
    assert await world.get("/all") == 200
    assert world.seen_while_open == 1
    assert world.value("buddy_http_streams") == 0
    assert world.value("buddy_http_requests_total", operation="stream_all", status="2xx") == 1
    assert world.value("buddy_http_request_duration_seconds_count", operation="stream_all") == 1
