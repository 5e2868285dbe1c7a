"""Records at the edges: deep, large, full of faults, odd bytes, both ends of the calendar."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from schemas import ENTITIES
from tests.unit.core.records_kit import DECODERS, LATEST
from tests.unit.core_kit import good, to_json
from worker.core.decode import DEFAULT_LIMIT, Decoded, Invalid, RecordDecoder
from worker.core.violations import MOST_REPORTED

END_OF_TIME = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
FREE = {"checkins": "question_responses", "milestones": "metadata"}
LISTS = {
    entity.name: column.name
    for entity in ENTITIES.values()
    for column in entity.columns
    if "array" in column.kind.value
}


def decode(entity: str, value: bytes, latest: datetime = LATEST) -> Decoded | Invalid:
    outcome = DECODERS[entity].decode(value, None, latest)
    assert isinstance(outcome, Decoded | Invalid)
    return outcome


def codes(outcome: Decoded | Invalid) -> list[tuple[str, str]]:
    found = outcome.violations if isinstance(outcome, Invalid) else outcome.warnings
    return [(v.code.value, v.field) for v in found]


def with_field(entity: str, name: str, literal: bytes) -> bytes:
    """A good record with one more field, spelled as given."""
    return to_json(good(entity))[:-1] + b',"' + name.encode() + b'":' + literal + b"}"


def nest(levels: int) -> bytes:
    """Objects and arrays in one another: so many levels."""
    return b'{"a":[' * (levels // 2) + b"1" + b"]}" * (levels // 2)


@pytest.mark.parametrize("entity", FREE)
def test_a_hundred_levels_pass(entity: str) -> None:
    value = with_field(entity, FREE[entity], nest(98))  # and the record itself
    assert isinstance(decode(entity, value), Decoded)


@pytest.mark.parametrize("entity", ENTITIES)
def test_a_hundred_levels_in_a_field_that_is_dropped_pass(entity: str) -> None:
    outcome = decode(entity, with_field(entity, "surplus", nest(98)))
    assert isinstance(outcome, Decoded)
    assert outcome.unknown_fields == 1


@pytest.mark.parametrize("entity", ENTITIES)
@pytest.mark.parametrize("levels", [300, 1000, 5000, 100_000])
def test_deep_nests_pass_or_are_malformed_and_nothing_crashes(entity: str, levels: int) -> None:
    field = FREE.get(entity, "surplus")
    outcome = decode(entity, with_field(entity, field, nest(levels)))
    if isinstance(outcome, Invalid) or levels == 100_000:
        assert codes(outcome) == [("malformed_record", "")]


@pytest.mark.parametrize(
    "value",
    [b"[" * 100_000, b'{"a":' * 100_000, b"[" * 100_000 + b"]" * 100_000, b'{"a":1e999,"b":'
     + b"[" * 100_000 + b"]" * 100_000 + b"}"],
    ids=["open arrays", "open objects", "arrays", "after an overflow"],
)  # fmt: skip
def test_a_nest_of_100000_is_malformed(value: bytes) -> None:
    outcome = decode("checkins", value)
    assert codes(outcome) == [("malformed_record", "")]
    assert isinstance(outcome, Invalid)
    assert outcome.malformed


def test_a_record_of_5_mb_is_malformed() -> None:
    value = to_json(good("checkins", notes="x" * 5_000_000))
    assert codes(decode("checkins", value)) == [("malformed_record", "")]


def test_the_limit_counts_bytes_and_a_record_of_exactly_the_limit_passes() -> None:
    room = DEFAULT_LIMIT - len(to_json(good("checkins", notes="x"))) + 1
    for text in ("x" * room, "æ" * (room // 2) + "x" * (room % 2)):
        value = to_json(good("checkins", notes=text))
        assert len(value) == DEFAULT_LIMIT
        assert isinstance(decode("checkins", value), Decoded)
        assert codes(decode("checkins", value + b" ")) == [("malformed_record", "")]


def test_a_row_that_would_outgrow_its_topic_is_malformed() -> None:
    value = with_field("checkins", "question_responses", b'{"a":[' + b"1E15," * 200_000 + b"1]}")
    assert len(value) <= DEFAULT_LIMIT
    outcome = decode("checkins", value)
    assert codes(outcome) == [("malformed_record", "")]


@pytest.mark.parametrize("entity", LISTS)
def test_of_100000_violations_the_first_100_are_listed_and_the_others_counted(entity: str) -> None:
    value = with_field(entity, LISTS[entity], b"[" + b"{}," * 99_999 + b"{}]")
    outcome = decode(entity, value)
    assert isinstance(outcome, Invalid)
    field = LISTS[entity]
    assert codes(outcome) == [("wrong_type", f"{field}[{n}]") for n in range(MOST_REPORTED)]
    assert outcome.omitted == 100_000 - MOST_REPORTED


def test_exactly_100_violations_leave_none_out() -> None:
    outcome = decode("users", to_json(good("users", interests=[1] * 100)))
    assert isinstance(outcome, Invalid)
    assert (len(outcome.violations), outcome.omitted) == (100, 0)


def test_faults_in_later_columns_are_counted_among_those_left_out() -> None:
    record = good("event_attendance", categories=[1] * 100, sdg_goals=[0, 18])
    outcome = decode("event_attendance", to_json(record))
    assert isinstance(outcome, Invalid)
    assert outcome.omitted == 2


@pytest.mark.parametrize(
    ("text", "row"),
    [
        ("0001-01-01T00:00:00Z", "0001-01-01T00:00:00Z"),
        ("0001-01-01T00:00:00+00:00", "0001-01-01T00:00:00Z"),
        ("0001-01-01T00:00:00-23:59", "0001-01-01T23:59:00Z"),
        ("0001-01-01T23:59:00+23:59", "0001-01-01T00:00:00Z"),
        ("0001-01-01T23:58:59.999999+23:59", None),
        ("0001-01-01T00:00:00+00:01", None),
        ("0001-01-01T00:00:00.000001Z", "0001-01-01T00:00:00.000001Z"),
        ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
        ("9999-12-31T23:59:59.999999Z", "9999-12-31T23:59:59.999999Z"),
        ("9999-12-31T23:59:59+23:59", "9999-12-31T00:00:59Z"),
        ("9999-12-31T00:00:59-23:59", "9999-12-31T23:59:59Z"),
        ("9999-12-31T00:01:00-23:59", None),
        ("9999-12-31T23:59:59-00:01", None),
        ("10000-01-01T00:00:00Z", None),
        ("0000-01-01T00:00:00Z", None),
        ("-0001-01-01T00:00:00Z", None),
        ("2024-02-29T23:59:59.1234565Z", "2024-02-29T23:59:59.123457Z"),
        ("2023-02-29T00:00:00Z", None),
        ("2024-01-01T00:00:00+24:00", None),
    ],
)
@pytest.mark.parametrize("entity", ["users", "event_attendance"])
def test_both_ends_of_the_calendar(entity: str, text: str, row: str | None) -> None:
    field = ENTITIES[entity].date
    outcome = decode(entity, to_json(good(entity) | {field: text}), END_OF_TIME)
    if row is None:
        assert codes(outcome) == [("invalid_timestamp", field)]
    else:
        assert isinstance(outcome, Decoded)
        assert json.loads(outcome.row)[field] == row


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b" ",
        b"\xef\xbb\xbf" + to_json(good("users")),
        to_json(good("users")) + b"\xef\xbb\xbf",
        to_json(good("users")) + b"{}",
        to_json(good("users"))[:-1],
        with_field("users", "surplus", b'"\xff"'),
        with_field("users", "surplus", b'"\xed\xa0\x80"'),
        with_field("users", "surplus", b'"\\ud800"'),
        with_field("users", "surplus", b'"\\udc00\\ud800"'),
        with_field("users", "\\ud800", b"1"),
        with_field("users", "surplus", b"NaN"),
        with_field("users", "surplus", b"Infinity"),
        with_field("users", "surplus", b"-Infinity"),
        with_field("users", "surplus", b"01"),
        with_field("users", "surplus", b"1."),
        with_field("users", "surplus", b"'x'"),
        with_field("users", "surplus", b'"\n"'),
        to_json(good("users")).decode().encode("utf-16"),
        b"null",
        b"[]",
        b'"x"',
        b"1",
        b"1e999",
        b"\0",
    ],
)
def test_what_is_no_json_object_is_malformed(value: bytes) -> None:
    outcome = decode("users", value)
    assert codes(outcome) == [("malformed_record", "")]


@pytest.mark.parametrize("number", [b"1e999", b"-1e999", b"9" * 5000, b"-" + b"9" * 5000])
@pytest.mark.parametrize("odd", [b'"\\ud800"', b"NaN", b'"\xff"', b"[1,]", b'{"a":"\\udfff"}'])
@pytest.mark.parametrize("first", [True, False])
def test_malformed_stays_malformed_beside_an_extreme_number(
    number: bytes, odd: bytes, first: bool
) -> None:
    one, two = (number, odd) if first else (odd, number)
    value = with_field("users", "a", one)[:-1] + b',"b":' + two + b"}"
    assert codes(decode("users", value)) == [("malformed_record", "")]


@pytest.mark.parametrize("extreme", [b"", b'"x":1e999,'], ids=["plain", "after an extreme number"])
@pytest.mark.parametrize("odd", [b'"\\ud800"', b'{"\\udfff":1}', b'["\\ud800"]'])
def test_a_lone_surrogate_in_an_earlier_duplicate_is_malformed(extreme: bytes, odd: bytes) -> None:
    value = b"{" + extreme + b'"y":' + odd + b',"y":"ok",' + to_json(good("users"))[1:]
    assert codes(decode("users", value)) == [("malformed_record", "")]


@pytest.mark.parametrize(
    "literal", [b"9" * 5000, b"-" + b"9" * 5000, b"9" * 4300, b"1" + b"0" * 30]
)
def test_integers_in_free_objects_are_as_sent(literal: bytes) -> None:
    outcome = decode("milestones", with_field("milestones", "metadata", b'{"n":' + literal + b"}"))
    assert isinstance(outcome, Decoded)
    assert outcome.row.endswith(b'"metadata":{"n":' + literal + b"}}")


@pytest.mark.parametrize("literal", [b"9" * 5000, b"9007199254740992", b"1" + b"0" * 30, b"-1"])
def test_integers_of_any_length_are_out_of_range_never_malformed(literal: bytes) -> None:
    value = to_json(good("milestones", points=None))[:-1] + b',"points":' + literal + b"}"
    assert codes(decode("milestones", value)) == [("number_out_of_range", "points")]


def test_the_limit_is_that_of_the_decoder() -> None:
    small = RecordDecoder(ENTITIES["users"], limit=1000)
    value = to_json(good("users", location="x" * 1000))
    outcome = small.decode(value, None, LATEST)
    assert isinstance(outcome, Invalid)
    assert outcome.malformed


def test_a_malformed_record_has_the_key_of_its_message() -> None:
    key = b"00000001-0000-4000-8000-00000000ABCD"
    outcome = DECODERS["users"].decode(b"{", key, LATEST)
    assert outcome == DECODERS["users"].decode(b"{", key.lower(), LATEST)
    assert isinstance(outcome, Invalid)
    assert outcome.key == key.lower()


@pytest.mark.parametrize("host", ["a" + "-a" * 100 + "!", ("a." * 100)[:-1] + "!", "æ" * 200 + "-"])
def test_long_bad_addresses_are_refused_quickly(host: str) -> None:
    assert codes(decode("users", to_json(good("users", email=f"a@{host}")))) == [
        ("invalid_email", "email")
    ]


def test_a_row_judged_field_by_field_has_the_same_limit() -> None:
    value = with_field("checkins", "question_responses", b'{"a":[' + b"1E15," * 200_000 + b"1]}")
    odd = value.replace(b"{", b'{"unknown":1,', 1)
    assert codes(decode("checkins", odd)) == [("malformed_record", "")]
