"""Stands before every endpoint: who may ask, from where, and how much at one time.

Without tokens only this machine is served. A web page of another origin gets nothing: a browser on
this machine would otherwise carry out requests for it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Container
from http import HTTPStatus
from typing import Any, Final

import structlog
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from worker.errors import BuddyError
from worker.http.access import ANYONE, NOBODY, Caller, Role, Tokens
from worker.http.listening import is_loopback
from worker.http.metrics import OTHER, HttpMetrics
from worker.http.problems import Problem, problem_of
from worker.http.sessions import is_page, token_in_cookie

MOST_REQUESTS: Final = 256
"""Requests in progress at one time; more get 429."""

_HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([A-Za-z0-9._-]+))(?::[0-9]{1,5})?")
_SAME_SITE: Final = ("same-origin", "none")
"""What browsers say of requests that no page of another origin has caused."""

Endpoint = Callable[[Request], Awaitable[Response]]

_log = structlog.get_logger(__name__)


class Guard:
    """ASGI middleware. Puts the caller into the state of the request, and answers errors."""

    def __init__(
        self,
        app: ASGIApp,
        tokens: Tokens | None,
        metrics: HttpMetrics,
        open_paths: Container[str] = (),
    ) -> None:
        """Nobody needs a token for `open_paths` and pages; without one they have no role."""
        self._app = app
        self._tokens = tokens
        self._metrics = metrics
        self._open_paths = open_paths
        self._requests = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through to the endpoints, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        status = 0
        began = time.monotonic()

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                self._metrics.answered(_operation(scope), status)
            await send(message)

        self._requests += 1
        counts = True

        def release() -> None:
            nonlocal counts
            if counts:
                counts = False
                self._requests -= 1
                self._metrics.took(_operation(scope), time.monotonic() - began)

        # For a stream of events: it may be open for days, and mostly waits.
        request.state.release = release
        try:
            if request.url.path not in self._open_paths:  # a probe must not fail for others' load
                self._check_pressure()
            check_origin(request)
            request.state.caller = self._caller(request)
            await self._app(scope, receive, sending)
        except Problem as problem:
            if not status:
                await problem.response()(scope, receive, sending)
        except ClientDisconnect:
            status = 499
        except Exception as error:  # noqa: BLE001 -- no request ends the server
            self._tell(error, _route(scope), begun=status > 0)
            if not status:
                await (await failed(request, error))(scope, receive, sending)
        finally:
            release()
            milliseconds = round((time.monotonic() - began) * 1000, 1)
            _log.debug(
                "http_request",
                method=request.method,
                path=_route(scope),
                status=status,
                milliseconds=milliseconds,
            )

    def _tell(self, error: Exception, path: str, *, begun: bool) -> None:
        """Report an answer that failed. One that had `begun` ends early: the client can tell."""
        if begun and isinstance(error, BuddyError):
            self._metrics.cut_off()
            _log.warning("http_cut_off", path=path, error=str(error))
        else:
            _log.error("http_failed", path=path, error=type(error).__name__)

    def _check_pressure(self) -> None:
        if self._requests > MOST_REQUESTS:
            raise Problem(
                429,
                "too_many_requests",
                f"{MOST_REQUESTS} requests are in progress: try again",
                headers={"Retry-After": "1"},
            )

    def _caller(self, request: Request) -> Caller:
        if self._tokens is None:
            if not is_loopback(asked_host(request)):
                raise Problem(
                    421,
                    "not_this_machine",
                    "without tokens only this machine is served: ask for 127.0.0.1, or set"
                    " http_tokens_file",
                )
            return ANYONE
        token = token_of(request)
        caller = None if token is None else self._tokens.caller(token)
        if caller is None and (request.url.path in self._open_paths or is_page(request.url.path)):
            return NOBODY
        if caller is None:
            raise Problem(
                401,
                "unauthorized",
                "send 'Authorization: Bearer TOKEN' with a token of the tokens file",
                headers={"WWW-Authenticate": "Bearer"},
            )
        return caller


def needs(role: Role, endpoint: Endpoint) -> Endpoint:
    """The endpoint, for callers with this role only."""

    async def guarded(request: Request) -> Response:
        caller: Caller = request.state.caller
        if role not in caller.roles:
            raise Problem(403, "forbidden", f"this takes a token with the role {role}")
        try:
            return await endpoint(request)
        except BuddyError as error:
            raise problem_of(error) from None

    return guarded


def token_of(request: Request) -> str | None:
    """The token in the header, or without that header in the cookie; None if there is none."""
    header = request.headers.get("authorization")
    if header is None:
        return token_in_cookie(request)
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else None


def asked_host(request: Request) -> str:
    """The host that the client asks for, by its header alone; empty if that is malformed."""
    match = _HOST.fullmatch(request.headers.get("host", ""))
    return "" if match is None else match[1] or match[2]


def check_origin(request: Request) -> None:
    """Raise Problem 403 for a request that a browser sends for a page of another origin."""
    origin = request.headers.get("origin")
    if origin is None and _follows_a_link(request):
        return
    others = origin is not None and origin.partition("://")[2] != request.headers.get("host")
    if others or request.headers.get("sec-fetch-site", "none") not in _SAME_SITE:
        raise Problem(403, "other_origin", "a page of another origin may ask nothing here")


def _follows_a_link(request: Request) -> bool:
    """Whether a person opens a page of the console from elsewhere. The page there learns nothing.

    The cookie is not sent with such a request, and reading changes nothing.
    """
    asked = (request.headers.get("sec-fetch-mode"), request.headers.get("sec-fetch-dest"))
    return (
        request.method == "GET" and asked == ("navigate", "document") and is_page(request.url.path)
    )


async def answered(_request: Request, error: Exception) -> Response:
    """The answer that an endpoint gave by raising a problem."""
    assert isinstance(error, Problem)
    return error.response()


async def failed(_request: Request, _error: Exception) -> Response:
    """The answer to a request that failed by a fault of this program. The guard logs it."""
    return Problem(500, "internal_error", "the request failed, see the log").response()


async def not_found(_request: Request, _error: Exception) -> Response:
    """The answer to a path that does not exist."""
    return nothing_here().response()


def nothing_here() -> Problem:
    """The problem of a path that does not exist."""
    return Problem(404, "not_found", "there is nothing at this path")


async def wrong_method(_request: Request, error: Any) -> Response:
    """The answer to a method that a path does not have."""
    headers = dict(error.headers or {})
    allowed = headers.get("Allow", "another method")
    return Problem(405, "wrong_method", f"use {allowed}", headers=headers).response()


def _operation(scope: Scope) -> str:
    """The name of the operation, once the request is routed."""
    name: str = getattr(scope.get("route"), "name", OTHER)
    return name


def _route(scope: Scope) -> str:
    """The path of the route, without what a client put into it."""
    route = scope.get("route")
    path: str = getattr(route, "path", "")
    return path or HTTPStatus.NOT_FOUND.phrase
