"""Filters and cursors of requests for rejections."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from worker.desk.queries import Filter
from worker.http import opaque
from worker.http.problems import Problem
from worker.http.rejection_query import (
    LARGEST_PAGE,
    USUAL_PAGE,
    Cursor,
    decode_cursor,
    filter_of,
    list_query,
)

NOW = 1_764_547_200_000
HOUR_MS = 3_600_000


def request(*pairs: tuple[str, str]) -> Request:
    return Request({"type": "http", "query_string": urlencode(pairs).encode(), "headers": []})


@given(st.text("0123456789abcdef", min_size=1, max_size=64), st.integers(0, 2**63 - 1))
def test_a_cursor_comes_back_and_needs_no_quoting(identity: str, number: int) -> None:
    text = opaque.encode(Cursor(identity, number))
    assert urlencode({"after": text}) == f"after={text}"
    assert decode_cursor(text) == Cursor(identity, number)


@given(st.text(max_size=80))
def test_any_other_text_is_no_cursor_or_a_sound_one(text: str) -> None:
    found = decode_cursor(text)
    assert found is None or found.number >= 0


@pytest.mark.parametrize(
    "text", ["", "!", "e30", "W10", opaque.encode(Cursor("x y", 1)), opaque.encode(Cursor("a", -1))]
)
def test_what_is_no_cursor(text: str) -> None:
    assert decode_cursor(text) is None


def test_without_a_query_the_first_page_of_open_ones_is_meant() -> None:
    query = list_query(request(), NOW)
    assert query == (Filter(), USUAL_PAGE, None, False)


def test_each_part_of_a_query_counts() -> None:
    query = list_query(
        request(
            ("entity", "users"),
            ("code", "invalid_enum"),
            ("field", "role"),
            ("key", "a"),
            ("producer", "crm"),
            ("partition", "3"),
            ("since", "2h"),
            ("all", "true"),
            ("limit", str(LARGEST_PAGE)),
            ("after", opaque.encode(Cursor("ab", 7))),
        ),
        NOW,
    )
    assert query.chosen == Filter(
        entity="users",
        code="invalid_enum",
        field="role",
        key="a",
        producer="crm",
        partition=3,
        since=NOW - 2 * HOUR_MS,
    )
    assert query[1:] == (LARGEST_PAGE, Cursor("ab", 7), True)


@pytest.mark.parametrize("text", ["2025-12-01T00:00Z", "2025-12-01T00:00:00Z"])
def test_a_list_may_begin_at_a_moment(text: str) -> None:
    assert filter_of({"since": text}, NOW + HOUR_MS).since == NOW


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"entity": "Users"}, "entity"),
        ({"code": ""}, "code"),
        ({"key": "a"}, "key"),
        ({"since": "2 h"}, "since"),
        ({"since": "٣h"}, "since"),
        ({"since": "2025-13-01T00:00Z"}, "since"),
        ({"since": "2025-12-01T00:00"}, "since"),
        ({"partition": "٣"}, "partition"),
        ({"partition": -1}, "partition"),
        ({"partition": 10**9}, "partition"),
        ({"field": "x" * 1_001}, "field"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(Problem) as caught:
        filter_of(values, NOW)
    assert (caught.value.status, caught.value.members) == (400, {"parameter": named})


def test_a_strange_name_is_shortened_and_escaped() -> None:
    with pytest.raises(Problem) as caught:
        list_query(request(("\x1b[31m" + "x" * 500, "1")), NOW)
    assert "\x1b" not in caught.value.detail
    assert len(str(caught.value.members["parameter"])) <= 50
