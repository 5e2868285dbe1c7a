"""CSV files as records."""

from __future__ import annotations

import io
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES, Kind
from worker.errors import UsageError
from worker.files import FileRecord
from worker.files.cells import json_string, json_value, recognise
from worker.files.csv_table import read_csv

FEEDBACK = ",".join(column.name for column in ENTITIES["feedback"].columns)


def records(
    text: str | bytes, entity: str | None = "feedback", limit: int = 1 << 20
) -> list[FileRecord]:
    data = text.encode() if isinstance(text, str) else text
    chosen = None if entity is None else ENTITIES[entity]
    return list(read_csv(io.BytesIO(data), chosen, "f.csv", limit=limit))


def values(text: str | bytes, **options: Any) -> list[Any]:
    return [msgspec.json.decode(record.value) for record in records(text, **options)]


def test_comment_header_bom_and_crlf() -> None:
    text = f'\ufeff# Buddy Program Export\r\n# x,"y\r\n{FEEDBACK}\r\n'
    text += "a,,buddy,0.5,#t,,,,\r\n\r\nb,,,,,,,,\r\n"
    found = records(text)
    assert [record.value for record in found] == [
        b'{"feedback_id":"a","from_role":"buddy","rating":0.5,"feedback_text":"#t"}',
        b'{"feedback_id":"b"}',
    ]
    assert [record.line for record in found] == [4, 6]


def test_lines_are_numbered_by_lf_alone() -> None:
    text = 'id,first_name\na,"x\ry\n\nz"\nb,y\n'
    assert [(r.line, r.value) for r in records(text, entity="users")] == [
        (2, b'{"id":"a","first_name":"x\\ry\\n\\nz"}'),
        (5, b'{"id":"b","first_name":"y"}'),
    ]


def test_columns_in_another_order_and_unknown_ones() -> None:
    text = "shoe_size,first_name,id\n42,Al,a\n"
    assert records(text, entity="users")[0].value == (
        b'{"id":"a","first_name":"Al","shoe_size":"42"}'
    )


@pytest.mark.parametrize(
    ("kind", "cell", "value"),
    [
        (Kind.INTEGER, "20", b"20"),
        (Kind.INTEGER, "-0", b"-0"),
        (Kind.INTEGER, "1.0", b"1.0"),
        (Kind.INTEGER, "007", b'"007"'),
        (Kind.INTEGER, " 5", b'" 5"'),
        (Kind.INTEGER, "5\n", b'"5\\n"'),
        (Kind.INTEGER, "٣", '"٣"'.encode()),
        (Kind.INTEGER, "1_000", b'"1_000"'),
        (Kind.INTEGER, "true", b'"true"'),
        (Kind.RATING, "0.0000001", b"0.0000001"),
        (Kind.RATING, "1e-7", b"1e-7"),
        (Kind.RATING, ".5", b'".5"'),
        (Kind.RATING, "0,5", b'"0,5"'),
        (Kind.RATING, "NaN", b'"NaN"'),
        (Kind.TEXT, "20", b'"20"'),
        (Kind.TEXT, "null", b'"null"'),
        (Kind.TEXT, "=1+1", b'"=1+1"'),
        (Kind.ENUM, "buddy", b'"buddy"'),
        (Kind.TEXTS, '["a", 1]', b'["a", 1]'),
        (Kind.TEXTS, "[]", b"[]"),
        (Kind.TEXTS, "a", b'"a"'),
        (Kind.TEXTS, "null", b'"null"'),
        (Kind.TEXTS, "[1", b'"[1"'),
        (Kind.TEXTS, '[1],"x":[2]', b'"[1],\\"x\\":[2]"'),
        (Kind.INTEGERS, "{}", b"{}"),
        (Kind.OBJECT, '{"a":1e999}', b'{"a":1e999}'),
        (Kind.OBJECT, '{"a":"\t"}', b'"{\\"a\\":\\"\\t\\"}"'),
        (Kind.OBJECT, "[" * 50_000, b'"' + b"[" * 50_000 + b'"'),
    ],
    ids=range(28),
)
def test_a_cell_becomes_what_its_column_asks_for(kind: Kind, cell: str, value: bytes) -> None:
    assert json_value(kind, cell) == value


@given(st.text(st.characters(exclude_categories=())))
def test_any_text_becomes_json(text: str) -> None:
    encoded = json_string(text)
    try:
        text.encode()
    except UnicodeEncodeError:
        with pytest.raises((msgspec.DecodeError, UnicodeDecodeError)):
            msgspec.json.decode(encoded)
    else:
        assert msgspec.json.decode(encoded) == text


def test_bytes_that_are_no_utf8_reach_validation_as_they_are() -> None:
    assert records(b"id,first_name,interests\na,caf\xe9,[\xe9]\n", entity="users")[0].value == (
        b'{"id":"a","first_name":"caf\xe9","interests":"[\xe9]"}'
    )


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", "f.csv:1: not one column of feedback"),
        ("# only\n# comments\n", "f.csv:1: not one column of feedback"),
        ("a,b\n", "f.csv:1: not one column of feedback"),
        ("rating,rating\n", "f.csv:1: a column is named twice"),
        (f"{FEEDBACK}\na,b\n", "f.csv:2: 2 cells where the header has 9"),
        (f"{FEEDBACK}\na,,,,,,,,,x\n", "f.csv:2: 10 cells where the header has 9"),
        (f'# c\n{FEEDBACK}\n"a\n\n', "f.csv:3: not CSV"),
        (f'{FEEDBACK}\na,,,,,,,,\n"a"b,,,,,,,,\n', "f.csv:3: not CSV"),
        (f"{FEEDBACK}\na,b\rc,,,,,,,\n", "f.csv:2: not CSV"),
        ("x" * 5000, "f.csv:1: a line of 5000 bytes"),
    ],
)
def test_what_is_no_csv_is_named_with_its_line(text: str, fault: str) -> None:
    with pytest.raises(UsageError) as error:
        records(text, limit=4000)
    assert str(error.value).startswith(fault)
    assert "\n" not in str(error.value)


def test_columns_tell_the_entity() -> None:
    for entity in ENTITIES.values():
        assert recognise([column.name for column in entity.columns]) is entity
        required = [column.name for column in entity.columns if column.required]
        assert recognise([*reversed(required), "other"]) is entity
    assert recognise([]) is None
    assert recognise(["id", "email"]) is None
    both = {c.name for name in ("users", "matches") for c in ENTITIES[name].columns}
    assert recognise(sorted(both)) is ENTITIES["matches"]
    assert [record.entity for record in records(FEEDBACK + "\na,,,,,,,,\n", None)] == ["feedback"]
    with pytest.raises(UsageError, match="--entity"):
        records("a,b\n", None)


@given(st.binary())
def test_whatever_comes_in_nothing_else_goes_wrong(data: bytes) -> None:
    for start in (b"", FEEDBACK.encode() + b"\n"):
        try:
            records(start + data)
        except UsageError as error:
            assert "\n" not in str(error)  # noqa: PT017, both outcomes are right
