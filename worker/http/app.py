"""The ASGI application: every path, and the role that it takes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.exports.places.place import ExportPlace
from worker.http.access import Tokens
from worker.http.announcements import Announcements
from worker.http.body import Uploads
from worker.http.broker_watch import BrokerWatch
from worker.http.checks import RecordChecker
from worker.http.console.console import ConsoleParts, console_routes, missing_page
from worker.http.console.export_pages import ExportPages
from worker.http.console.overview import Overview
from worker.http.console.pages import PageRenderer
from worker.http.console.rejection_pages import RejectionPages
from worker.http.console.replay_pages import ReplayPages
from worker.http.console.sampler import Look, StatusSampler
from worker.http.console.sign_in import SignIn
from worker.http.console.state_page import StatePage
from worker.http.desk_reader import DeskReader
from worker.http.downloads import Downloads
from worker.http.event_streams import EventStreams
from worker.http.export_requests import ExportRequests
from worker.http.exports import Exports
from worker.http.guard import Endpoint, Guard, answered, failed, needs, wrong_method
from worker.http.health import HealthEndpoints, HealthSource
from worker.http.keyed import KeyedRequests
from worker.http.metrics import HttpMetrics
from worker.http.openapi import openapi
from worker.http.operations import GREEDY, OPERATIONS, Operation
from worker.http.parameters import check_query
from worker.http.problems import Problem
from worker.http.records import RecordSender
from worker.http.rejection_stream import RejectionFollower, RejectionStreamer
from worker.http.rejections import RejectionViewer
from worker.http.replays import ReplaySender, UntilJudged
from worker.http.verdicts import VerdictWatches

OPEN: Final = frozenset(one.path for one in OPERATIONS if one.role is None)
"""The paths that take no token."""


class ApiSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the API is told of records, and where the desk has its store."""

    record_limit: int
    skew_seconds: float
    desk: Path
    show_values: bool = False
    """Whether callers who may operate see the values of rejected records."""
    redirect_downloads: bool = False
    """Whether files of exports in a bucket are fetched from the bucket itself."""


class ApiParts(NamedTuple):
    """What the API stands on: an open broker among it.

    `tokens` is None where only this machine is served. `watch` hears of failures. A
    desk, here or in another process, must keep the store of rejections up to date. `stop` ends
    streams of events, so that they do not hold up the end of the process.
    """

    broker: Broker
    names: Names
    place: ExportPlace
    health: HealthSource
    metrics: HttpMetrics
    tokens: Tokens | None
    watch: BrokerWatch
    until_judged: UntilJudged
    look: Look
    stop: asyncio.Event


@asynccontextmanager
async def api(parts: ApiParts, settings: ApiSettings) -> AsyncIterator[ASGIApp]:
    """The application."""
    broker, names = parts.broker, parts.names
    metrics = parts.metrics
    uploads = Uploads(metrics)
    downloads = Downloads(metrics)
    verdicts = VerdictWatches(broker, names)
    announcements = Announcements(broker, names, parts.watch)
    keyed = KeyedRequests(broker, names, parts.watch)
    following = [asyncio.create_task(one.run()) for one in (announcements, keyed)]
    sender = RecordSender(broker, names, uploads, verdicts, keyed, parts.watch, metrics)
    checker = RecordChecker(settings.record_limit, settings.skew_seconds, uploads)
    desk = DeskReader(broker, names, settings.desk)
    viewer = RejectionViewer(desk, show_values=settings.show_values)
    follower = RejectionFollower(desk)
    streams = EventStreams(metrics)
    streamer = RejectionStreamer(follower, streams)
    requests = ExportRequests(broker, names, parts.watch)
    exports = Exports(
        parts.place,
        requests,
        announcements,
        downloads,
        streams,
        redirects=settings.redirect_downloads,
    )
    replays = ReplaySender(desk, parts.until_judged, parts.watch)
    health = HealthEndpoints(parts.health)
    pages = PageRenderer()
    sampler = StatusSampler(broker, parts.look, parts.health)
    sampling = asyncio.create_task(sampler.run())
    console = ConsoleParts(
        pages,
        Overview(pages, sampler, desk, streams),
        RejectionPages(pages, viewer),
        ReplayPages(pages, replays),
        ExportPages(pages, exports, requests, announcements),
        StatePage(pages, sampler, desk, parts.health),
        SignIn(pages, parts.tokens),
    )
    ending = [
        asyncio.create_task(sampler.end_at(parts.stop)),
        asyncio.create_task(follower.end_at(parts.stop)),
        asyncio.create_task(announcements.end_at(parts.stop)),
    ]
    endpoints: dict[str, Endpoint] = {
        "send_records": sender.post,
        "delete_row": sender.delete,
        "check_records": checker.post,
        "list_rejections": viewer.list,
        "summarize_rejections": viewer.summary,
        "stream_rejections": streamer.get,
        "get_rejection": viewer.get,
        "replay": replays.post,
        "list_exports": exports.list,
        "request_export": exports.ask,
        "stream_exports": exports.stream,
        "get_export_request": exports.asked,
        "latest_export": exports.latest,
        "latest_export_part": exports.latest,
        "get_manifest": exports.manifest,
        "get_zip": exports.zip,
        "get_file": exports.file,
        "get_live": health.live,
        "get_ready": health.ready,
        "get_metrics": health.metrics,
        "get_openapi": describe,
    }
    routes = [
        *(_route(operation, endpoints[operation.name]) for operation in OPERATIONS),
        *console_routes(console),
    ]
    handlers = {404: missing_page(pages), 405: wrong_method, Problem: answered, Exception: failed}
    try:
        app = Starlette(routes=routes, exception_handlers=handlers)
        yield Guard(app, parts.tokens, metrics, OPEN)
    finally:
        for task in (*ending, *following, sampling):
            task.cancel()
        for task in (*following, sampling):
            with suppress(asyncio.CancelledError):
                await task
        await follower.close()
        await verdicts.close()
        uploads.close()
        downloads.close()


async def describe(_request: Request) -> Response:
    """The OpenAPI document."""
    return Response(msgspec.json.encode(openapi()), media_type="application/json")


def _route(operation: Operation, endpoint: Endpoint) -> Route:
    path = operation.path
    for name in GREEDY:
        path = path.replace(f"{{{name}}}", f"{{{name}:path}}")
    known = {one.name for one in operation.parameters if not one.is_header}

    async def checked(request: Request) -> Response:
        check_query(request, known)
        return await endpoint(request)

    guarded = checked if operation.role is None else needs(operation.role, checked)
    return Route(path, guarded, methods=[operation.method], name=operation.name)
