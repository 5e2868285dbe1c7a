"""The ASGI application: every path, and the role that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from starlette.applications import Starlette
from starlette.routing import Route
from starlette.types import ASGIApp

from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.http.access import Tokens
from worker.http.body import Uploads
from worker.http.checks import RecordChecker
from worker.http.desk_reader import DeskReader
from worker.http.guard import Guard, answered, failed, needs, not_found, wrong_method
from worker.http.problems import Problem
from worker.http.records import RecordSender
from worker.http.rejection_stream import RejectionFollower, RejectionStreamer
from worker.http.rejections import RejectionViewer
from worker.http.replays import ReplaySender, UntilJudged
from worker.http.verdicts import VerdictWatches


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the API is told of records, and where the desk has its store."""

    record_limit: int
    skew_seconds: float
    desk: Path
    show_values: bool = False
    """Whether callers who may operate see the values of rejected records."""


@asynccontextmanager
async def api(
    broker: Broker,
    names: Names,
    settings: ApiSettings,
    tokens: Tokens | None,
    until_judged: UntilJudged,
    stop: asyncio.Event,
) -> AsyncIterator[ASGIApp]:
    """The application, over an open broker. `tokens` is None where only this machine is served.

    A desk, here or in another process, must keep the store of rejections up to date. `stop` ends
    streams of events, so that they do not hold up the end of the process.
    """
    uploads = Uploads()
    verdicts = VerdictWatches(broker, names)
    sender = RecordSender(broker, names, uploads, verdicts)
    checker = RecordChecker(settings.record_limit, settings.skew_seconds, uploads)
    desk = DeskReader(broker, names, settings.desk)
    viewer = RejectionViewer(desk, show_values=settings.show_values)
    follower = RejectionFollower(desk)
    ending = asyncio.create_task(follower.end_at(stop))
    streamer = RejectionStreamer(follower)
    replays = ReplaySender(desk, until_judged)
    routes = [
        Route("/v1/records/{entity}", needs("send", sender.post), methods=["POST"]),
        Route("/v1/records/{entity}/{key}", needs("send", sender.delete), methods=["DELETE"]),
        Route("/v1/check/{entity}", needs("send", checker.post), methods=["POST"]),
        Route("/v1/rejections", needs("watch", viewer.list), methods=["GET"]),
        Route("/v1/rejections/summary", needs("watch", viewer.summary), methods=["GET"]),
        Route("/v1/rejections/stream", needs("watch", streamer.get), methods=["GET"]),
        Route(
            "/v1/rejections/{topic}/{partition}/{offset}",
            needs("watch", viewer.get),
            methods=["GET"],
        ),
        Route("/v1/replays", needs("operate", replays.post), methods=["POST"]),
    ]
    handlers = {404: not_found, 405: wrong_method, Problem: answered, Exception: failed}
    try:
        yield Guard(Starlette(routes=routes, exception_handlers=handlers), tokens)
    finally:
        ending.cancel()
        await follower.close()
        await verdicts.close()
        uploads.close()
