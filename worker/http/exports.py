"""Exports out: `GET /v1/exports` and below; `POST /v1/exports` asks for one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from itertools import islice
from typing import Final, Literal, NamedTuple
from uuid import uuid4

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from schemas import ENTITIES
from worker.errors import UsageError
from worker.exports.layout import FORMATS, MANIFEST, Format
from worker.exports.manifest import Manifest
from worker.exports.places.place import ExportPlace, Finished, GoneError, OpenFile
from worker.http.announcements import Announcements
from worker.http.downloads import Downloads
from worker.http.event_streams import EventStreams
from worker.http.export_requests import ExportRequests
from worker.http.parameters import caller_of, malformed, number_of, small_body, wait_of
from worker.http.problems import Problem
from worker.sink.listing import Listed, chosen, in_order, is_whole, listed, newest
from worker.sink.requests import (
    Announcement,
    ExportRequest,
    check_request,
)

_MOST_LISTED: Final = 1_000
_LONGEST_WAIT: Final = 600.0
_LARGEST_REQUEST: Final = 16 * 1024
_KINDS: Final = {
    "csv": "text/csv; charset=utf-8",
    "json": "application/json",
    "ndjson": "application/x-ndjson",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
}

_log = structlog.get_logger(__name__)


class ExportList(msgspec.Struct, frozen=True):
    """Finished exports, the newest first. `next` is the `after` of the next page, if there is one.

    `unreadable` has a line for each entry of the place that is named like an export and is none.
    """

    exports: list[Listed]
    next: str | None
    unreadable: list[str]


class ExportPage(NamedTuple):
    """Finished exports, the newest first; `following` is the name to go on after, if any."""

    exports: list[Finished]
    following: str | None
    unreadable: list[str]


class RequestedExport(msgspec.Struct, frozen=True):
    """A request that no sink has taken up yet."""

    request_id: str
    status: Literal["requested"] = "requested"


class Exports:
    """The endpoints for finished exports and for requests."""

    def __init__(
        self,
        place: ExportPlace,
        requests: ExportRequests,
        announcements: Announcements,
        downloads: Downloads,
        streams: EventStreams,
        *,
        redirects: bool,
    ) -> None:
        """With `redirects`, clients fetch files from the place itself, if it serves them."""
        self._place = place
        self._requests = requests
        self._announcements = announcements
        self._downloads = downloads
        self._streams = streams
        self._redirects = redirects

    async def list(self, request: Request) -> Response:
        """A page of finished exports."""
        found = await self.page(request, number_of(request, "limit", 100, _MOST_LISTED))
        exports = [_listed(one) for one in found.exports]
        return _json(ExportList(exports, found.following, found.unreadable))

    async def page(self, request: Request, limit: int) -> ExportPage:
        """The finished exports that the query of a request chooses. Raises Problem."""
        after = request.query_params.get("after")
        unreadable: list[str] = []

        def page() -> list[Finished]:
            found = self._place.finished(unreadable.append)
            if after is not None:
                found = _behind(found, after)
            found = chosen(_of_entity(in_order(found), request), *_filters(request))
            return list(islice(found, limit + 1))

        found = await self._downloads.run(page)
        following = found[limit - 1].name if len(found) > limit else None
        return ExportPage(found[:limit], following, unreadable)

    async def latest(self, request: Request) -> Response:
        """The latest export, or below it by a redirect."""
        found = await self._latest(request)
        rest = request.path_params.get("rest")
        if rest is None:
            return _json(_listed(found), {"Location": f"/v1/exports/{found.name}"})
        return RedirectResponse(f"/v1/exports/{found.name}/{rest}", 307)

    async def manifest(self, request: Request) -> Response:
        """The manifest of an export, as it is."""
        found = await self._find(request)
        file = await self._open(found, MANIFEST)
        headers = {"Content-Type": _KINDS["json"]}
        return self._downloads.file(request, file, found.manifest_sha256, headers)

    async def file(self, request: Request) -> Response:
        """A file of an export, or a redirect to where the place serves it."""
        found = await self._find(request)
        path = request.path_params["path"]
        listed_file = next((one for one in found.manifest.files if one.path == path), None)
        if listed_file is None:
            raise Problem(404, "no_such_file", "the manifest lists no such file")
        file = await self._open(found, path)
        kind = _KINDS.get(path.rpartition(".")[2], "application/octet-stream")
        headers = {"Content-Type": kind, **_named(_download_name(path, found.manifest))}
        if self._redirects and request.method == "GET":  # a link is signed for GET alone
            link = await self._link(found.name, path, headers)
            if link is not None:
                file.close()
                return RedirectResponse(link, 307, {"Cache-Control": "no-store"})
        return self._downloads.file(request, file, listed_file.sha256, headers)

    async def zip(self, request: Request) -> Response:
        """All files of an export as one zip."""
        found = await self._find(request)
        manifest = found.manifest
        stem = f"buddy_export_{manifest.export_date[:10]}"
        paths = [*(one.path for one in manifest.files), MANIFEST]
        files = await self._downloads.run(lambda: _open_all(self._place, found, paths))
        headers = {"Content-Type": "application/zip", **_named(f"{stem}.zip")}
        return self._downloads.zip(request, files, headers)

    async def ask(self, request: Request) -> Response:
        """Ask the sink for an export. 202 with the place to look; 200 if it is finished."""
        seconds = wait_of(request, _LONGEST_WAIT)
        if seconds:
            await self._announcements.current()
        body = await small_body(request, _LARGEST_REQUEST)
        wanted = _request_in(body)
        await self._requests.send(wanted, caller_of(request))
        found = await self._announcements.ended(wanted.id, seconds) if seconds else None
        return _answer(wanted.id, found)

    async def asked(self, request: Request) -> Response:
        """What became of a request."""
        request_id = request.path_params["id"]
        seconds = wait_of(request, _LONGEST_WAIT)
        await self._announcements.current()
        found = await self._announcements.ended(request_id, seconds)
        if found is None:
            raise Problem(
                404,
                "unknown_request",
                "no sink has announced anything for this request: it may not have begun",
            )
        return _answer(request_id, found)

    async def stream(self, request: Request) -> Response:
        """Announcements as server-sent events."""
        after = request.headers.get("last-event-id")
        await self._announcements.current()

        async def events() -> AsyncIterator[bytes]:
            yield b": connected\n\n"
            async for event in self._announcements.events(after):
                if event is None:
                    yield b": nothing new\n\n"
                else:
                    coordinate, announcement = event
                    data = msgspec.json.encode(_public(announcement))
                    yield b"id: %b\nevent: export\ndata: %b\n\n" % (coordinate.encode(), data)

        return self._streams.answer(request, events())

    async def _latest(self, request: Request) -> Finished:
        bookmark, formats = _filters(request)

        def find() -> Finished | None:
            found = chosen(_of_entity(self._place.finished(), request), bookmark, formats)
            return newest(e for e in found if bookmark is not None or is_whole(e.manifest))

        found = await self._downloads.run(find)
        if found is None:
            raise Problem(404, "no_such_export", "no finished export is like that")
        return found

    async def _find(self, request: Request) -> Finished:
        name = request.path_params["name"]
        found = await self._downloads.run(lambda: self._place.find(name))
        if found is None:
            raise Problem(404, "no_such_export", "there is no export of this name")
        return found

    async def _link(self, name: str, path: str, headers: Mapping[str, str]) -> str | None:
        kind, disposition = headers["Content-Type"], headers["Content-Disposition"]
        return await self._downloads.run(lambda: self._place.link(name, path, kind, disposition))

    async def _open(self, export: Finished, path: str) -> OpenFile:
        ((_, file),) = await self._downloads.run(lambda: _open_all(self._place, export, [path]))
        return file


def _open_all(
    place: ExportPlace, export: Finished, paths: Sequence[str]
) -> list[tuple[str, OpenFile]]:
    """Open files of an export, all or none.

    Raises Problem: 404 if it has been removed, 500 if a file of it is missing or of another size
    than the manifest lists.
    """
    sizes = {one.path: one.bytes for one in export.manifest.files}
    with ExitStack() as opened:
        files = []
        for path in paths:
            try:
                file = place.open(export.name, path)
            except GoneError:
                if place.find(export.name) is not None:
                    raise _damaged(export, path, "is missing, or is no regular file") from None
                raise Problem(404, "no_such_export", "the export has been removed") from None
            opened.callback(file.close)
            listed_size = sizes.get(path, file.size)
            if file.size != listed_size:
                raise _damaged(export, path, f"has {file.size} bytes instead of {listed_size}")
            files.append((path, file))
        opened.pop_all()
    return files


def _damaged(export: Finished, path: str, what: str) -> Problem:
    _log.error("export_damaged", name=export.name, path=path, what=what)
    return Problem(500, "damaged_export", f"{path} of {export.name} {what}: ask for another export")


def _filters(request: Request) -> tuple[str | None, list[Format]]:
    formats = request.query_params.getlist("format")
    for name in formats:
        if name not in FORMATS:
            raise malformed("format", f"must be one of {', '.join(FORMATS)}")
    return request.query_params.get("bookmark"), msgspec.convert(formats, list[Format])


def _of_entity(found: Iterator[Finished], request: Request) -> Iterator[Finished]:
    wanted = frozenset(request.query_params.getlist("entity"))
    if not wanted <= ENTITIES.keys():
        raise malformed("entity", f"must be one of {', '.join(ENTITIES)}")
    return (one for one in found if wanted <= set(one.manifest.options.entities))


def _behind(found: Iterator[Finished], name: str) -> Iterator[Finished]:
    """The exports after the one of that name. Raises Problem 410 if it is not there any more."""
    for one in found:
        if one.name == name:
            return found
    raise Problem(410, "stale_cursor", "the export named by after is gone: begin anew")


def _listed(found: Finished) -> Listed:
    return msgspec.structs.replace(listed(found), location=f"/v1/exports/{found.name}")


def _public(announcement: Announcement) -> Announcement:
    """The announcement with the location that a client of the API can use."""
    if announcement.directory is None:
        return announcement
    location = f"/v1/exports/{announcement.directory}"
    return msgspec.structs.replace(announcement, location=location)


def _answer(request_id: str, found: Announcement | None) -> Response:
    headers = {"Location": f"/v1/exports/requests/{request_id}"}
    if found is None:
        return _json(RequestedExport(request_id), headers, 202)
    status = 200 if found.status in ("finished", "failed") else 202
    return _json(_public(found), headers, status)


def _request_in(body: bytes) -> ExportRequest:
    """The request in a body; without an `id` it gets one. Raises Problem 400."""
    try:
        fields = msgspec.json.decode(body or b"{}", type=dict[str, msgspec.Raw])
        fields.setdefault("id", msgspec.Raw(msgspec.json.encode(str(uuid4()))))
        request = msgspec.json.decode(msgspec.json.encode(fields), type=ExportRequest)
        check_request(request)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        text = str(error)[:200] if isinstance(error, msgspec.ValidationError) else "no JSON object"
        raise Problem(400, "malformed_request", text) from None
    except UsageError as error:
        raise Problem(400, "malformed_request", str(error)) from None
    return msgspec.structs.replace(request, requested_at=datetime.now(UTC))


def _download_name(path: str, manifest: Manifest) -> str:
    """The name under which a browser keeps a file: its own, with the day if it has none."""
    name = path.rpartition("/")[2]
    day = manifest.export_date[:10]
    stem, dot, ending = name.rpartition(".")
    if day in name:
        return name
    return f"buddy_{stem}_{day}{dot}{ending}" if dot else f"buddy_{name}_{day}"


def _named(name: str) -> dict[str, str]:
    return {"Content-Disposition": f'attachment; filename="{name}"'}


def _json(value: object, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, headers, "application/json")
