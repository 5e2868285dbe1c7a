"""What a message says to who sends: what was expected, where it was missed, never the content."""

from __future__ import annotations

import codecs
import json
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.core_kit import good, to_json, uid
from worker.checking import Checker
from worker.core.decode import Decoded, Invalid, decoders
from worker.core.unknown import LONGEST_NAME, MOST_NAMED, UnknownNames
from worker.core.violations import Code
from worker.files.records import FileRecord

LATEST = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "ZZQQXX"


def messages(entity: str, value: bytes | None, key: bytes | None = None) -> list[tuple[str, str]]:
    outcome = decoders()[entity].decode(value, key, LATEST)
    assert isinstance(outcome, Invalid)
    return [(found.field, found.message) for found in outcome.violations]


def malformed(value: bytes) -> str:
    outcome = decoders()["users"].decode(value, None, LATEST)
    assert isinstance(outcome, Invalid)
    (found,) = outcome.violations
    assert found.code is Code.MALFORMED_RECORD
    return found.message


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (b"", "expected a JSON object, found nothing"),
        (b"[1]", "expected a JSON object, found an array"),
        (b'"x"', "expected a JSON object, found a string"),
        (b"null", "expected a JSON object, found null"),
        (b"true", "expected a JSON object, found true or false"),
        (b"1e999", "expected a JSON object, found a number"),
        (b"{", "expected a name in double quotes, found the end of the record at byte offset 1"),
        (b"{'id':1}", "expected a name in double quotes, found an apostrophe at byte offset 1"),
        (b"{id:1}", "expected a name in double quotes, found a letter at byte offset 1"),
        (b'{"a" 1}', "expected a colon, found a digit at byte offset 5"),
        (b'{"a":1 "b":2}', "expected a comma or a closing bracket, found a double quote at byte"),
        (b'{"a":}', "expected a value, found a closing brace at byte offset 5"),
        (b'{"\xc3\xa9":}', "expected a value, found a closing brace at byte offset 6"),
        (b'{"a":\xc3\xa9}', "expected a value, found a character beyond ASCII at byte offset 5"),
        (b'{"a":?}', "expected a value, found a punctuation mark at byte offset 5"),
        (b'{"a":None}', "expected a value, found None at byte offset 5"),
        (b'{"a":NaN}', "expected JSON, found NaN, which is no JSON number"),
        (b'{"a":-Infinity}', "expected JSON, found -Infinity, which is no JSON number"),
        (b'{"a":1e999,"b":NaN}', "expected JSON, found NaN, which is no JSON number"),
        (b"{} {}", "expected nothing after the JSON object, found an opening brace at byte"),
        (b'{"a":"\n"}', "expected control characters in strings to be escaped, found a line end"),
        (b'{"a":"\\x"}', "expected a known escape after the backslash, found"),
        (b'{"a":"zz', "expected JSON, found the end of the record in the string at byte offset 5"),
        (b'{"a":"\\ud800"}', "expected JSON, found half of a surrogate pair"),
        (b"\xef\xbb\xbf{}", "found a byte order mark at byte offset 0"),
        ("{}".encode("utf-16-le"), "found a NUL byte, as UTF-16 and UTF-32 have them, at byte"),
        ("{}".encode("utf-16"), "this looks like UTF-16"),
        (codecs.BOM_UTF32_LE + "{}".encode("utf-32-le"), "this looks like UTF-32"),
        ('{"é":"ø"}'.encode("utf-16-be"), "this looks like UTF-16"),
        (b"\x1f\x8b\x08\x00", "this looks like gzip"),
        ('{"a":"Zoë"}'.encode("latin-1"), "byte offset 8: this looks like Windows-1252 or ISO"),
        ('{"a":"Иван"}'.encode("cp1251"), "this looks like Windows-1251"),
        ('{"a":"東京都"}'.encode("shift_jis"), "Shift JIS"),
        ('{"a":"é'.encode()[:-1], "byte offset 6: the last character is cut off"),
        (b'{"a":"\xed\xa0\xbd\xed\xb8\x80"}', "this looks like CESU-8"),
    ],
)
def test_why_a_record_is_malformed(value: bytes, says: str) -> None:
    assert says in malformed(value)


@given(st.binary(max_size=40) | st.text(max_size=40).map(str.encode))
def test_every_malformed_record_gets_words_that_quote_nothing(value: bytes) -> None:
    outcome = decoders()["users"].decode(b'{"' + SECRET.encode() + value, None, LATEST)
    assert isinstance(outcome, Invalid)
    assert all(found.message.isprintable() for found in outcome.violations)
    assert not any(SECRET in found.message for found in outcome.violations)


@pytest.mark.parametrize("entity", [e for e in ENTITIES if e != "events"])  # which has no enum
def test_what_is_missing_is_described_as_what_is_wrong(entity: str) -> None:
    """`expected one of participant, buddy` helps most where the field is not there."""
    wrong = {column.name: "?" for column in ENTITIES[entity].columns if column.values}
    for name, says in messages(entity, to_json({**good(entity), **wrong})):
        if ENTITIES[entity].column(name).required:
            missing = messages(entity, to_json(good(entity) | {name: None}))
            assert missing == [(name, says)]


def test_every_missing_field_of_a_user() -> None:
    assert dict(messages("users", b"{}")) == {
        "id": "expected a UUID of version 4, 36 characters long",
        "email": "expected an address such as name@example.org",
        "first_name": "expected text of at most 100 characters",
        "last_name": "expected text of at most 100 characters",
        "role": "expected one of participant, buddy",
        "joined_at": "expected a date and time such as 2024-01-15T10:00:00Z,"
        " in the years 1 to 9999",
    }


@pytest.mark.parametrize("key", [uid(7).encode(), b"42", b"\xff", b"1:" + uid(7).encode()])
def test_a_wrong_key_says_the_format(key: bytes) -> None:
    record = to_json(good("milestones"))
    ((_, says),) = messages("milestones", record, key)
    assert says == "expected the message key to be the record's milestone_id:user_id"


def test_a_deletion_says_the_format() -> None:
    ((_, without),) = messages("milestones", None)
    ((_, wrong),) = messages("milestones", None, b"42")
    assert without.endswith(": milestone_id:user_id")
    assert wrong.endswith(": milestone_id:user_id")


def test_unknown_fields_are_named_without_their_values() -> None:
    more = {"nickname": SECRET, "\x1b[31mred\n": 1, "x" * 65: 1}
    names = ("nickname", "\\x1b[31mred\\n", "x" * 63 + "…")
    accepted = decoders()["users"].decode(to_json(good("users") | more), None, LATEST)
    rejected = decoders()["users"].decode(to_json(more), None, LATEST)
    assert isinstance(accepted, Decoded)
    assert isinstance(rejected, Invalid)
    assert accepted.unknown_names == rejected.unknown_names == names


def test_names_are_bounded() -> None:
    many = {f"\u202e{n}{'x' * 100}": 1 for n in range(3_000)}
    outcome = decoders()["users"].decode(to_json(good("users") | many), None, LATEST)
    assert isinstance(outcome, Decoded)
    assert outcome.unknown_fields == len(many)
    assert len(outcome.unknown_names) == MOST_NAMED
    assert all(len(name) == LONGEST_NAME and name.isprintable() for name in outcome.unknown_names)
    found = UnknownNames()
    for n in range(100):
        found.note("users", [f"a{n}", "a0"])
    assert len(found.by_entity["users"]) == MOST_NAMED
    assert found.by_entity["users"]["a0"] == 101


def test_a_check_names_what_the_rejected_have_too() -> None:
    checker = Checker(lambda: int(LATEST.timestamp() * 1000), 60, 1 << 20)
    records = [good("users") | {"nickname": 1}, good("users", 2, email=None) | {"emial": 1}]
    values = [json.dumps(record).encode() for record in records]
    list(checker.check(FileRecord("users", "f", 1, value) for value in values))
    assert checker.unknown_fields == {"users": 1}
    assert checker.unknown_names.by_entity == {"users": {"nickname": 1, "emial": 1}}
