"""How a browser says who asks: a cookie that holds the token, where it can send no header.

The cookie is checked as a bearer token is, at each request and by any process. So a token that is
removed from the file is refused at once, and no session is kept anywhere.
"""

from __future__ import annotations

import hmac
from typing import Final

from starlette.requests import Request
from starlette.responses import Response

COOKIE: Final = "buddy_token"
_PAGES: Final = frozenset(
    {"rejections", "replay", "exports", "state", "login", "logout", "console"}
)
"""The first part of the path of every page of the console but `/`."""
_SAFE: Final = ("GET", "HEAD")


def is_page(path: str) -> bool:
    """Whether the path belongs to the console, and not to the API."""
    return path == "/" or (path.startswith("/") and path.split("/", 2)[1] in _PAGES)


def token_in_cookie(request: Request) -> str | None:
    """The token in the cookie; None without one.

    Beside the console, the cookie serves for reading alone, such as a download: no form can have a
    browser change something through the API.
    """
    if request.method in _SAFE or is_page(request.url.path):
        return request.cookies.get(COOKIE)
    return None


def form_key(request: Request) -> str:
    """What the forms of this caller must contain; empty if there is no cookie.

    No other origin can know it: it follows from the token.
    """
    token = request.cookies.get(COOKIE, "")
    return hmac.digest(token.encode(), b"buddy-console-form", "sha256").hex() if token else ""


def is_https(request: Request) -> bool:
    """Whether the browser speaks HTTPS, to a proxy that says so."""
    return request.headers.get("x-forwarded-proto", request.url.scheme) == "https"


def set_cookie(request: Request, answer: Response, token: str) -> None:
    """Keep the token in the browser, until it is closed."""
    answer.set_cookie(COOKIE, token, secure=is_https(request), httponly=True, samesite="strict")


def delete_cookie(answer: Response) -> None:
    """Have the browser forget the token."""
    answer.delete_cookie(COOKIE, httponly=True, samesite="strict")
