"""Requests and announcements as they stand in their topics."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from worker.errors import UsageError
from worker.sink.requests import (
    Announcement,
    ExportRequest,
    Status,
    decode_announcement,
    encode_announcement,
    encode_request,
    export_id_of,
    options_of,
    outdated,
    read_request,
    request_id_of,
    selection_of,
)
from worker.sink.selection.plan import Days
from worker.stream import Message


def sent(value: Any, key: bytes | None = None) -> Message:
    raw = value if value is None or isinstance(value, bytes) else msgspec.json.encode(value)
    return Message("t.export-requests", 0, 17, 0, key, raw)


def test_a_request_survives_the_topic() -> None:
    request = ExportRequest("r1", ("users",), ("csv",), datetime(2025, 11, 22, tzinfo=UTC))
    key, value = encode_request(request)
    assert read_request(sent(value, key)) == request


def test_a_range_may_be_open_and_may_be_a_single_day() -> None:
    for days in ({"start": "2024-01-31"}, {"end": "0001-01-01"}, {}):
        asked = read_request(sent({"id": "r1", **days}))
        assert selection_of(asked).days == Days(**days)
    one = read_request(sent({"id": "r1", "start": "2024-01-31", "end": "2024-01-31"}))
    assert options_of(one).start == options_of(one).end == date(2024, 1, 31)
    assert options_of(one) != options_of(read_request(sent({"id": "r1"})))


def test_nothing_chosen_means_everything_and_order_is_the_specifications() -> None:
    whole = read_request(sent({"id": "r1"}))
    assert (whole.entities, whole.formats) == (tuple(ENTITIES), ("csv", "json", "xlsx"))
    some = read_request(
        sent({"id": "r1", "entities": ["events", "users", "events"], "formats": ["json", "csv"]})
    )
    assert (some.entities, some.formats) == (("users", "events"), ("csv", "json"))


@pytest.mark.parametrize(
    ("value", "key", "line"),
    [
        (None, None, "cannot be read"),
        (b"", None, "cannot be read"),
        (b"\xff", None, "cannot be read"),
        (b"[" * 100_000, None, "cannot be read"),
        ({}, None, "missing required field `id`"),
        ({"id": 5}, None, "Expected `str`, got `int`"),
        ({"id": ""}, None, "the request's id must be"),
        ({"id": "a/b"}, None, "the request's id must be"),
        ({"id": "a" * 101}, None, "the request's id must be"),
        ({"id": "a"}, b"b", "the message key must be the request's id"),
        ({"id": "a", "entities": "users"}, None, "Expected `array`"),
        ({"id": "a", "entities": ["user"]}, None, "unknown entity 'user': choose from users, "),
        ({"id": "a", "incremental": "schedule:weekly"}, None, "those of schedules cannot be named"),
        ({"id": "a", "formats": ["pdf"]}, None, "Invalid enum value 'pdf'"),
        ({"id": "a", "colour": "red"}, None, "unknown field `colour`"),
        ({"id": "a", "start": "2024-02-30"}, None, "'2024-02-30' is no date: write a day like "),
        ({"id": "a", "start": ""}, None, "'' is no date"),
        ({"id": "a", "end": "20240131"}, None, "'20240131' is no date"),
        ({"id": "a", "end": "2024-W05-3"}, None, "'2024-W05-3' is no date"),
        ({"id": "a", "end": "0000-01-01"}, None, "'0000-01-01' is no date"),
        ({"id": "a", "end": "2024-01-31T00:00:00Z"}, None, "is no date"),
        ({"id": "a", "end": "٢٠٢٤-01-01"}, None, "is no date"),
        (
            {"id": "a", "start": "2024-02-01", "end": "2024-01-31"},
            None,
            "the range ends on 2024-01-31, before it begins on 2024-02-01: the last day must be",
        ),
        ({"id": "a", "incremental": ""}, None, "the name of a bookmark must be 1 to 100 of"),
        ({"id": "a", "incremental": "a b"}, None, "the name of a bookmark must be 1 to 100 of"),
    ],
)
def test_a_malformed_request_is_one_clear_line(value: Any, key: bytes | None, line: str) -> None:
    with pytest.raises(UsageError) as raised:
        read_request(sent(value, key))
    assert line in str(raised.value)
    assert "\n" not in str(raised.value)


@given(st.binary(max_size=60), st.none() | st.binary(max_size=20))
def test_whatever_comes_is_a_request_or_a_line(value: bytes, key: bytes | None) -> None:
    with suppress(UsageError):
        assert read_request(sent(value, key)).id
    assert request_id_of(sent(value, key)).isascii()


def test_what_cannot_be_read_is_answered_under_its_key_or_its_coordinates() -> None:
    assert request_id_of(sent(b"?", b"mine")) == "mine"
    for key in (None, b"", b"\xff", b"a b"):
        assert request_id_of(sent(b"?", key)) == "t.export-requests:0:17"


@given(st.text(min_size=1))
def test_an_export_id_is_a_uuid_v4_that_follows_from_the_request(request_id: str) -> None:
    export_id = export_id_of(request_id)
    assert UUID(export_id).version == 4
    assert str(UUID(export_id)) == export_id
    assert export_id_of(request_id) == export_id_of(export_id) == export_id


def test_announcements_survive_the_topic_and_others_are_passed_over() -> None:
    said = Announcement(
        "e", "r", "failed", datetime(2025, 11, 22, tzinfo=UTC), error="the disk is full"
    )
    key, value = encode_announcement(said)
    assert key == b"e"
    assert decode_announcement(value) == said
    for other in (None, b"", b"\xff", b"{}", b"[" * 100_000):
        assert decode_announcement(other) is None


@pytest.mark.parametrize(
    ("latest", "followed_by"),
    [
        ("started", ["started", "progress", "finished", "failed"]),
        ("progress", ["started", "progress", "finished", "failed"]),
        ("failed", ["started", "finished", "failed"]),  # it may be asked again
        ("finished", ["finished", "failed"]),
    ],
)
def test_what_comes_behind_a_last_answer_may_be_outdated(
    latest: Status, followed_by: list[Status]
) -> None:
    said = Announcement("e", "r", latest, datetime(2025, 11, 22, tzinfo=UTC))
    every: tuple[Status, ...] = ("started", "progress", "finished", "failed")
    news = [s for s in every if not outdated(msgspec.structs.replace(said, status=s), said)]
    assert news == followed_by
