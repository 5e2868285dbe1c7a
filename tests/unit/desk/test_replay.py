"""What is sent again, with which headers, and what is not."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.desk_kit import NAMES
from worker.core.decode import Invalid
from worker.core.rejection import OmittedRecord, reject
from worker.core.violations import Code, Violation
from worker.desk.audit import ORIGIN_HEADER, encode_audit, read_audit, with_replay_headers
from worker.desk.counts import ACCEPTED, DELETED, OPEN, REPLAYED
from worker.desk.queries import Candidate
from worker.desk.replay import (
    NO_ORIGINAL,
    SENT_BEFORE,
    SETTLED,
    SUPERSEDED,
    TOO_OFTEN,
    UNREADABLE,
    ReplayRun,
    Resent,
    Skipped,
    resend,
    sendable,
)
from worker.stream import Message, Partition

RUN = ReplayRun(replay="r", at="2025-11-22T10:30:00Z", by="me", partitions=4)
REJECTED = Partition(NAMES.rejected("users"), 1)
PRETTY = b'{ "id" : 1}\n'
ORIGIN = f"{NAMES.input('users')}/2/7"


def candidate(state: int = OPEN, number: int = 1) -> Candidate:
    return Candidate(number, REJECTED, 5, state)


def rejected(
    value: bytes | None = b'{"id": 1}',
    key: bytes | None = b"k",
    headers: Any = (),
    *,
    partition: int = 2,
    malformed: bool = False,
    omitted: OmittedRecord | None = None,
) -> Message:
    """The message of a rejection, as a worker writes it."""
    source = Message(NAMES.input("users"), partition, 7, 0, key, value, tuple(headers))
    found = (Violation(Code.INVALID_ENUM, "role", "why", "error"),)
    invalid = Invalid(None if key is None else b"k", found, malformed=malformed)
    encoded, _ = reject("users", source, invalid, 0, 1 << 20, omitted=omitted)
    return Message(*REJECTED, 5, 0, key, encoded)


def sent(message: Message, run: ReplayRun = RUN, state: int = OPEN) -> Resent:
    found = resend(message, NAMES, candidate(state), run)
    assert isinstance(found, Resent), found
    return found


@given(
    value=st.none() | st.binary() | st.just(PRETTY),
    key=st.none() | st.binary(),
    headers=st.lists(st.tuples(st.text(), st.binary()), max_size=4),
    partition=st.integers(0, 9),
)
def test_the_original_goes_to_where_it_came_from(
    value: bytes | None, key: bytes | None, headers: list[tuple[str, bytes]], partition: int
) -> None:
    malformed = value not in (None, PRETTY)
    message = rejected(value, key, headers, partition=partition, malformed=malformed)
    record, audit = sent(message)
    assert (record.topic, record.key, record.value) == (NAMES.input("users"), key, value)
    assert record.partition == (partition if partition < RUN.partitions else None)
    own = [one for one in headers if one[0] not in (ORIGIN_HEADER, "buddy-replays")]
    assert list(record.headers) == [
        *own,
        (ORIGIN_HEADER, f"{NAMES.input('users')}/{partition}/7".encode()),
        ("buddy-replays", b"1"),
    ]
    assert audit.rejection == f"{REJECTED.topic}/1/5"
    assert read_audit(Message(NAMES.replays, 0, 0, 0, *encode_audit(audit))) == audit


def test_headers_do_not_grow() -> None:
    headers: Any = (("trace", b"1"), (ORIGIN_HEADER, ORIGIN.encode()), ("buddy-replays", b"2"))
    record, audit = sent(rejected(headers=headers), RUN._replace(most=9))
    assert record.headers == (
        ("trace", b"1"),
        (ORIGIN_HEADER, ORIGIN.encode()),
        ("buddy-replays", b"3"),
    )
    assert (audit.origin, audit.replays) == (ORIGIN, 3)
    assert with_replay_headers(record.headers, ORIGIN, 3) == record.headers


@pytest.mark.parametrize("said", [b"", b"\xff", b"nowhere", b"a/b/c", b"x" * 99])
def test_an_origin_that_is_none_is_replaced(said: bytes) -> None:
    assert sent(rejected(headers=[(ORIGIN_HEADER, said)])).audit.origin == ORIGIN


def test_three_times_are_enough_unless_told_otherwise() -> None:
    message = rejected(headers=[("buddy-replays", b"3")])
    assert resend(message, NAMES, candidate(), RUN) == TOO_OFTEN
    assert sent(message, RUN._replace(most=4)).audit.replays == 4


def test_what_cannot_be_sent_again() -> None:
    omitted = rejected(omitted=OmittedRecord(5, "0" * 64))
    assert resend(omitted, NAMES, candidate(), RUN) == NO_ORIGINAL
    without_headers = rejected(headers=[("buddy-headers-omitted", b"1")])
    assert resend(without_headers, NAMES, candidate(), RUN) == NO_ORIGINAL
    for value in (None, b"", b"[]", b"{}", b'{"source": 1}', b"\xff", b"[" * 100_000):
        garbage = Message(*REJECTED, 5, 0, None, value)
        assert resend(garbage, NAMES, candidate(), RUN) == UNREADABLE


def test_settled_ones_need_force_and_none_is_sent_twice() -> None:
    every = [candidate(state, state) for state in (OPEN, ACCEPTED, DELETED, REPLAYED)]
    skipped = Skipped()
    assert [c.state for c in sendable(every, RUN, skipped)] == [OPEN]
    assert skipped == {SENT_BEFORE: 1, SETTLED: 2}
    skipped = Skipped()
    forced = RUN._replace(forced=True)
    found = sendable(every, forced, skipped)
    assert [c.state for c in found] == [OPEN, ACCEPTED, DELETED]
    assert skipped == {SENT_BEFORE: 1}
    skipped = Skipped()
    assert sendable([candidate()._replace(superseded=True)], forced, skipped) == []
    assert skipped == {SUPERSEDED: 1}
    assert [sent(rejected(), forced, c.state).audit.forced for c in found] == [False, True, True]


@pytest.mark.parametrize("value", [None, b"", b"{}", b"[]", b"\xff", b"[" * 100_000])
def test_what_is_no_audit_is_none(value: bytes | None) -> None:
    assert read_audit(Message(NAMES.replays, 0, 0, 0, b"r", value)) is None


def test_what_another_program_wrote_without_a_record_is_not_taken_for_a_deletion() -> None:
    """A worker writes the record of a deletion as null; a missing one says nothing."""
    deletion = rejected(None)
    assert sent(deletion).record.value is None
    for part in (b'"record":null,', b'"message_key_base64":"aw==",', b'"headers":[],'):
        assert part in (deletion.value or b"")
        less = (deletion.value or b"").replace(part, b"")
        foreign = Message(*REJECTED, 5, 0, deletion.key, less)
        assert resend(foreign, NAMES, candidate(), RUN) == UNREADABLE
