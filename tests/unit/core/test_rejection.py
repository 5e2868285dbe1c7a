"""Rejections: the original can be recovered, within the limit, without personal data."""

from __future__ import annotations

import json
from base64 import b64decode, b64encode
from datetime import datetime
from hashlib import sha256
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES, Entity
from tests.unit.core.records_kit import (
    DECODERS,
    LATEST,
    Drawn,
    any_values,
    good_records,
    json_values,
    spell,
)
from tests.unit.core_kit import GRACE, NOW, World, good, to_json, uid
from worker.core.decode import Decoded, Invalid
from worker.core.references import missing, rejects, unexpected, verdict
from worker.core.rejection import Rejection, reject, replays_of, timestamp
from worker.core.rejection import original as recovered
from worker.core.violations import Code, violation
from worker.index.memory import MemoryIndex
from worker.stream import Headers, Message

LIMIT = 1024 * 1024 * 4 // 3 + 60 * 1024
KiB = 1024

keys = st.none() | st.binary(max_size=60)
header_values = st.binary(max_size=20)
many_headers: st.SearchStrategy[Headers] = st.lists(
    st.tuples(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), header_values),
    max_size=4,
).map(tuple)


class Told(msgspec.Struct):
    """What a reader of rejections looks at; `record` byte for byte."""

    record: msgspec.Raw = msgspec.Raw(b"null")
    record_base64: str | None = None


def record_of(encoded: bytes) -> bytes:
    """The record as JSON, byte for byte; null where there is none."""
    return bytes(msgspec.json.decode(encoded, type=Told).record)


def original(encoded: bytes) -> bytes | None:
    """The original bytes, as docs/contract.md says that they can be recovered."""
    told = msgspec.json.decode(encoded, type=Told)
    if told.record_base64 is not None:
        return b64decode(told.record_base64)
    return None if bytes(told.record) == b"null" else bytes(told.record)


def message_of(value: bytes | None, key: bytes | None = None, headers: Headers = ()) -> Message:
    return Message("buddy.in.users", 1, 42, NOW, key, value, headers)


def invalid_of(entity: Entity, value: bytes | None, key: bytes | None) -> Invalid:
    """Why it is rejected: for its own faults, or else as an orphan, or else for no reason."""
    decoder = DECODERS[entity.name]
    outcome = decoder.decode(value, key, LATEST)
    if isinstance(outcome, Invalid):
        return outcome
    if isinstance(outcome, Decoded):
        known = MemoryIndex()
        found = verdict(decoder, outcome, known, *missing(outcome, known), taken=False)
        if rejects(found):
            return Invalid(outcome.key, found)
    return Invalid(outcome.key, (violation(Code.INVALID_KEY, "", "expected another"),))


def large(size: int) -> bytes:
    return to_json(good("checkins", notes="x" * (size - len(to_json(good("checkins", notes=""))))))


@given(any_values(), keys, many_headers)
def test_whatever_came_in_can_be_recovered_from_the_rejection(
    drawn: tuple[Entity, bytes], key: bytes | None, headers: Headers
) -> None:
    entity, value = drawn
    invalid = invalid_of(entity, value, key)
    encoded, omitted = reject(entity.name, message_of(value, key, headers), invalid, NOW, LIMIT)
    assert not omitted
    assert len(encoded) <= LIMIT
    told = json.loads(encoded)
    assert original(encoded) == value
    assert (key is None) == (told["message_key_base64"] is None)
    assert key is None or b64decode(told["message_key_base64"]) == key
    assert [(name, b64decode(text)) for name, text in told["headers"]] == list(headers)
    assert told["key"] == (None if invalid.key is None else invalid.key.decode())
    assert [v["code"] for v in told["violations"]] == [v.code for v in invalid.violations]
    assert told["violations_omitted"] == invalid.omitted


@given(any_values(), keys)
def test_the_record_is_there_as_json_unless_it_is_malformed(
    drawn: tuple[Entity, bytes], key: bytes | None
) -> None:
    entity, value = drawn
    invalid = invalid_of(entity, value, key)
    encoded, _ = reject(entity.name, message_of(value, key), invalid, NOW, LIMIT)
    told = json.loads(encoded)
    if invalid.malformed:
        assert told["record"] is None
        assert b64decode(told["record_base64"]) == value
    else:
        assert record_of(encoded).strip(b" \t\r\n") == value.strip(b" \t\r\n")


@given(good_records(), st.text(" \t\r\n", min_size=1, max_size=4), st.booleans())
def test_white_space_around_the_json_can_be_recovered(
    drawn: Drawn, space: str, before: bool
) -> None:
    value = space.encode() + drawn.value if before else drawn.value + space.encode()
    invalid = invalid_of(drawn.entity, value, None)
    encoded, _ = reject(drawn.entity.name, message_of(value), invalid, NOW, LIMIT)
    assert original(encoded) == value


@given(keys)
def test_a_rejected_deletion_has_no_record_and_its_key_can_be_recovered(key: bytes | None) -> None:
    invalid = Invalid(None, (violation(Code.INVALID_KEY, "", "expected a key"),))
    encoded, _ = reject("users", message_of(None, key), invalid, NOW, LIMIT)
    told = json.loads(encoded)
    assert told["record"] is None
    assert "record_base64" not in told
    assert original(encoded) is None
    assert (told["message_key_base64"] or "") == b64encode(key or b"").decode()


def test_it_has_the_fields_of_the_contract() -> None:
    value = to_json(good("users", role="king"))
    invalid = invalid_of(ENTITIES["users"], value, None)
    encoded, _ = reject("users", message_of(value, b"k", (("a", b"b"),)), invalid, NOW, LIMIT)
    assert json.loads(encoded) == {
        "entity": "users",
        "key": uid(1),
        "rejected_at": "2026-01-01T00:00:00Z",
        "source": {
            "topic": "buddy.in.users",
            "partition": 1,
            "offset": 42,
            "timestamp": "2026-01-01T00:00:00Z",
        },
        "violations": [
            {
                "code": "invalid_enum",
                "field": "role",
                "message": "expected one of " + ", ".join(ENTITIES["users"].column("role").values),
                "severity": "error",
            }
        ],
        "violations_omitted": 0,
        "record": good("users", role="king"),
        "message_key_base64": "aw==",
        "headers": [["a", "Yg=="]],
        "replays": 0,
    }


@pytest.mark.parametrize("size", [LIMIT * 3 // 4, LIMIT, 5_000_000])
def test_a_record_too_large_for_the_enlarged_limit_leaves_its_size_and_hash(size: int) -> None:
    value = large(size)
    invalid = invalid_of(ENTITIES["checkins"], value, None)
    encoded, omitted = reject("checkins", message_of(value, b"key"), invalid, NOW, LIMIT)
    told = json.loads(encoded)
    assert omitted
    assert len(encoded) <= LIMIT
    assert told["record_omitted"] == {"bytes": len(value), "sha256": sha256(value).hexdigest()}
    assert told["record"] is None
    assert "record_base64" not in told
    assert b64decode(told["message_key_base64"]) == b"key"
    assert told["source"]["offset"] == 42


@pytest.mark.parametrize("size", [700 * KiB, 1024 * KiB - 1])
@pytest.mark.parametrize("around", [b"", b"\n"])
def test_a_record_within_the_limit_is_never_left_out(size: int, around: bytes) -> None:
    value = large(size) + around
    encoded, omitted = reject(
        "checkins", message_of(value), invalid_of(ENTITIES["checkins"], value, b"k"), NOW, LIMIT
    )
    assert not omitted
    assert len(encoded) <= LIMIT
    assert original(encoded) == value


def test_headers_go_before_the_record_and_the_key_do() -> None:
    value = to_json(good("users", role="king"))
    headers: Headers = (("trace", b"x" * 1_110_000),)
    invalid = invalid_of(ENTITIES["users"], value, None)
    encoded, omitted = reject("users", message_of(value, b"key", headers), invalid, NOW, LIMIT)
    told = json.loads(encoded)
    assert len(encoded) <= LIMIT
    assert original(encoded) == value
    assert b64decode(told["message_key_base64"]) == b"key"
    assert (told["headers"], told["headers_omitted"]) == ([], 1)
    assert omitted, "somebody has to be told"


@given(
    st.integers(0, 200 * KiB),
    st.none() | st.integers(0, 100 * KiB),
    st.lists(st.integers(0, 60 * KiB), max_size=3),
    st.integers(40 * KiB, 150 * KiB),
    st.booleans(),
)
def test_it_is_never_over_the_limit_and_never_says_less_than_size_and_hash(
    record: int, key: int | None, headers: list[int], limit: int, malformed: bool
) -> None:
    value = to_json({"notes": "x" * record})
    message = message_of(
        value,
        None if key is None else b"k" * key,
        tuple(("h", b"x" * size) for size in headers),
    )
    found = tuple(violation(Code.WRONG_TYPE, f"interests[{n}]", "expected it") for n in range(100))
    encoded, omitted = reject("users", message, Invalid(None, found, 5, malformed), NOW, limit)
    assert len(encoded) <= limit
    told = json.loads(encoded)
    assert len(told["violations"]) == 100
    assert told.get("headers_omitted", 0) + len(told["headers"]) == len(headers)
    assert omitted == ("record_omitted" in told or "headers_omitted" in told)
    if "record_omitted" in told:
        expected = {"bytes": len(value), "sha256": sha256(value).hexdigest()}
        assert told["record_omitted"] == expected
    else:
        assert original(encoded) == value


@given(st.lists(any_values(), min_size=2, max_size=6))
def test_messages_depend_on_code_and_field_alone(drawn: list[tuple[Entity, bytes]]) -> None:
    messages: dict[tuple[str, str, str], str] = {}
    for entity, value in drawn:
        columns = {column.name for column in entity.columns}
        for found in invalid_of(entity, value, None).violations:
            field = found.field.split("[")[0]
            assert field in {"", *columns}
            if found.code not in ("malformed_record", "invalid_key"):  # of several kinds
                place = (entity.name, found.code, field)
                assert messages.setdefault(place, found.message) == found.message


@given(
    st.sampled_from(list(ENTITIES)),
    st.data(),
    st.text("ZXQJ", min_size=12, max_size=20),
)
def test_no_violation_quotes_a_value_or_a_name_from_the_record(
    entity: str, data: st.DataObject, secret: str
) -> None:
    columns = ENTITIES[entity].columns
    chosen = data.draw(st.sets(st.sampled_from([c.name for c in columns])))
    shapes: list[Any] = [
        secret,
        [secret],
        {secret: secret},
        secret.lower(),
        [{secret: 1}],
        987654321,
    ]
    record = good(entity) | {name: data.draw(st.sampled_from(shapes)) for name in sorted(chosen)}
    record |= {secret: secret}
    for found in invalid_of(ENTITIES[entity], spell(record), secret.encode()).violations:
        text = found.message + found.field
        assert secret.lower() not in text.lower()
        assert "987654321" not in text


@given(json_values)
def test_what_is_rejected_unexpectedly_can_be_recovered_too(record: object) -> None:
    value = spell(record)
    invalid = Invalid(None, (unexpected(),), malformed=True)
    encoded, _ = reject("users", message_of(value), invalid, NOW, LIMIT)
    assert original(encoded) == value


@given(st.integers(-62_135_596_800_000, 253_402_300_799_999))
def test_moments_are_in_canonical_form(milliseconds: int) -> None:
    text = timestamp(milliseconds)
    assert text[10] == "T"
    assert text.endswith("Z")
    assert len(text) == (20 if milliseconds % 1000 == 0 else 27)
    assert round(datetime.fromisoformat(text).timestamp() * 1000) == milliseconds


@pytest.mark.parametrize("moment", [-1, -(2**62), 2**62, 253_402_300_800_000])
def test_a_producers_impossible_clock_does_not_stop_its_rejection(moment: int) -> None:
    world = World()
    bad = world.send("users", b"{", timestamp=moment, appended=False)
    good_one = world.send("users", good("users"), timestamp=moment, appended=False)
    world.settle()
    assert (world.kind(bad), world.kind(good_one)) == ("rejected", "accepted")


@pytest.mark.parametrize(
    ("headers", "replays"),
    [
        ((), 0),
        ((("buddy-replays", b"2"),), 2),
        ((("other", b"2"), ("buddy-replays", b"1")), 1),
        ((("buddy-replays", b"x"),), 0),
        ((("buddy-replays", b""),), 0),
        ((("buddy-replays", b"-1"),), 0),
        ((("buddy-replays", b"9" * 5000),), 0),
        ((("buddy-replays", b"\xd9\xa1"),), 0),
    ],
)
def test_it_tells_how_often_the_record_was_replayed(headers: Headers, replays: int) -> None:
    assert replays_of(headers) == replays
    encoded, _ = reject("users", message_of(b"{}", None, headers), Invalid(None, ()), NOW, LIMIT)
    assert json.loads(encoded)["replays"] == replays


def test_a_rejection_has_the_records_message_key_and_source() -> None:
    world = World()
    sent = world.send("users", b"{", "any key")
    world.settle()
    outcome = world.outcome(sent)
    assert outcome is not None
    assert outcome.message.topic == "buddy.rejected.users"
    assert outcome.message.key == b"any key"
    assert outcome.message.headers == (("buddy-source", sent.encode()),)


def test_a_rejection_for_its_references_has_the_original_bytes_too() -> None:
    world = World()
    value = b" " + spell(good("matches"), wide=True) + b"\n"
    sent = world.send("matches", value, uid(1).upper(), headers=(("a", b"\xff"),))
    world.settle()
    world.now += GRACE
    world.finish()
    outcome = world.outcome(sent)
    assert outcome is not None
    assert outcome.message.value is not None
    assert original(outcome.message.value) == value
    told = json.loads(outcome.message.value)
    assert b64decode(told["message_key_base64"]) == uid(1).upper().encode()
    assert told["headers"] == [["a", b64encode(b"\xff").decode()]]


@pytest.mark.parametrize("value", [b'{"id": 1}', b"\xff no JSON", None])
def test_the_record_in_a_rejection_is_the_one_that_was_sent(value: bytes | None) -> None:
    message = Message("buddy.in.users", 0, 7, 0, b"k", value)
    found = (violation(Code.INVALID_KEY, "", "expected another key"),)
    invalid = Invalid(None, found, malformed=value is not None and not value.isascii())
    encoded, omitted = reject("users", message, invalid, 0, 1_000_000)
    assert not omitted
    assert recovered(msgspec.json.decode(encoded, type=Rejection)) == value
