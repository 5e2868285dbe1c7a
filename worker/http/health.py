"""`/live`, `/ready` and `/metrics` of the process that the API belongs to.

`buddy serve` answers for itself. In `buddy run` the API is a process of its own, and passes on what
the process of the services says: that one must be asked, since it may hang while the API does not.
"""

from __future__ import annotations

import asyncio
from typing import Final, NamedTuple, Protocol

import msgspec
import urllib3
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from starlette.requests import Request
from starlette.responses import Response
from urllib3.exceptions import HTTPError

from worker.http.access import Caller
from worker.http.problems import Problem
from worker.ops.health import Health, Readiness
from worker.ops.metrics import Metrics

_TIMEOUT: Final = urllib3.Timeout(5.0)
_UNAVAILABLE: Final = 503


class HealthAnswer(NamedTuple):
    """An answer: status, content type, content."""

    status: int
    kind: str
    content: bytes


class HealthSource(Protocol):
    """Answers for a process. `path` is `/live`, `/ready` or `/metrics`."""

    async def ask(self, path: str) -> HealthAnswer:
        """What the process says."""
        ...


class OwnHealth:
    """The health of this process."""

    def __init__(self, health: Health, metrics: Metrics) -> None:
        self._health = health
        self._metrics = metrics

    async def ask(self, path: str) -> HealthAnswer:
        """See `HealthSource`."""
        if path == "/metrics":
            content = await asyncio.to_thread(generate_latest, self._metrics.registry)
            return HealthAnswer(200, CONTENT_TYPE_LATEST, content)
        if path == "/ready":
            found = self._health.readiness()
            status = 200 if found.ready else _UNAVAILABLE
            return HealthAnswer(status, "application/json", msgspec.json.encode(found))
        stalled = self._health.stalled()
        status = 200 if stalled is None else _UNAVAILABLE
        return HealthAnswer(status, "text/plain; charset=utf-8", (stalled or "alive").encode())


class ServicesHealth:
    """The health of the process that started this one, by the address of its health.

    Whoever asks while a question is open gets the answer to that one: each waits in a thread, and a
    process that hangs would otherwise take them all.
    """

    def __init__(self, address: str, registry: CollectorRegistry) -> None:
        """`address` is `host:port`; the metrics of `registry` are added to those of the process."""
        self._url = f"http://{address}"
        self._registry = registry
        self._pool = urllib3.PoolManager(retries=False, timeout=_TIMEOUT)
        self._open: dict[str, asyncio.Task[HealthAnswer]] = {}

    async def ask(self, path: str) -> HealthAnswer:
        """See `HealthSource`. A process that does not answer is neither alive nor ready."""
        if path not in self._open:
            self._open[path] = asyncio.create_task(asyncio.to_thread(self._answer, path))
            self._open[path].add_done_callback(lambda _: self._open.pop(path))
        return await asyncio.shield(self._open[path])

    def _answer(self, path: str) -> HealthAnswer:
        try:
            answer = self._pool.request("GET", self._url + path)
        except HTTPError:
            reason = "the process of the services does not answer"
            silent = Readiness(ready=False, reasons=[reason], expired=0)
            return HealthAnswer(_UNAVAILABLE, "application/json", msgspec.json.encode(silent))
        kind = answer.headers.get("content-type", "text/plain")
        content = answer.data
        if path == "/metrics" and answer.status == 200:  # both are in the text format
            content += generate_latest(self._registry)
        return HealthAnswer(answer.status, kind, content)


class HealthEndpoints:
    """The endpoints. Whoever has no role `watch` learns whether all is well, and not why not."""

    def __init__(self, source: HealthSource) -> None:
        self._source = source

    async def live(self, request: Request) -> Response:
        """200 while the process is alive."""
        return await self._brief(request, "/live")

    async def ready(self, request: Request) -> Response:
        """200 while the process is ready."""
        return await self._brief(request, "/ready")

    async def metrics(self, _request: Request) -> Response:
        """The metrics, for Prometheus."""
        return _response(await self._source.ask("/metrics"))

    async def _brief(self, request: Request, path: str) -> Response:
        answer = await self._source.ask(path)
        caller: Caller = request.state.caller
        if "watch" in caller.roles or answer.status == 200:
            return _response(answer)
        what = "not_alive" if path == "/live" else "not_ready"
        return Problem(_UNAVAILABLE, what, "a token with the role watch is told why").response()


def _response(answer: HealthAnswer) -> Response:
    headers = {"Content-Type": answer.kind, "Cache-Control": "no-store"}
    return Response(answer.content, answer.status, headers)
