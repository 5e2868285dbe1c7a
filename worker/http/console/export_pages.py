"""Finished exports for those who fetch them, and a form that asks for another one."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Final, NamedTuple
from urllib.parse import urlencode
from uuid import uuid4

import msgspec
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from worker.errors import UsageError
from worker.exports.layout import FORMATS, Format
from worker.exports.manifest import ExportedFile
from worker.exports.places.place import Finished
from worker.http.access import ANYONE
from worker.http.announcements import Announcements
from worker.http.console.forms import Form, read_form
from worker.http.console.pages import HEADERS, PageRenderer
from worker.http.export_requests import ExportRequests
from worker.http.exports import Exports
from worker.http.parameters import caller_of, check_query, malformed
from worker.http.problems import Problem
from worker.http.sessions import is_https
from worker.sink.listing import listed
from worker.sink.requests import ExportRequest, check_request

_PAGE: Final = 20
_WAIT_SECONDS: Final = 20.0
"""How long the form waits for its export; a longer one is announced on the page."""


class ExportRow(NamedTuple):
    """A finished export as the page shows it."""

    name: str
    date: str
    feed: str | None
    full: bool
    complete: bool
    range: str
    bytes: int
    rows: int
    formats: tuple[str, ...]
    entities: tuple[str, ...]
    judged: int
    """The records that were judged before the cut."""
    left_out: int
    counts: dict[str, int]
    files: tuple[ExportedFile, ...]


class ExportPages:
    """The page of the exports."""

    def __init__(
        self,
        pages: PageRenderer,
        exports: Exports,
        requests: ExportRequests,
        announcements: Announcements,
    ) -> None:
        self._pages = pages
        self._exports = exports
        self._requests = requests
        self._announcements = announcements

    async def get(self, request: Request) -> Response:
        """A page of the list, and what became of a request."""
        check_query(request, ("after", "bookmark", "format", "entity", "requested"))
        requested = request.query_params.get("requested")
        answer = None
        if requested is not None:
            await self._announcements.current()
            answer = await self._announcements.ended(requested, 0)
        found = await self._exports.page(request, _PAGE)
        kept = [(k, v) for k, v in request.query_params.multi_items() if k in _FILTERS]
        older = None if found.following is None else urlencode([*kept, ("after", found.following)])
        return self._pages.page(
            request,
            "exports.html",
            exports=[row_of(one) for one in found.exports],
            is_first="after" not in request.query_params,
            older=older,
            unreadable=found.unreadable,
            requested=requested,
            answer=answer,
            formats=FORMATS,
            scheme="https" if is_https(request) else "http",
            host=request.headers.get("host", ""),
            takes_token=caller_of(request) != ANYONE,
        )

    async def post(self, request: Request) -> Response:
        """Ask for an export, wait for it a little, and show the list."""
        wanted = export_request(await read_form(request))
        await self._announcements.current()
        await self._requests.send(wanted, caller_of(request))
        await self._announcements.ended(wanted.id, _WAIT_SECONDS)
        return RedirectResponse(f"/exports?{urlencode({'requested': wanted.id})}", 303, HEADERS)


_FILTERS: Final = ("bookmark", "format", "entity")


def export_request(form: Form) -> ExportRequest:
    """The request in a form. Raises Problem 400."""
    try:
        formats = msgspec.convert(form.all("format"), tuple[Format, ...])
        wanted = ExportRequest(
            id=str(uuid4()),
            formats=formats,
            start=form.get("start") or None,
            end=form.get("end") or None,
            requested_at=datetime.now(UTC),
        )
        check_request(wanted)
    except msgspec.ValidationError:
        raise malformed("format", f"must be one of {', '.join(FORMATS)}") from None
    except UsageError as error:
        raise Problem(400, "malformed_request", str(error)) from None
    return wanted


def row_of(found: Finished) -> ExportRow:
    """The row of an export. Pure."""
    manifest = found.manifest
    entry = listed(found)
    options = manifest.options
    days = ""
    if options.start is not None or options.end is not None:
        days = f"{options.start or 'the beginning'} to {options.end or 'the end'}"
    return ExportRow(
        name=found.name,
        date=manifest.export_date,
        feed=entry.bookmark,
        full=entry.full,
        complete=manifest.complete,
        range=days,
        bytes=sum(file.bytes for file in manifest.files),
        rows=sum(manifest.record_counts.values()),
        formats=options.formats,
        entities=options.entities,
        judged=sum(sum(offsets.values()) for offsets in manifest.cut.judged.values()),
        left_out=sum(sum(counts.values()) for counts in manifest.left_out.values()),
        counts=manifest.record_counts,
        files=manifest.files,
    )
