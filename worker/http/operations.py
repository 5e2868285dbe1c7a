"""Every operation of the API as data: its path, its role, what it takes and what it answers.

The routes and the OpenAPI document are made from this table, so neither can differ from the other.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from schemas import ENTITIES
from worker.core.violations import Code
from worker.desk.seen import LONGEST_PRODUCER, PRODUCER_HEADER
from worker.http.access import Role
from worker.http.checks import CheckReport
from worker.http.exports import ExportList, RequestedExport
from worker.http.keyed import IDEMPOTENCY_KEY
from worker.http.replays import ReplayRequest
from worker.http.send_report import SendReport
from worker.ops.health import Readiness
from worker.sink.listing import Listed
from worker.sink.requests import Announcement, ExportRequest

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"
EVENTS: Final = "text/event-stream"
ANY: Final = "application/octet-stream"
ZIP: Final = "application/zip"
TEXT: Final = "text/plain"


class Parameter(NamedTuple):
    """A parameter of the query, or a header."""

    name: str
    description: str
    schema: dict[str, Any]
    repeatable: bool = False
    is_header: bool = False


class Body(NamedTuple):
    """A body: its media types, and the Structs that it may be; none if none describes it."""

    kinds: tuple[str, ...]
    structs: tuple[type[Any], ...] = ()
    is_required: bool = True


class Operation(NamedTuple):
    """One operation. `role` is None where no token is needed. `answers` are by status."""

    name: str
    method: str
    path: str
    role: Role | None
    summary: str
    answers: dict[int, Body]
    parameters: tuple[Parameter, ...] = ()
    body: Body | None = None


_TEXT: Final = {"type": "string"}
ENTITY: Final = {"type": "string", "enum": list(ENTITIES)}
WAIT: Final = Parameter(
    "wait",
    "How long to wait for the outcome: 10s, 500ms.",
    {"type": "string", "pattern": r"^([0-9]|[1-5][0-9])(ms|s)?$", "examples": ["10s"]},
)
_KEY: Final = Parameter(
    IDEMPOTENCY_KEY,
    "Names the request: a repeat sends only what was not sent before.",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
    is_header=True,
)
_PRODUCER: Final = Parameter(
    PRODUCER_HEADER,
    "The sender's name, for those who look at rejections; by default that of the token.",
    {"type": "string", "minLength": 1, "maxLength": LONGEST_PRODUCER, "pattern": "^[ -~]+$"},
    is_header=True,
)
_FORMAT: Final = Parameter(
    "format",
    "Only exports with this format.",
    {"type": "string", "enum": ["csv", "json", "xlsx"]},
    repeatable=True,
)
_ENTITY: Final = Parameter("entity", "Only exports with this entity.", ENTITY, repeatable=True)
_BOOKMARK: Final = Parameter("bookmark", "Only this feed; a schedule's is schedule:NAME.", _TEXT)
_LIMIT: Final = Parameter(
    "limit",
    "The most entries of a page.",
    {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100},
)
_AFTER: Final = Parameter("after", "`next` of the page before.", _TEXT)
_ONE_ENTITY: Final = Parameter("entity", "Only records of this entity.", ENTITY)
_CODE: Final = Parameter(
    "code", "Only records with this violation.", {"type": "string", "enum": [c.value for c in Code]}
)
_FILTERS: Final = (
    _ONE_ENTITY,
    _CODE,
    Parameter("field", "Only records with a violation in this field.", _TEXT),
    Parameter("key", "Only records with this key.", _TEXT),
    Parameter("producer", "Only records of this producer.", _TEXT),
    Parameter("partition", "Only this input partition.", {"type": "integer", "minimum": 0}),
    Parameter(
        "since",
        "Only rejections of so long (30m, 2h, 7d), or since a moment in UTC.",
        {"type": "string", "examples": ["2h", "2026-11-29T11:53Z"]},
    ),
)
_ALL: Final = Parameter("all", "Whether to list settled ones as well.", {"type": "boolean"})
_RECORDS: Final = Body((JSON, NDJSON))
_REPORT: Final = Body((JSON,), (SendReport,))
_ANSWER: Final = Body((JSON,), (Announcement,))
_ASKED: Final = Body((JSON,), (RequestedExport, Announcement))
_NOTHING: Final = Body(())

OPERATIONS: Final = (
    Operation(
        "send_records", "POST", "/v1/records/{entity}", "send",
        "Send the records of the body.",
        {200: _REPORT, 202: _REPORT}, (WAIT, _KEY, _PRODUCER), _RECORDS,
    ),
    Operation(
        "delete_row", "DELETE", "/v1/records/{entity}/{key}", "send",
        "Send the deletion of a row.",
        {200: _REPORT, 202: _REPORT}, (WAIT, _PRODUCER),
    ),
    Operation(
        "check_records", "POST", "/v1/check/{entity}", "send",
        "Judge the records of the body, and send nothing.",
        {200: Body((JSON,), (CheckReport,))}, (), _RECORDS,
    ),
    Operation(
        "list_rejections", "GET", "/v1/rejections", "watch",
        "List open rejections, the newest first.",
        {200: Body((JSON,))}, (*_FILTERS, _ALL, _LIMIT, _AFTER),
    ),
    Operation(
        "summarize_rejections", "GET", "/v1/rejections/summary", "watch",
        "Count rejections by entity, code and field; list incidents.",
        {200: Body((JSON,))}, _FILTERS,
    ),
    Operation(
        "stream_rejections", "GET", "/v1/rejections/stream", "watch",
        "New rejections as server-sent events.",
        {200: Body((EVENTS,))}, (_ONE_ENTITY, _CODE),
    ),
    Operation(
        "get_rejection", "GET", "/v1/rejections/{topic}/{partition}/{offset}", "watch",
        "One rejection and its original, by the coordinate of either.",
        {200: Body((JSON,))},
    ),
    Operation(
        "replay", "POST", "/v1/replays", "operate",
        "Send rejected records to their inputs again.",
        {200: Body((JSON,))}, (), Body((JSON,), (ReplayRequest,)),
    ),
    Operation(
        "list_exports", "GET", "/v1/exports", "fetch",
        "List finished exports, the newest first.",
        {200: Body((JSON,), (ExportList,))}, (_FORMAT, _ENTITY, _BOOKMARK, _LIMIT, _AFTER),
    ),
    Operation(
        "request_export", "POST", "/v1/exports", "fetch",
        "Ask the sink for an export.",
        {200: _ANSWER, 202: _ASKED}, (WAIT,), Body((JSON,), (ExportRequest,), is_required=False),
    ),
    Operation(
        "stream_exports", "GET", "/v1/exports/stream", "fetch",
        "Announcements of exports as server-sent events.",
        {200: Body((EVENTS,))},
    ),
    Operation(
        "get_export_request", "GET", "/v1/exports/requests/{id}", "fetch",
        "What became of a request for an export.",
        {200: _ANSWER, 202: _ANSWER}, (WAIT,),
    ),
    Operation(
        "latest_export", "GET", "/v1/exports/latest", "fetch",
        "The latest export that holds all rows, or of a feed.",
        {200: Body((JSON,), (Listed,))}, (_FORMAT, _ENTITY, _BOOKMARK),
    ),
    Operation(
        "latest_export_part", "GET", "/v1/exports/latest/{rest}", "fetch",
        "A redirect to the zip or a file of the latest export.",
        {307: _NOTHING}, (_FORMAT, _ENTITY, _BOOKMARK),
    ),
    Operation(
        "get_manifest", "GET", "/v1/exports/{name}", "fetch",
        "The manifest of an export.",
        {200: Body((JSON,)), 206: Body((JSON,)), 304: _NOTHING},
    ),
    Operation(
        "get_zip", "GET", "/v1/exports/{name}/zip", "fetch",
        "All files of an export as one zip.",
        {200: Body((ZIP,))},
    ),
    Operation(
        "get_file", "GET", "/v1/exports/{name}/files/{path}", "fetch",
        "A file of an export, or a redirect to the bucket that has it.",
        {200: Body((ANY,)), 206: Body((ANY,)), 304: _NOTHING, 307: _NOTHING},
    ),
    Operation(
        "get_live", "GET", "/live", None,
        "Whether the process is alive.",
        {200: Body((TEXT,))},
    ),
    Operation(
        "get_ready", "GET", "/ready", None,
        "Whether the process is ready.",
        {200: Body((JSON,), (Readiness,))},
    ),
    Operation(
        "get_metrics", "GET", "/metrics", "watch",
        "The metrics, for Prometheus.",
        {200: Body((TEXT,))},
    ),
    Operation(
        "get_openapi", "GET", "/openapi.json", None,
        "This document.",
        {200: Body((JSON,))},
    ),
)  # fmt: skip
"""In the order in which paths are matched."""

CONSOLE: Final = "console"
"""In the place of an operation: a page of the console."""

NAMES: Final = (*(operation.name for operation in OPERATIONS), CONSOLE)

GREEDY: Final = frozenset({"rest", "path"})
"""The path parameters that may contain slashes."""
