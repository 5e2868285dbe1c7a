"""JSON documents as records."""

from __future__ import annotations

import hashlib
import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.files.stream_kit import BOM, Trickle
from worker.errors import UsageError
from worker.files import FileRecord
from worker.files.json_document import names_entities, read_document, wrapped_in

DOCUMENT = b"""{"export_metadata": {"a": ["}", "\\""]},
"users": [
{"id":1,"s":"]}\\"\\\\"},
{"id":2,
 "nested":{"a":[[],{}]}}
],
"feedback": []}
"""


def records(
    data: bytes, size: int = 1 << 20, entity: str | None = None, limit: int = 1000
) -> list[FileRecord]:
    return list(read_document(Trickle(data, size), entity, "f.json", limit=limit))


@pytest.mark.parametrize("size", [1, 2, 3, 10, 1000])
def test_rows_are_cut_out_byte_for_byte(size: int) -> None:
    found = records(BOM + DOCUMENT, size)
    assert [(r.entity, r.line, r.value) for r in found] == [
        ("users", 3, b'{"id":1,"s":"]}\\"\\\\"}'),
        ("users", 4, b'{"id":2,\n "nested":{"a":[[],{}]}}'),
    ]


PLAIN = b"""[
  {
    "id": 1,
    "a": [ "}" ]
  },
  {"id": 2}
]
"""


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_an_array_of_one_entity(size: int) -> None:
    found = records(BOM + PLAIN, size, "users")
    assert [(r.entity, r.line) for r in found] == [("users", 2), ("users", 6)]
    assert [json.loads(r.value)["id"] for r in found] == [1, 2]
    assert records(b" [ ] ", size, "users") == []


@pytest.mark.parametrize("size", [1, 7, 1000])
def test_one_record_after_the_other(size: int) -> None:
    found = records(b'{ "id": "1",\n "users": [{}] }\n{"id":\n2}{"users":3}', size, "users")
    assert [(r.line, r.value) for r in found] == [
        (1, b'{"id": "1",\n "users": [{}] }'),
        (3, b'{"id":\n2}'),
        (4, b'{"users":3}'),
    ]


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"[{}", 1),
        (b"[{}]\n]", 2),
        (b"[{}\n{}]", 2),
        (b'{"id":1', 1),
        (b'{"id":1}\n,', 2),
        (b'{"id":1}}', 1),
        (b'{"' + b"x" * 2000 + b'":1}', 1),
        (b"1", 1),
        (b"", 1),
    ],
)
def test_a_plain_document_that_is_broken(data: bytes, line: int) -> None:
    with pytest.raises(UsageError) as error:
        records(data, entity="users")
    assert str(error.value).startswith(f"f.json:{line}: ")


def test_which_documents_tell_what_they_hold() -> None:
    def tells(data: bytes) -> bool:
        return names_entities(io.BytesIO(data), "f.json")

    assert tells(DOCUMENT)
    assert tells(b" {}")
    assert tells(b'{"users"')
    assert not any(map(tells, [b"", b"[]", b'{"id":1}', b"1", b"{", b'{"' + b"x" * 2000 + b'":1}']))


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (b'{"data":[{}]}', "data"),
        (b'{"a":{},"b":[]}', "b"),
        (b'{"a":{"id":[]},"b":1}', ""),
        (b'{"a":[],"id":1}', None),
        (b'{"a":1}', None),
        (b'[{"a":[]}]', None),
        (b'{"data":[{}', "data"),
        (b'{"a":{},"b":[],"c":[', "b"),
        (b"", None),
    ],
)
def test_what_wraps_records(data: bytes, field: str | None) -> None:
    assert wrapped_in(Trickle(data, 3), "users", "f.json") == field


@pytest.mark.parametrize(
    ("data", "entity", "field"),
    [
        (b'{"status":"success","data":[{"id":"a"}]}', "users", "data"),
        (b'{"status":"success","data":[{}]}', "matches", "data"),
        (b'{"metadata":{"n":1},"users":[ {}]}', "users", "users"),
        (b'{"role":"x","items":[\n{}]}', "users", "items"),
        (b'{"id":"x","items":[{}]}', None, "items"),
        (b'{"status":"success","data":[{"id":', "users", "data"),
        (b'{"id":1,"tags":[{}]}', "users", None),
        (b'{"event_id":1,"tags":[{}]}', "event_attendance", None),
        (b'{"role":"x","tags":["a"]}', "users", None),
        (b'{"id":"x","address":{"a":[{}]}}', "users", None),
    ],
)
def test_a_wrapper_may_have_a_field_that_is_a_column(
    data: bytes, entity: str | None, field: str | None
) -> None:
    assert wrapped_in(Trickle(data, 3), entity, "f.json") == field


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "expected { or [, found the end of the file"),
        (BOM + BOM + b"{}", "expected { or [, found a byte order mark"),
        (b'{"users":{"data":[]}}', "expected [, found {"),
        (b'{"users":[{},]}', "expected a value, found ]"),
        (b'{"users":[secret', "expected , or ], found the end of the file"),
        (b'{"users":[{} "secret"]}', "expected , or ], found a string"),
        (b"secret", "expected { or [, found something else"),
        (b'{"users":[{"a":"', "expected the end of a string, found the end of the file"),
    ],
)
def test_what_was_found_is_told_but_no_data(data: bytes, told: str) -> None:
    with pytest.raises(UsageError) as error:
        records(data)
    assert str(error.value) == f"f.json:1: not a JSON document of records: {told}"


def test_records_with_commas_between_them() -> None:
    with pytest.raises(UsageError, match=r":2: .* expected a value, found ,"):
        records(b'{"id":1}\n,{"id":2}', entity="users")


def test_markup_is_called_what_it_is() -> None:
    for entity in (None, "users"):
        with pytest.raises(UsageError, match=r"f\.json: is an HTML page"):
            records(b"\n<!DOCTYPE html>", entity=entity)


def test_one_entity_of_a_document() -> None:
    data = b'{"users":[{"a":1}],"feedback":[{"b":2}]}'
    told: list[str] = []
    found = read_document(io.BytesIO(data), "feedback", "f.json", notice=told.append)
    assert [r.value for r in found] == [b'{"b":2}']
    assert told == ["f.json: left out, of other entities: users"]


@pytest.mark.parametrize("data", [b"{}", b'{"users":[{"a":1}]}', b'{"export_metadata":{}}'])
def test_a_document_without_the_entity_is_no_silence(data: bytes) -> None:
    with pytest.raises(UsageError, match=r"f\.json: it holds no array of events: leave --entity"):
        records(data, entity="events")


def test_an_empty_array_is_nothing_to_complain_of() -> None:
    assert records(b'{"users":[],"events":[]}', entity="events") == []


@pytest.mark.parametrize(
    "row",
    [
        b"1",
        b"-1.5e3",
        b"null",
        b"nonsense",
        b'"text"',
        b"[1,[2]]",
        b"{]",
        b'{"a":\xff}',
        b"{" * 5 + b"}" * 5,
    ],
)
def test_what_a_row_holds_is_judged_elsewhere(row: bytes) -> None:
    found = records(b'{"users": [ ' + row + b" ,{}]}", size=1)
    assert [record.value for record in found] == [row, b"{}"] or row == b"{]"


def test_deep_nesting_is_no_matter() -> None:
    row = b"[" * 100_000 + b"]" * 100_000
    found = records(b'{"users":[' + row + b"]}", limit=1 << 20)
    assert found[0].value == row


@pytest.mark.parametrize("size", [1, 9, 100, 10_000])
def test_a_row_over_the_limit_is_cut_measured_and_hashed(size: int) -> None:
    row = b'{"a":"' + b"x" * 200 + b'"}'
    first, second = records(b'{"users":[' + row + b",{}]}", size, limit=100)
    assert (first.value, first.oversize) == (row[:100], len(row))
    assert first.sha256 == hashlib.sha256(row).hexdigest()
    assert (second.value, second.oversize) == (b"{}", 0)


@pytest.mark.parametrize("empty", [b"{}", b" { } ", b'{"export_metadata":{}}', b'{"users":[]}'])
def test_documents_without_rows(empty: bytes) -> None:
    assert records(empty) == []


@pytest.mark.parametrize(
    ("data", "line"),
    [
        (b"", 1),
        (b"[]", 1),
        (b"\n[{}]", 2),
        (b'{"users":[]} {}', 1),
        (b"\n\n{,", 3),
        (b'{"users"\n:{}}', 2),
        (b'{"users":[{}\n{}]}', 2),
        (b'{"users":[{},]}', 1),
        (b'{"users":[,{}]}', 1),
        (b'{"users":[{}]', 1),
        (b'{"users":[{"a":"\n', 2),
        (b'{"users":[{"a":"\\', 1),
        (b'{"users":[{}]}\nx', 2),
        (b'{"pets":[]}', 1),
        (b'{"id":1}', 1),
        (b'{"us\\xers":[]}', 1),
        (b'{"\xff":[]}', 1),
        (b"{'users':[]}", 1),
        (b'{"users":[{}}]}', 1),
    ],
)
def test_a_broken_frame_is_named_with_its_line(data: bytes, line: int) -> None:
    with pytest.raises(UsageError) as error:
        records(data)
    assert str(error.value).startswith(f"f.json:{line}: ")
    assert "\n" not in str(error.value)


rows = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@given(st.lists(rows, max_size=4), st.integers(1, 30), st.sampled_from([None, 2]), st.booleans())
def test_any_document_of_json(
    values: list[object], size: int, indent: int | None, ascii_only: bool
) -> None:
    document = {"users": values, "export_metadata": 1}
    text = json.dumps(document, indent=indent, ensure_ascii=ascii_only)
    data = text.encode("utf-8", "surrogatepass")
    found = records(data, size, limit=1 << 20)
    assert [json.loads(record.value) for record in found] == values


@given(st.lists(st.sampled_from([*b'{}[]",:\\ \n1ab'])).map(bytes))
def test_whatever_comes_in_nothing_else_goes_wrong(data: bytes) -> None:
    for start in (b"", b"{", b'{"users":[', b'{"users":[{', b"[", b'{"id":'):
        for entity in (None, "users"):
            try:
                list(read_document(io.BytesIO(start + data), entity, "f.json"))
            except UsageError as error:
                assert "\n" not in str(error)  # noqa: PT017, both outcomes are right
