"""The JSON Schema of a record agrees with its verdict, but for what docs/schemas.md lists."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from typing import Any, Final

import msgspec
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from schemas import ENTITIES, Entity, Kind, json_schema, patterns
from schemas.json_schema import definitions, record_name, row_name
from tests.paths import ROOT
from tests.unit.cases_kit import load, value_of
from tests.unit.schema_kit import JSON, TEXT, drawn_from
from worker.checking import Checked, Checker
from worker.core.decode import DEFAULT_LIMIT, Decoded, decoders
from worker.core.rules import is_email
from worker.core.violations import Code
from worker.files.records import FileRecord

pytestmark = pytest.mark.thorough

PAGE = (ROOT / "docs" / "schemas.md").read_text("utf-8")
DEFINITIONS: Final = definitions()
DECODERS: Final = decoders()
END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)
END_OF_TIME_MS: Final = 253_402_300_799_999
VALIDATORS: Final = {e.name: Draft202012Validator(json_schema(e)) for e in ENTITIES.values()}
ROWS: Final = {
    e.name: Draft202012Validator({"$ref": f"#/$defs/{row_name(e)}", "$defs": DEFINITIONS})
    for e in ENTITIES.values()
}
RECORDS: Final = {
    e.name: drawn_from(DEFINITIONS[record_name(e)], DEFINITIONS) for e in ENTITIES.values()
}


def judged(entity: str, record: object) -> Checked:
    """What `buddy check` says of a record at the end of time, when nothing is in the future."""
    line = FileRecord(entity, "-", 1, msgspec.json.encode(record))
    return next(Checker(lambda: END_OF_TIME_MS, 0, DEFAULT_LIMIT).check([line]))


def codes(checked: Checked) -> list[str]:
    """Why a record is rejected, but for users that nobody has sent."""
    found = [v.code.value for v in checked.violations if v.severity == "error"]
    return [code for code in found if code != Code.ORPHANED_USER_ID]


# --- what no schema can say ---


def is_beyond_a_schema(entity: Entity, record: dict[str, Any]) -> bool:
    """Whether a rule of the list in docs/schemas.md is broken that depends on the record alone."""
    for column in entity.columns:
        value = record.get(column.name)
        match column.kind:
            case Kind.TIMESTAMP if isinstance(value, str):
                if re.match("0001-01-01.*[+]|9999-12-31", value):
                    return True
            case Kind.INTEGER if isinstance(value, float):
                return True
            case Kind.INTEGERS if isinstance(value, list):
                if any(isinstance(entry, float) for entry in value):
                    return True
            case Kind.OBJECT if "Infinity" in json.dumps(value):
                return True
            case Kind.EMAIL if (
                isinstance(value, str) and "\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}" in value
            ):
                return True
    return False


USER: Final = {
    "id": "550e8400-e29b-41d4-a716-446655440000",
    "email": "alice@example.com",
    "first_name": "Alice",
    "last_name": "Smith",
    "role": "participant",
    "joined_at": "2024-01-15T10:00:00Z",
}
MILESTONE: Final = {
    "milestone_id": 1,
    "user_id": USER["id"],
    "milestone_title": "First Match",
    "milestone_category": "other",
    "reached_at": "2024-01-15T10:00:00Z",
    "points": 1,
}


@pytest.mark.parametrize(
    ("entity", "text", "code"),
    [
        ("milestones", {"points": 1.0}, Code.WRONG_TYPE),
        ("users", {"joined_at": "0001-01-01T00:30:00+01:00"}, Code.INVALID_TIMESTAMP),
        ("users", {"joined_at": "9999-12-31T23:30:00-01:00"}, Code.INVALID_TIMESTAMP),
        ("users", {"joined_at": "9999-12-31T23:59:59.9999999Z"}, Code.INVALID_TIMESTAMP),
        ("users", {"email": "\u0130" * 33 + "@example.com"}, Code.INVALID_EMAIL),
        ("milestones", {"metadata": {"a": msgspec.Raw(b"1e400")}}, Code.NUMBER_OUT_OF_RANGE),
        ("users", {"other": "x" * 1024 * 1024}, Code.MALFORMED_RECORD),
    ],
)
def test_what_no_schema_can_say_is_documented(
    entity: str, text: dict[str, Any], code: Code
) -> None:
    record = (USER if entity == "users" else MILESTONE) | text
    assert codes(judged(entity, record)) == [code]
    assert VALIDATORS[entity].is_valid(json.loads(msgspec.json.encode(record)))
    assert f"| `{code.value}` |" in PAGE


def test_codes_that_depend_on_more_than_the_record_are_documented() -> None:
    beyond = (
        Code.FUTURE_TIMESTAMP,
        Code.DUPLICATE_EMAIL,
        Code.ORPHANED_USER_ID,
        Code.INVALID_KEY,
        Code.INTERNAL_ERROR,
    )
    assert all(f"| `{code.value}` |" in PAGE for code in beyond)


# --- agreement ---


@pytest.mark.parametrize("name", ENTITIES)
def test_every_case_of_the_corpus_agrees(name: str) -> None:
    """tests/cases/records, written from the contract alone."""
    seen = 0
    for parameter in load():
        case = parameter.values[0]
        if case["entity"] != name or case.get("deletion"):
            continue
        try:
            record = json.loads(value_of(case) or b"")
        except (ValueError, RecursionError):
            continue
        found = {v["code"] for v in case["violations"]}
        if found & {Code.FUTURE_TIMESTAMP, Code.INVALID_KEY, Code.MALFORMED_RECORD}:
            continue
        if isinstance(record, dict) and is_beyond_a_schema(ENTITIES[name], record):
            continue
        seen += 1
        assert VALIDATORS[name].is_valid(record) == (case["verdict"] == "accepted"), case["name"]
    assert seen > 100


@pytest.mark.parametrize("name", ENTITIES)
@settings(max_examples=max(settings().max_examples // 3, 1))  # drawing an address takes long
@given(data=st.data())
def test_a_record_drawn_from_the_schema_is_accepted(name: str, data: st.DataObject) -> None:
    record = data.draw(RECORDS[name])
    assume(not is_beyond_a_schema(ENTITIES[name], record))
    assert VALIDATORS[name].is_valid(record), "the kit draws what the schema refuses"
    assert codes(judged(name, record)) == []
    decoded = DECODERS[name].decode(msgspec.json.encode(record), None, END_OF_TIME)
    assert isinstance(decoded, Decoded)
    ROWS[name].validate(json.loads(decoded.row))


_UUID: Final = str(USER["id"])
NEAR: Final[list[Any]] = [
    *(None, "", " ", "\u00a0", "\u2003x", "\ufeff", "\x1c", "yesterday", "x" * 100, "x" * 101),
    *(True, False, 0, -0.5, 1, -1, 17, 18, 2**53 - 1, 2**53, 0.5, 1.5, 10**30, 1e300),
    *([], [""], [None], [0], [1], [17], [18], [1.5], [True], ["a", 1], {}, {"a": [None, 1]}),
    *(_UUID, _UUID.upper(), f"{{{_UUID}}}", _UUID + "\n", _UUID.replace("-", "")),
    *(_UUID.replace("-4", "-1"), _UUID.replace("-a", "-c"), _UUID.replace("5", "\uff15")),
    *("2024-01-15T10:00:00Z", "2024-01-15t10:00:00z", "2024-01-15 10:00:00.1234567+0100"),
    *("2024-02-30T10:00:00Z", "2023-02-29T10:00:00Z", "2024-02-29T10:00:00", "2024-01-15"),
    *(
        "2024-01-15T24:00:00Z",
        "2024-01-15T10:00:60Z",
        "2024-01-15T10:00:00Z\n",
        "0000-01-01T00:00:00Z",
    ),
    *(
        "2024-01-15T10:00:00+24:00",
        "2024-01-15T10:00:00.Z",
        "2024-01-15T10:00Z",
        " 2024-01-15T10:00:00Z",
    ),
    *("a@b", "A@B.C", "a@b@c.org", "a@b@c", "@b", "a@", "a b@c", "a@b..c", "a@-b", "a@b-", "a@b_c"),
    *("a@b\n", "a@b\u2028", "x" * 64 + "@b", "x" * 65 + "@b", "a@" + "b" * 252, "a@" + "b" * 253),
    *("a@\u00fc.de", "\u00fc@b", "a@b\u00a0", "\u212a@b", "a@\u212a", "\U0001f600@\U0001f600"),
    *(
        "participant",
        "Participant",
        "buddy",
        "all",
        "active",
        "other",
        "good",
        "in-person",
        "cultural",
    ),
    *("5", "true", "null", "1,000", "0.5", "\u200b", "\U0001f600" * 100, "\U0001f600" * 101),
    *("018f2d3c-7b1a-7cde-8f00-446655440000", f"urn:uuid:{_UUID}", "a@[::1]", '"a b"@c', "a@b."),
    *(".a@b", "a@xn--bcher-kva.de", "\u00df@b", "\ufb00@b", "a@b;c@d", "A <a@b>", "a@b,c", "a@@b"),
    *("2024-01-15T10:00:00 Z", "2024-W03-1T10:00:00Z", "2024-015T10:00:00Z", "15.01.2024 10:00"),
    *("\uff12024-01-15T10:00:00Z", "+2024-01-15T10:00:00Z", "2024-01-15T10:00:00,5Z", "1705312800"),
    *("2024-01-15T10:00:00+1:00", "2024-01-15T10:00:00GMT", "2024-01-15T10:00:00\u221201:00"),
]


GOOD: Final[dict[str, dict[str, Any]]] = {}
for _parameter in load():
    _case: Any = _parameter.values[0]
    if _case["verdict"] == "accepted" and isinstance(_case.get("record"), dict):
        GOOD.setdefault(_case["entity"], _case["record"])


def agrees(name: str, record: dict[str, Any]) -> None:
    if not is_beyond_a_schema(ENTITIES[name], record):
        found = codes(judged(name, record))
        assert VALIDATORS[name].is_valid(record) == (not found), (record, found)


@pytest.mark.parametrize("name", ENTITIES)
def test_a_value_that_is_nearly_right_gets_one_answer(name: str) -> None:
    for column in ENTITIES[name].columns:
        agrees(name, {key: value for key, value in GOOD[name].items() if key != column.name})
        for value in NEAR:
            agrees(name, GOOD[name] | {column.name: value})


@pytest.mark.parametrize("name", ENTITIES)
@given(data=st.data())
def test_any_value_gets_one_answer(name: str, data: st.DataObject) -> None:
    column = data.draw(st.sampled_from([*(c.name for c in ENTITIES[name].columns), "unknown"]))
    agrees(name, GOOD[name] | {column: data.draw(JSON | TEXT)})


# --- patterns, against the rules themselves ---

TIMESTAMP = Draft202012Validator(DEFINITIONS["Timestamp"])
EMAIL = Draft202012Validator(DEFINITIONS["Email"])


def is_timestamp(text: str) -> bool:
    return not codes(judged("users", USER | {"joined_at": text}))


def test_the_calendar_is_the_rules() -> None:
    for year in (0, 1, 4, 99, 100, 400, 1900, 1999, 2000, 2023, 2024, 2100, 9999):
        for month in range(14):
            for day in (0, 1, 9, 10, 19, 20, 27, 28, 29, 30, 31, 32, 99):
                text = f"{year:04}-{month:02}-{day:02}T12:00:00Z"
                assert TIMESTAMP.is_valid(text) == is_timestamp(text), text


def test_clock_and_offsets_are_the_rules() -> None:
    for number in range(100):
        for text in (
            f"2024-01-15T{number:02}:00:00Z",
            f"2024-01-15T00:{number:02}:00Z",
            f"2024-01-15T00:00:{number:02}Z",
            f"2024-01-15T00:00:00+{number:02}:00",
            f"2024-01-15T00:00:00-00{number:02}",
        ):
            assert TIMESTAMP.is_valid(text) == is_timestamp(text), text


@given(st.from_regex(patterns.TIMESTAMP), st.data())
def test_a_timestamp_with_one_other_character_gets_one_answer(
    text: str, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(text)))
    other = (
        text[:at]
        + data.draw(st.sampled_from("09-+:.TZtz \n\u0661x") | st.just(""))
        + text[at + 1 :]
    )
    for changed in (text, other):
        agrees("users", GOOD["users"] | {"joined_at": changed})


def test_each_character_of_an_address_is_the_rules() -> None:
    wide = (0x85, 0xA0, 0x1680, 0x180E, 0xFEFF, 0x212A, 0xFFFF, 0x1F600, 0x10FFFF)
    for character in map(chr, (*range(0x100), *range(0x2000, 0x2070), 0x3000, *wide)):
        for text in (f"{character}@b", f"a@{character}", f"a@b{character}c", f"a@b.{character}"):
            assert EMAIL.is_valid(text) == is_email(text.lower()), ascii(text)


@given(st.text(st.sampled_from("a.-@\u00fc\u2003 "), max_size=20))
def test_addresses_of_odd_shapes_get_one_answer(text: str) -> None:
    assert EMAIL.is_valid(text) == is_email(text.lower())


def test_white_space_is_what_python_calls_so() -> None:
    blank = re.compile(patterns.NOT_BLANK)
    assert all(
        (blank.search(character) is None) == character.isspace()
        for character in map(chr, range(0x11000))
    )


# --- documents ---


def test_each_document_is_a_schema_of_its_own() -> None:
    for entity in ENTITIES.values():
        schema = json_schema(entity)
        Draft202012Validator.check_schema(schema)
        assert schema["$id"] == f"urn:buddy-stream:schema:{entity.name}"
        assert list(schema["properties"]) == [column.name for column in entity.columns]
