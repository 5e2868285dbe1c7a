"""The routes of the console, and who may see which page."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from worker.http.access import NOBODY, Role
from worker.http.console.export_pages import ExportPages
from worker.http.console.overview import Overview
from worker.http.console.pages import PageRenderer
from worker.http.console.rejection_pages import RejectionPages
from worker.http.console.replay_pages import ReplayPages
from worker.http.console.sign_in import SignIn, to_sign_in
from worker.http.console.state_page import StatePage
from worker.http.guard import Endpoint, needs, not_found, nothing_here
from worker.http.operations import CONSOLE
from worker.http.parameters import caller_of
from worker.http.problems import Problem


class ConsoleParts(NamedTuple):
    """The pages."""

    pages: PageRenderer
    overview: Overview
    rejections: RejectionPages
    replays: ReplayPages
    exports: ExportPages
    state: StatePage
    sign_in: SignIn


def missing_page(pages: PageRenderer) -> Callable[[Request, Exception], Awaitable[Response]]:
    """The answer to a path that does not exist: a page for a browser, a problem for programs."""

    async def missing(request: Request, error: Exception) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return await not_found(request, error)
        return pages.problem(request, nothing_here())

    return missing


def console_routes(parts: ConsoleParts) -> list[Route]:
    """Every path of the console. `worker.http.sessions.is_page` knows their beginnings."""
    pages = parts.pages

    def page(path: str, role: Role | None, endpoint: Endpoint, method: str = "GET") -> Route:
        guarded = endpoint if role is None else needs(role, endpoint)
        return Route(path, _page(pages, guarded), methods=[method], name=CONSOLE)

    return [
        page("/", None, parts.overview.get),
        page("/console/events", "watch", parts.overview.stream),
        page("/rejections", "watch", parts.rejections.list),
        page("/rejections/{topic}/{partition}/{offset}", "watch", parts.rejections.get),
        page("/replay", "operate", parts.replays.get),
        page("/replay", "operate", parts.replays.post, "POST"),
        page("/exports", "fetch", parts.exports.get),
        page("/exports", "fetch", parts.exports.post, "POST"),
        page("/state", "watch", parts.state.get),
        page("/logout", None, parts.sign_in.end, "POST"),
        Route("/login", _shown(pages, parts.sign_in.get), methods=["GET"], name=CONSOLE),
        Route("/login", _shown(pages, parts.sign_in.post), methods=["POST"], name=CONSOLE),
        Route("/console/static/{name}", pages.static, name=CONSOLE),
    ]


def _page(pages: PageRenderer, endpoint: Endpoint) -> Endpoint:
    """The endpoint for those who are signed in; others are led to where they do so."""
    shown = _shown(pages, endpoint)

    async def page(request: Request) -> Response:
        return to_sign_in(request) if caller_of(request) == NOBODY else await shown(request)

    return page


def _shown(pages: PageRenderer, endpoint: Endpoint) -> Endpoint:
    """The endpoint; its problems are pages."""

    async def shown(request: Request) -> Response:
        try:
            return await endpoint(request)
        except Problem as problem:
            return pages.problem(request, problem)

    return shown
