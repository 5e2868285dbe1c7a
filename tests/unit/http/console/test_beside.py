"""The fields of a record beside its violations."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from worker.http.console.rejection_pages import (
    FieldRow,
    beside,
    record_of,
    value_text,
    whole_text,
)


def wrong(field: str, code: str = "invalid_enum") -> dict[str, Any]:
    return {"code": code, "field": field, "message": "why", "severity": "error"}


def test_each_violation_stands_at_its_field() -> None:
    role, name = wrong("role"), wrong("tags[3].name")
    rows, others = beside({"role": "x", "tags": []}, [role, name], masked=False)
    assert rows == [FieldRow("role", '"x"', [role]), FieldRow("tags", "[]", [name])]
    assert others == []


def test_a_field_that_is_missing_has_no_value() -> None:
    rows, _ = beside({"id": 1}, [wrong("email")], masked=False)
    assert rows == [FieldRow("id", "1", []), FieldRow("email", None, [wrong("email")])]


def test_a_name_with_a_dot_is_a_field_of_its_own() -> None:
    rows, _ = beside({"a.b": None}, [wrong("a.b")], masked=False)
    assert rows == [FieldRow("a.b", "null", [wrong("a.b")])]


def test_what_is_wrong_with_the_whole_record_stands_apart() -> None:
    assert beside([1], [wrong("")], masked=False) == ([], [wrong("")])


@pytest.mark.parametrize(
    ("value", "masked", "text"),
    [
        ('"a•••••" 9 characters', True, '"a•••••" 9 characters'),
        ("a", False, '"a"'),
        ({"a": [1]}, False, '{"a":[1]}'),
        (None, True, "null"),
    ],
)
def test_values_as_text(value: Any, masked: bool, text: str) -> None:
    assert value_text(value, masked=masked) == text


def test_the_original_is_decoded_and_a_masked_one_is_as_it_is() -> None:
    assert record_of({"record": msgspec.Raw(b'{"a":1}')}) == {"a": 1}
    assert record_of({"record": {"a": "a number"}}) == {"a": "a number"}
    assert record_of({"record": None}) is None


def test_an_original_without_fields_is_one_text() -> None:
    assert whole_text({"form": "json", "masked": False}, [1, 2]) == "[1,2]"
    assert whole_text({"form": "json", "masked": False}, {"a": 1}) is None
    assert whole_text({"form": "no_json", "masked": False, "record_base64": "/3s="}, None) == "�{"
    assert whole_text({"form": "no_json", "masked": True}, None) is None
