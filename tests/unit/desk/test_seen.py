"""What the desk reads of a rejection, and of a row that settles it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.desk_kit import NAMES
from worker.core.decode import Invalid
from worker.core.outbox import ACCEPTED_AT_HEADER, SOURCE_HEADER, UNKNOWN_HEADER
from worker.core.rejection import reject
from worker.core.violations import Code, Violation
from worker.desk.seen import (
    LONGEST_PRODUCER,
    PRODUCER_HEADER,
    Settling,
    key_digest,
    read_rejection,
    read_settling,
)
from worker.stream import Message

USER = "11111111-1111-4111-8111-111111111111"
NOW = 1_764_547_200_123


def message(value: bytes | None, **more: Any) -> Message:
    given = {"topic": NAMES.rejected("users"), "partition": 0, "offset": 5, "timestamp": NOW}
    return Message(**{**given, "key": b"k", "value": value, "headers": (), **more})


def rejected(record: bytes, *violations: tuple[Code, str], **more: Any) -> bytes:
    found = tuple(Violation(code, field, "why", "error") for code, field in violations)
    original = message(record, topic=NAMES.input("event_attendance"), **more)
    return reject("event_attendance", original, Invalid(b"1:2", found), NOW, 1 << 20)[0]


def test_a_rejection_that_a_worker_wrote() -> None:
    record = b'{"user_id":"%s","odd":1}' % USER.upper().encode()
    headers = ((PRODUCER_HEADER, b"import\n7"), ("other", b"x"))
    value = rejected(
        record,
        (Code.ORPHANED_USER_ID, "user_id"),
        (Code.WRONG_TYPE, "topics[3]"),
        (Code.WRONG_TYPE, "topics[4]"),
        headers=headers,
    )
    seen = read_rejection(message(value))
    assert seen is not None
    assert (seen.entity, seen.key, seen.at) == ("event_attendance", "1:2", NOW)
    assert seen.kinds == (("orphaned_user_id", "user_id"), ("wrong_type", "topics"))
    assert seen.unknown_names == ("odd",)
    assert seen.producer == "import\\n7"
    assert seen.wanted == (key_digest("users", USER),)
    assert (seen.source.partition, seen.source.offset) == (0, 5)


def test_a_name_of_any_length_is_bounded() -> None:
    headers = ((PRODUCER_HEADER, b"x" * 10_000),)
    seen = read_rejection(message(rejected(b"{}", (Code.WRONG_TYPE, "f"), headers=headers)))
    assert seen is not None
    assert len(seen.producer) == LONGEST_PRODUCER


@pytest.mark.parametrize("record", [b"no json", b'{"user_id": 7}', b'{"user_id": "x"}', b"[]"])
def test_what_an_orphan_wants_may_be_unreadable(record: bytes) -> None:
    value = rejected(
        record if record.startswith(b"{") else b"{}", (Code.ORPHANED_USER_ID, "user_id")
    )
    seen = read_rejection(message(value))
    assert seen is not None
    assert seen.wanted == ()


@given(
    st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(msgspec.json.encode)
)
def test_any_bytes_are_read_or_skipped(value: bytes) -> None:
    assert read_rejection(message(value)) is None
    read_settling(message(value))


@pytest.mark.parametrize(
    "change",
    [
        {"entity": "zz"},
        {"rejected_at": "2026-01-01T00:00:00"},
        {"source": {"topic": "t", "partition": 0, "offset": 2**70, "timestamp": ""}},
        {"source": {"topic": "t", "partition": -1, "offset": 0, "timestamp": ""}},
        {"violations": [{"code": "new", "field": "", "message": "", "severity": "error"}]},
    ],
)
def test_what_no_worker_writes_is_skipped(change: dict[str, Any]) -> None:
    value = msgspec.json.decode(rejected(b"{}", (Code.WRONG_TYPE, "f")))
    assert read_rejection(message(msgspec.json.encode(value))) is not None
    assert read_rejection(message(msgspec.json.encode(value | change))) is None


def accepted(value: bytes | None = b"{}", **headers: bytes) -> Message:
    given = {SOURCE_HEADER: b"t.in.users/3/17", ACCEPTED_AT_HEADER: b"2025-12-01T00:00:00.122Z"}
    found = {**given, **{name.replace("_", "-"): text for name, text in headers.items()}}
    return message(value, topic=NAMES.accepted("users"), headers=tuple(found.items()))


def test_an_accepted_row_and_a_deletion() -> None:
    row = Settling("users", key_digest("users", "k"), NOW, 3, 17, deleted=False, judged=NOW - 1)
    assert read_settling(accepted()) == row
    assert read_settling(accepted(None)) == row._replace(deleted=True)


@pytest.mark.parametrize("moment", [b"", b"\xff", b"yesterday", b"2025-12-01T00:00:00"])
def test_a_row_whose_round_cannot_be_read_has_none(moment: bytes) -> None:
    row = read_settling(accepted(buddy_accepted_at=moment))
    assert row is not None
    assert row.judged == 0


@pytest.mark.parametrize(
    "headers",
    [
        {"buddy_source": b"17"},
        {"buddy_source": b"t/x/17"},
        {"buddy_source": b"t/1/" + b"9" * 30},
    ],
)
def test_a_row_that_does_not_say_its_source_settles_nothing(headers: dict[str, bytes]) -> None:
    assert read_settling(accepted(**headers)) is None


def test_equal_keys_of_two_entities_differ() -> None:
    assert key_digest("users", "1") != key_digest("matches", "1")


@pytest.mark.parametrize(
    ("header", "names"),
    [
        (b'["tel","x"]', ("tel", "x")),
        (b'["' + b"n" * 99 + b'"]', ("n" * 63 + "\u2026",)),
        (b"[" + b",".join([b'"n"'] * 99) + b"]", ("n",) * 50),
        (b"no JSON", ()),
        (b'{"a":1}', ()),
        (b"\xff", ()),
    ],
)
def test_the_fields_that_a_row_lacks_are_read_and_bounded(
    header: bytes, names: tuple[str, ...]
) -> None:
    """Others may write there too."""
    row = accepted()
    message = Message(
        row.topic,
        row.partition,
        row.offset,
        row.timestamp,
        row.key,
        row.value,
        (*row.headers, (UNKNOWN_HEADER, header)),
    )
    settling = read_settling(message)
    assert settling is not None
    assert settling.unknown_names == names


@pytest.mark.parametrize(
    ("time", "known"),
    [(-1, 0), (-(1 << 63), 0), (NOW, NOW), ((1 << 63) - 1, 253_402_300_799_999)],
)
def test_a_time_that_no_clock_gives_is_one_that_can_be_shown(time: int, known: int) -> None:
    seen = read_rejection(message(rejected(b"{}", (Code.WRONG_TYPE, "x")), timestamp=time))
    assert seen is not None
    assert seen.at == known
    source = ((SOURCE_HEADER, b"t/0/1"),)
    settling = read_settling(message(b"{}", timestamp=time, headers=source))
    assert settling is not None
    assert settling.at == known
