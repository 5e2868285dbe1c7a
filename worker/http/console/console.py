"""The routes of the console, and who may see which page."""

from __future__ import annotations

from collections.abc import Sequence

from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from worker.http.access import NOBODY, Role
from worker.http.console.overview import Overview
from worker.http.console.pages import Pages
from worker.http.guard import Endpoint, needs
from worker.http.parameters import caller_of
from worker.http.problems import Problem


def console_routes(pages: Pages, overview: Overview) -> list[Route]:
    """Every path of the console. `worker.http.sessions.is_page` knows their beginnings."""

    def route(
        path: str, endpoint: Endpoint, role: Role | None, methods: Sequence[str] = ("GET",)
    ) -> Route:
        return Route(path, _page(pages, role, endpoint), methods=list(methods))

    return [
        route("/", overview.get, None),
        route("/console/events", overview.stream, "watch"),
        Route("/console/static/{name}", pages.static),
    ]


def _page(pages: Pages, role: Role | None, endpoint: Endpoint) -> Endpoint:
    """The endpoint, for callers with this role; its errors are pages."""
    guarded = endpoint if role is None else needs(role, endpoint)

    async def page(request: Request) -> Response:
        if caller_of(request) == NOBODY:
            return RedirectResponse("/login", 303)
        try:
            return await guarded(request)
        except Problem as problem:
            return pages.problem(request, problem)

    return page
