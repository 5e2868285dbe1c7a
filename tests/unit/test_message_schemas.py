"""Schemas of messages: what the program writes fits them; of requests, what it reads."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any, Final

import click
import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas import ENTITIES
from tests.paths import ROOT
from tests.unit.schema_kit import JSON
from worker.checking import Checker
from worker.cli.main import cli
from worker.core.decode import Invalid
from worker.core.rejection import OmittedRecord, reject
from worker.core.violations import Code, violation
from worker.desk.audit import ReplayAudit, encode_audit
from worker.errors import UsageError
from worker.exports.layout import FORMATS
from worker.exports.manifest import (
    Base,
    Cut,
    CutCell,
    DateRange,
    ExportedFile,
    Incremental,
    Manifest,
    Options,
)
from worker.exports.manifest import encode as encode_manifest
from worker.files.records import FileRecord, Place
from worker.message_schemas import MESSAGES, every_definition, message_schema, whole_schema
from worker.sink.requests import (
    Announcement,
    ExportFile,
    ExportRequest,
    Progress,
    encode_announcement,
    encode_request,
    read_request,
)
from worker.stream import Message

VALIDATORS: Final = {name: Draft202012Validator(message_schema(name)) for name in MESSAGES}
PAGE: Final = (ROOT / "docs" / "schemas.md").read_text("utf-8")
EXPORT_ID: Final = "550e8400-e29b-41d4-a716-446655440000"


def closed(kind: str) -> Draft202012Validator:
    """As `VALIDATORS`, and nothing may be there that the schema does not name."""

    def close(value: Any) -> Any:
        if isinstance(value, dict):
            value = {key: close(inner) for key, inner in value.items()}
            return {"additionalProperties": False} | value if "properties" in value else value
        return [close(inner) for inner in value] if isinstance(value, list) else value

    return Draft202012Validator(close(message_schema(kind)))


# --- what is written ---


@pytest.mark.parametrize(
    ("value", "malformed"),
    [(None, False), (b'{"a": 1}', False), (b'\t{"a": 1}', False), (b"", True), (b"\xff", True)],
)
@pytest.mark.parametrize("limit", [10_000, 0])
def test_rejections(value: bytes | None, malformed: bool, limit: int) -> None:
    headers = (("buddy-replays", b"1"), ("\u00e4", b"\xff"))
    message = Message("buddy.in.users", 0, 7, 1_700_000_000_123, b"key", value, headers)
    found = tuple(violation(code, "field", "expected") for code in Code)
    invalid = Invalid(b"key", found, omitted=3, malformed=malformed)
    for omitted in (None, OmittedRecord(5, "0" * 64)):
        for source in (None, Place("users.xlsx", 2, "Users"), Place("users.ndjson", 2)):
            encoded, _ = reject("users", message, invalid, 0, limit, source, omitted)
            closed("rejections").validate(json.loads(encoded))


def rejection_of_check() -> bytes:
    line = FileRecord("users", "users.ndjson", 1, b'{"email": "a"}')
    (checked,) = Checker(lambda: 0, 0, 1000).check([line])
    assert checked.rejection is not None
    return checked.rejection


def test_rejections_of_check() -> None:
    closed("rejections").validate(json.loads(rejection_of_check()))


def test_audits_of_replays() -> None:
    for key, forced in (("k", True), (None, False)):
        audit = ReplayAudit(
            replay="r",
            at="2025-11-22T10:30:00Z",
            by="ops@example",
            entity="users",
            key=key,
            rejection="buddy.rejected.users/0/1",
            origin="buddy.in.users/0/1",
            replays=1,
            forced=forced,
        )
        _, value = encode_audit(audit)
        closed("replays").validate(json.loads(value))


def announcements() -> list[Announcement]:
    at = datetime(2025, 11, 22, 10, 30, 0, 120, tzinfo=UTC)
    begun = Announcement(EXPORT_ID, "mine", "started", at)
    finished = msgspec.structs.replace(
        begun,
        status="finished",
        at=at.replace(microsecond=0),
        directory="d",
        location="/d",
        options=Options(entities=("users",), formats=("csv",), start=at.date()),
        counts={"users": 1},
        files=(ExportFile("users.csv", 1, 1, "0" * 64),),
        left_out={"matches": {"orphaned_user_id": 1}},
        complete=False,
        pending={"users": {0: 3}},
        base=EXPORT_ID,
        deletions={"users": {"deleted": 1}},
    )
    return [
        begun,
        finished,
        msgspec.structs.replace(begun, status="progress", progress=Progress("rows", 1, 2)),
        msgspec.structs.replace(begun, status="failed", error="no"),
    ]


@pytest.mark.parametrize("announcement", announcements(), ids=lambda a: a.status)
def test_announcements(announcement: Announcement) -> None:
    closed("announcements").validate(json.loads(encode_announcement(announcement)[1]))


def manifest() -> Manifest:
    """One that has something of everything."""
    cut = Cut({"users": {0: 3}}, {"users": {0: 4}})
    return Manifest(
        spec_version="1.0.0",
        export_id=EXPORT_ID,
        export_date="2025-11-22T10:30:00Z",
        date_range=DateRange(date(2024, 1, 1), date(2025, 11, 22)),
        record_counts={"users": 1},
        options=Options(entities=("users",), formats=FORMATS, incremental="copy"),
        cut=cut,
        complete=False,
        pending={"matches": {0: 1}},
        incremental=Incremental(
            name="copy",
            base=Base(EXPORT_ID, "d", "0" * 64, cut),
            deletions={"users": {"deleted": 1}},
            totals={"users": 2},
        ),
        left_out={"matches": {"orphaned_user_id": 1}},
        kept_without={},
        formula_cells={"users": 0},
        xlsx_cut_cells=(CutCell("users", EXPORT_ID, "location", 40_000),),
        files=(ExportedFile("d/users.csv", 1, 1, "0" * 64),),
    )


def test_manifests() -> None:
    closed("manifests").validate(json.loads(encode_manifest(manifest())))


GOOD: Final[dict[str, Callable[[], bytes]]] = {
    "rejections": rejection_of_check,
    "announcements": lambda: encode_announcement(announcements()[1])[1],
    "manifests": lambda: encode_manifest(manifest()),
}
_FOUND: Final = {"code": "nope", "field": "", "message": "", "severity": "error"}


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        ("rejections", {"entity": "nobody"}),
        ("rejections", {"violations": []}),
        ("rejections", {"violations": [_FOUND]}),
        ("rejections", {"rejected_at": "today"}),
        ("rejections", {"source": {"topic": "a"}}),
        ("manifests", {"format": 2}),
        ("manifests", {"files": [{"path": "a", "bytes": -1, "rows": 1, "sha256": "0" * 64}]}),
        ("manifests", {"record_counts": {"nobody": 1}}),
        ("announcements", {"status": "lost"}),
        ("announcements", {"id": "mine"}),
    ],
)
def test_what_is_none_of_ours_is_refused(kind: str, change: dict[str, Any]) -> None:
    good = json.loads(GOOD[kind]())
    assert VALIDATORS[kind].is_valid(good)
    assert not VALIDATORS[kind].is_valid(good | change)


# --- requests ---


def is_request(value: bytes) -> bool:
    try:
        read_request(Message("buddy.export-requests", 0, 0, 0, None, value))
    except UsageError:
        return False
    return True


NEAR: Final[list[Any]] = [
    *(None, "", "a", "a:b", "-a", "a b", "a\n", "x" * 100, "x" * 101, EXPORT_ID, 1, True, {}, []),
    *(["users"], ["users", "users"], ["user"], ["csv"], ["xls"], [1], "users"),
    *("2024-02-29", "2023-02-29", "2024-02-29\n", "0000-01-01", "2024-1-1", "2024-01-01T00:00:00Z"),
    *("2024-01-01T00:00:00", "2024-01-01T24:00:00Z", "schedule:a"),
]


def agrees(request: dict[str, Any]) -> None:
    value = msgspec.json.encode(request)
    assert VALIDATORS["requests"].is_valid(request) == is_request(value), request


def test_a_request_that_is_nearly_right_gets_one_answer() -> None:
    for name in (*(field.name for field in msgspec.structs.fields(ExportRequest)), "unknown"):
        for value in NEAR:
            agrees({"id": "mine"} | {name: value})
    agrees({})


@given(st.sampled_from([f.name for f in msgspec.structs.fields(ExportRequest)]), JSON)
def test_any_request_gets_one_answer(name: str, value: object) -> None:
    agrees({"id": "mine", name: value})


def test_requests_as_buddy_export_sends_them() -> None:
    now = datetime(2025, 11, 22, 10, 30, tzinfo=UTC)
    request = ExportRequest("mine", ("users",), ("csv",), now, "2024-01-01", None, "copy", True)
    VALIDATORS["requests"].validate(json.loads(encode_request(request)[1]))


def test_that_a_range_ends_before_it_begins_no_schema_can_say() -> None:
    request = {"id": "mine", "start": "2024-01-02", "end": "2024-01-01"}
    assert VALIDATORS["requests"].is_valid(request)
    assert not is_request(msgspec.json.encode(request))
    assert "ends before it begins" in PAGE


# --- documents ---


def test_every_definition_is_a_schema_whose_references_are_there() -> None:
    whole = whole_schema()
    Draft202012Validator.check_schema(whole)
    known = {f"#/$defs/{name}" for name in whole["$defs"]}

    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    assert references(whole) <= known
    assert {struct.__name__ for struct in MESSAGES.values()} <= whole["$defs"].keys()


def test_the_whole_describes_a_document_of_records() -> None:
    whole = Draft202012Validator(whole_schema())
    golden = ROOT / "tests" / "golden" / "export" / "expected"
    (document,) = golden.glob("buddy_export_*.json")
    exported = json.loads(document.read_bytes())
    whole.validate(exported)
    assert set(ENTITIES) <= exported.keys()
    assert not whole.is_valid(exported | {"user": []})
    assert not whole.is_valid(exported | {"users": [{}]})


@pytest.mark.parametrize("struct", MESSAGES.values(), ids=lambda s: s.__name__)
def test_every_field_of_a_message_is_described(struct: type[msgspec.Struct]) -> None:
    described = every_definition()[struct.__name__]["properties"]
    assert list(described) == [field.name for field in msgspec.structs.fields(struct)]


@pytest.mark.parametrize(
    ("file", "arguments"),
    [("buddy.schema.json", ["schema"]), ("asyncapi.json", ["schema", "--format", "asyncapi"])],
)
def test_the_committed_documents_are_the_generated_ones(file: str, arguments: list[str]) -> None:
    printed = CliRunner().invoke(cli, arguments, catch_exceptions=False).stdout
    path = ROOT / "schemas" / file
    wanted = f"run: .venv/bin/buddy {' '.join(arguments)} > schemas/{file}"
    assert path.read_text("ascii") == printed, wanted


# --- the page of the docs ---


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def test_the_page_can_be_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks("sh")).splitlines():
        command, _, file = line.removeprefix("buddy ").partition(" > ")
        printed = CliRunner().invoke(cli, command.split(), catch_exceptions=False)
        assert printed.exit_code == 0
        Path(file).write_text(printed.stdout)
    Path("users.ndjson").write_text('{"id": "x"}\n')
    (program,) = blocks("python")
    exec(program, {})  # noqa: S102 -- ours
    assert "1 $.id 'x' does not match" in capsys.readouterr().out


def test_every_name_is_on_the_page_and_the_others_are_refused() -> None:
    for name in ("users", *MESSAGES):
        assert f"`buddy schema {name}`" in PAGE
        printed = CliRunner().invoke(cli, ["schema", name], catch_exceptions=False).stdout
        assert json.loads(printed)["$id"] == f"urn:buddy-stream:schema:{name}"
    with pytest.raises(click.UsageError, match="did you mean users"):
        cli.main(["schema", "user"], standalone_mode=False)
    with pytest.raises(UsageError, match="leave the name out"):
        cli.main(["schema", "users", "--format", "asyncapi"], standalone_mode=False)
