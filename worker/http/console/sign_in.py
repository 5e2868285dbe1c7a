"""Signing in with a token, and out."""

from __future__ import annotations

from typing import Final
from urllib.parse import urlencode

import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from worker.http.access import NOBODY, Tokens
from worker.http.console.forms import read_form
from worker.http.console.pages import HEADERS, PageRenderer
from worker.http.parameters import caller_of
from worker.http.sessions import delete_cookie, is_page, set_cookie

_LONGEST_NEXT: Final = 2_000

_log = structlog.get_logger(__name__)


class SignIn:
    """The page on which a person gives a token, and its forms."""

    def __init__(self, pages: PageRenderer, tokens: Tokens | None) -> None:
        self._pages = pages
        self._tokens = tokens

    async def get(self, request: Request) -> Response:
        """The page; whoever is signed in goes on."""
        following = place_after(request.query_params.get("next", "/"))
        if caller_of(request) != NOBODY:
            return RedirectResponse(following, 303, HEADERS)
        return self._pages.page(request, "sign_in.html", following=following, refused=False)

    async def post(self, request: Request) -> Response:
        """Keep a token that is in the file in a cookie. The page again, with 403, if it is not."""
        form = await read_form(request)
        following = place_after(form.get("next"))
        token = form.get("token").strip()
        caller = None if self._tokens is None else self._tokens.caller(token)
        if caller is None:
            _log.warning("sign_in_refused")
            values = {"following": following, "refused": True}
            return self._pages.page(request, "sign_in.html", status=403, **values)
        _log.info("signed_in", caller=caller.name)
        answer = RedirectResponse(following, 303, HEADERS)
        set_cookie(request, answer, token)
        return answer

    async def end(self, request: Request) -> Response:
        """Forget the token."""
        await read_form(request)
        _log.info("signed_out", caller=caller_of(request).name)
        answer = RedirectResponse("/login", 303, HEADERS)
        delete_cookie(answer)
        return answer


def to_sign_in(request: Request) -> Response:
    """The answer to somebody without a token: a redirect to the page that takes one."""
    asked = request.url.path
    if request.url.query:
        asked += f"?{request.url.query}"
    query = urlencode({"next": asked}) if asked != "/" and request.method == "GET" else ""
    return RedirectResponse(f"/login?{query}".rstrip("?"), 303, HEADERS)


def place_after(text: str) -> str:
    """The page to go to; the first page, unless the text names another one of ours."""
    path = text.partition("?")[0]
    is_ours = is_page(path) and len(text) <= _LONGEST_NEXT and text.isprintable()
    return text if is_ours and "\\" not in text else "/"
