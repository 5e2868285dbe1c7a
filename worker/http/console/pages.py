"""Renders the pages of the console, and serves what they are made with.

A page has no script and no style of its own, and nothing of another host: its policy forbids them.
Every text is escaped by the templates.
"""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import Response

from schemas import ENTITIES
from worker.core.violations import Code
from worker.http.console import texts
from worker.http.parameters import caller_of
from worker.http.problems import Problem
from worker.http.sessions import COOKIE, form_key

_HERE: Final = Path(__file__).parent
_POLICY: Final = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:;"
    " connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
)
HEADERS: Final = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    # Not no-referrer: with that, a browser hides the origin of a form from us as well.
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_KINDS: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class PageRenderer:
    """The templates and the static files."""

    def __init__(self) -> None:
        self._static = {path.name: path.read_bytes() for path in (_HERE / "static").iterdir()}
        self._env = Environment(
            loader=FileSystemLoader(_HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            auto_reload=False,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._env.globals |= {
            "static": self._address,
            "entities": list(ENTITIES),
            "codes": [code.value for code in Code],
        }
        self._env.filters |= {
            "number": texts.number,
            "size": texts.size,
            "clipped": texts.clipped,
            "iso": texts.iso,
            "as_time": texts.as_time,
            "tasks": texts.tasks,
            "clock": texts.clock,
            "relative": texts.relative,
            "quoted": _quoted,
        }

        for name in self._env.list_templates():  # an upgrade replaces the files under this process
            self._env.get_template(name)

    def fragment(self, template: str, **values: Any) -> str:
        """A part of a page, the same for all callers."""
        return self._env.get_template(template).render(now=datetime.now(UTC), **values)

    def page(
        self, request: Request, template: str, *, status: int = 200, **values: Any
    ) -> Response:
        """A whole page for the caller of a request."""
        caller = caller_of(request)
        text = self.fragment(
            template,
            caller=caller,
            path=request.url.path,
            form_key=form_key(request),
            has_session=COOKIE in request.cookies,
            **values,
        )
        return Response(text, status, HEADERS, "text/html; charset=utf-8")

    def problem(self, request: Request, problem: Problem) -> Response:
        """The page of an error."""
        answer = self.page(request, "problem.html", status=problem.status, problem=problem)
        answer.headers.update(problem.headers)
        return answer

    async def static(self, request: Request) -> Response:
        """A static file. Its address changes with its content, so a browser may keep it."""
        name = request.path_params["name"]
        if name not in self._static:
            return Problem(404, "not_found", "there is nothing at this path").response()
        headers = HEADERS | {"Cache-Control": "public, max-age=31536000, immutable"}
        return Response(self._static[name], 200, headers, _KINDS[Path(name).suffix])

    def _address(self, name: str) -> str:
        version = hashlib.sha256(self._static[name]).hexdigest()[:12]
        return f"/console/static/{name}?v={version}"


def event(name: str, text: str) -> bytes:
    """A server-sent event with this text, which may have several lines."""
    lines = text.replace("\r", "").split("\n")
    data = "".join(f"data: {line}\n" for line in lines if line)
    return f"event: {name}\n{data}\n".encode()


def _quoted(text: str) -> str:
    """Text as a part of a path: a slash stays."""
    return quote(text, safe="/")
