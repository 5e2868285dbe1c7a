"""Requests on `export-requests`, and the sink's answers on `exports`.

Each request id is carried out once. The export's id follows from the request's id, so the same
request always names the same directory. Answers are published at least once; readers go by id and
status.

Bookmarks of schedules live in a namespace (`SCHEDULED`) that no message can name. The sink adds the
namespace to the requests that it makes for its own schedules.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import date, datetime
from typing import Final, Literal
from uuid import UUID

import msgspec

from schemas import ENTITIES
from worker.errors import UsageError
from worker.exports.layout import FORMATS, Format
from worker.exports.manifest import Manifest, Options
from worker.sink.selection.plan import Days, Selection
from worker.stream import Message

Status = Literal["started", "progress", "finished", "failed"]

_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,99}")
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
SCHEDULED: Final = "schedule:"
"""The prefix of a schedule's bookmark name, within the sink."""
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_UUID_V4: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")


class UnreadableRequest(UsageError):
    """The message is not a request."""


class ExportRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A request for an export, as JSON under its id as the key.

    Empty `entities` means all entities; empty `formats` means all formats. `start` and `end` are
    inclusive days in UTC, YYYY-MM-DD; None leaves that end open. `incremental` is the name of a
    bookmark. Unknown fields are refused: ignoring one would give another export than requested.
    """

    id: str
    entities: tuple[str, ...] = ()
    formats: tuple[Format, ...] = ()
    requested_at: datetime | None = None
    start: str | None = None
    end: str | None = None
    incremental: str | None = None
    guard_formulas: bool = False
    """Whether to put an apostrophe before CSV cells that a spreadsheet would run as formulas."""


class ExportFile(msgspec.Struct, frozen=True):
    """One file of an export: its path below the directory, and the rows of all entities in it."""

    path: str
    bytes: int
    rows: int
    sha256: str


class Progress(msgspec.Struct, frozen=True):
    """How far an export is: `done` of `total` in this stage."""

    stage: str
    done: int
    total: int


class Announcement(msgspec.Struct, frozen=True, omit_defaults=True):
    """An answer to a request, as JSON under the export's id as the key.

    "started" comes as soon as a sink has taken the request up, "progress" at most once a second.
    The last answer is "finished" or "failed"; `error` then gives the reason in one line.
    """

    id: str
    request_id: str
    status: Status
    at: datetime
    directory: str | None = None
    """The directory's name below the exports directory."""
    location: str | None = None
    """The directory with its path on the sink's machine, or its URL in a bucket."""
    options: Options | None = None
    """The requested options, as in the manifest."""
    counts: Mapping[str, int] | None = None
    """Rows by entity."""
    files: tuple[ExportFile, ...] = ()
    left_out: Mapping[str, Mapping[str, int]] = {}
    """Rows left out of the export: entity → reason → number."""
    kept_without: Mapping[str, Mapping[str, int]] = {}
    """Exported rows that refer to a row outside the export: entity → reason → number."""
    complete: bool | None = None
    pending: Mapping[str, Mapping[int, int]] = {}
    """If incomplete: entity → input partition → number of offsets not judged in time."""
    base: str | None = None
    """The id of the base of an incremental export."""
    full_because: str | None = None
    """Why an export that was requested as incremental holds all rows."""
    deletions: Mapping[str, Mapping[str, int]] = {}
    """Rows in deletions.ndjson: entity → reason → number."""
    progress: Progress | None = None
    error: str | None = None


def encode_request(request: ExportRequest) -> tuple[bytes, bytes]:
    """Key and value of the request's message."""
    return request.id.encode(), msgspec.json.encode(request)


def encode_announcement(announcement: Announcement) -> tuple[bytes, bytes]:
    """Key and value of the announcement's message."""
    return announcement.id.encode(), msgspec.json.encode(announcement)


def decode_announcement(value: bytes | None) -> Announcement | None:
    """Decode an announcement; None if the value is not one, for example from another version."""
    try:
        return msgspec.json.decode(value or b"", type=Announcement)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


def outdated(said: Announcement, latest: Announcement) -> bool:
    """Whether `said` is older news than `latest`, an earlier announcement for the same request.

    Sinks of earlier releases announced late after they had been frozen. An export is made once, so
    only another last answer follows "finished". A failed request may be asked again, so "started"
    follows "failed".
    """
    if said.status == "started":
        return latest.status == "finished"
    return said.status == "progress" and latest.status in ("finished", "failed")


def is_request_id(text: str) -> bool:
    """Whether a request can have this id."""
    return _ID.fullmatch(text) is not None


def read_request(message: Message) -> ExportRequest:
    """Decode and check the request in a message; fill it in with `fill_in`.

    Raises `UsageError`, with one line that says what is wrong; `UnreadableRequest` for garbage.
    """
    try:
        request = msgspec.json.decode(message.value or b"", type=ExportRequest)
    except msgspec.MsgspecError as error:
        raise UnreadableRequest(f"the request cannot be read: {_one_line(error)}") from None
    except (UnicodeDecodeError, RecursionError):
        raise UnreadableRequest("the request cannot be read: expected a JSON object") from None
    check_request(request)
    if message.key is not None and message.key != request.id.encode():
        raise UsageError("the message key must be the request's id")
    return fill_in(request)


def fill_in(request: ExportRequest) -> ExportRequest:
    """The same request, with all its entities and formats named, in their fixed order."""
    return msgspec.structs.replace(
        request,
        entities=_chosen(request.entities),
        formats=tuple(f for f in FORMATS if f in request.formats) or FORMATS,
    )


def check_request(request: ExportRequest) -> None:
    """Raise `UsageError` for an invalid request, with one line that says what is allowed."""
    if not _ID.fullmatch(request.id):
        raise UsageError("the request's id must be 1 to 100 of A-Z a-z 0-9 . _ : -")
    for name in request.entities:
        if name not in ENTITIES:
            raise UsageError(f"unknown entity {name[:40]!r}: choose from {', '.join(ENTITIES)}")
    for day in (request.start, request.end):
        if day is not None and not _is_day(day):
            raise UsageError(f"{day[:40]!r} is no date: write a day like 2024-01-31 (YYYY-MM-DD)")
    if request.start is not None and request.end is not None and request.end < request.start:
        raise UsageError(
            f"the range ends on {request.end}, before it begins on {request.start}: the last day "
            "must be the first or a later one"
        )
    if request.incremental is not None and not _NAME.fullmatch(request.incremental):
        raise UsageError(
            "the name of a bookmark must be 1 to 100 of A-Z a-z 0-9 . _ - "
            "(those of schedules cannot be named)"
        )


def selection_of(request: ExportRequest) -> Selection:
    """The rows that a filled-in request (`fill_in`) asks for."""
    return Selection(request.entities, Days(request.start, request.end))


def options_of(request: ExportRequest) -> Options:
    """The export options of a filled-in request (`fill_in`)."""
    name = request.incremental
    return Options(
        entities=request.entities,
        formats=request.formats,
        guard_formulas=request.guard_formulas,
        start=None if request.start is None else date.fromisoformat(request.start),
        end=None if request.end is None else date.fromisoformat(request.end),
        incremental=None if name is None else name.removeprefix(SCHEDULED),
        scheduled=name is not None and name.startswith(SCHEDULED),
    )


def feed_of(manifest: Manifest) -> str | None:
    """The bookmark name of an export, with its namespace; None without a bookmark."""
    name = manifest.options.incremental
    return name if name is None or not manifest.options.scheduled else SCHEDULED + name


def request_id_of(message: Message) -> str:
    """The id under which an unreadable request is answered: its key, else its coordinates."""
    try:
        key = (message.key or b"").decode("ascii")
    except UnicodeDecodeError:
        key = ""
    if _ID.fullmatch(key):
        return key
    return f"{message.topic}:{message.partition}:{message.offset}"


def export_id_of(request_id: str) -> str:
    """The export's id, a UUID v4: the request's id if that is one, else derived from that id."""
    if _UUID_V4.fullmatch(request_id):
        return request_id
    digest = hashlib.sha256(b"buddy-export:" + request_id.encode()).digest()
    return str(UUID(bytes=digest[:16], version=4))


def _chosen(asked: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name in ENTITIES if name in asked) if asked else tuple(ENTITIES)


def _is_day(text: str) -> bool:
    if not _DAY.fullmatch(text):
        return False
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True


def _one_line(error: Exception) -> str:
    return str(error).replace("\n", " ")[:200]
