"""The ASGI application: every path, and the role that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Final, NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.exports.places.place import ExportPlace
from worker.http.access import Role, Tokens
from worker.http.announcements import Announcements
from worker.http.body import Uploads
from worker.http.checks import RecordChecker
from worker.http.downloads import Downloads
from worker.http.exports import Exports
from worker.http.guard import Endpoint, Guard, answered, failed, needs, not_found, wrong_method
from worker.http.health import HealthEndpoints, HealthSource
from worker.http.problems import Problem
from worker.http.records import RecordSender
from worker.http.verdicts import VerdictWatches

OPEN: Final = frozenset({"/live", "/ready"})
"""The paths that take no token."""


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the API is told of records."""

    record_limit: int
    skew_seconds: float


class ApiParts(NamedTuple):
    """What the API stands on: an open broker among it.

    `tokens` is None where only this machine is served.
    """

    broker: Broker
    names: Names
    place: ExportPlace
    health: HealthSource
    tokens: Tokens | None


@asynccontextmanager
async def api(parts: ApiParts, settings: ApiSettings) -> AsyncIterator[ASGIApp]:
    """The application."""
    broker, names = parts.broker, parts.names
    uploads = Uploads()
    downloads = Downloads()
    verdicts = VerdictWatches(broker, names)
    announcements = Announcements(broker, names)
    following = asyncio.create_task(announcements.run())
    sender = RecordSender(broker, names, uploads, verdicts)
    checker = RecordChecker(settings.record_limit, settings.skew_seconds, uploads)
    exports = Exports(parts.place, broker, names, announcements, downloads)
    health = HealthEndpoints(parts.health)
    routes = [
        _open("/live", health.live),
        _open("/ready", health.ready),
        _route("GET", "/metrics", "watch", health.metrics),
        _route("POST", "/v1/records/{entity}", "send", sender.post),
        _route("DELETE", "/v1/records/{entity}/{key}", "send", sender.delete),
        _route("POST", "/v1/check/{entity}", "send", checker.post),
        _route("GET", "/v1/exports", "fetch", exports.list),
        _route("POST", "/v1/exports", "fetch", exports.ask),
        _route("GET", "/v1/exports/stream", "fetch", exports.stream),
        _route("GET", "/v1/exports/requests/{id}", "fetch", exports.asked),
        _route("GET", "/v1/exports/latest", "fetch", exports.latest),
        _route("GET", "/v1/exports/latest/{rest:path}", "fetch", exports.latest),
        _route("GET", "/v1/exports/{name}", "fetch", exports.manifest),
        _route("GET", "/v1/exports/{name}/zip", "fetch", exports.zip),
        _route("GET", "/v1/exports/{name}/files/{path:path}", "fetch", exports.file),
    ]
    handlers = {404: not_found, 405: wrong_method, Problem: answered, Exception: failed}
    try:
        yield Guard(Starlette(routes=routes, exception_handlers=handlers), parts.tokens, OPEN)
    finally:
        following.cancel()
        with suppress(asyncio.CancelledError):
            await following
        await verdicts.close()
        uploads.close()
        downloads.close()


def _open(path: str, endpoint: Endpoint) -> Route:
    assert path in OPEN
    return Route(path, endpoint)


def _route(method: str, path: str, role: Role, endpoint: Endpoint) -> Route:
    return Route(path, needs(role, endpoint), methods=[method])
