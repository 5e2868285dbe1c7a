"""The ASGI application: every path, and the role that it takes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.http.access import Tokens
from worker.http.body import Uploads
from worker.http.checks import RecordChecker
from worker.http.guard import Guard, answered, failed, needs, not_found, wrong_method
from worker.http.problems import Problem
from worker.http.records import RecordSender
from worker.http.verdicts import VerdictWatches


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the API is told of records."""

    record_limit: int
    skew_seconds: float


@asynccontextmanager
async def api(
    broker: Broker, names: Names, settings: ApiSettings, tokens: Tokens | None
) -> AsyncIterator[ASGIApp]:
    """The application, over an open broker. `tokens` is None where only this machine is served."""
    uploads = Uploads()
    verdicts = VerdictWatches(broker, names)
    sender = RecordSender(broker, names, uploads, verdicts)
    checker = RecordChecker(settings.record_limit, settings.skew_seconds, uploads)
    routes = [
        Route("/v1/records/{entity}", needs("send", sender.post), methods=["POST"]),
        Route("/v1/records/{entity}/{key}", needs("send", sender.delete), methods=["DELETE"]),
        Route("/v1/check/{entity}", needs("send", checker.post), methods=["POST"]),
    ]
    handlers = {404: not_found, 405: wrong_method, Problem: answered, Exception: failed}
    try:
        yield Guard(Starlette(routes=routes, exception_handlers=handlers), tokens)
    finally:
        await verdicts.close()
        uploads.close()
