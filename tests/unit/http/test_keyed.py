"""Keys, digests and receipts of requests, and which records of a body a repeat sends."""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from worker.files import FileRecord
from worker.http.access import ANYONE, Caller
from worker.http.keyed import KeyedRequest, key_of
from worker.http.problems import Problem
from worker.http.receipts import (
    BodyDigest,
    Receipt,
    StoredReceipt,
    encode_receipt,
    read_receipt,
)
from worker.stream import Message, Partition

SENDER = cast("Any", SimpleNamespace(identity=None, identities={}))
OTHER = Caller("other", frozenset({"send"}))


def request(*keys: str, caller: Caller = ANYONE) -> Request:
    headers = [(b"idempotency-key", key.encode("latin-1")) for key in keys]
    return Request({"type": "http", "headers": headers, "state": {"caller": caller}})


def records(values: Sequence[bytes]) -> list[FileRecord]:
    return [FileRecord("users", "body", line, value) for line, value in enumerate(values, 1)]


def repeat(done: Sequence[bytes]) -> KeyedRequest:
    """A request after another one has sent these records."""
    digest = BodyDigest()
    digest.add(records(done))
    receipt = Receipt(len(done), len(done), digest.hex())
    chain = [StoredReceipt(7, receipt)] if done else []
    return KeyedRequest(SENDER, chain, {})


def left(keyed: KeyedRequest, values: Sequence[bytes], size: int) -> list[bytes]:
    """What the request sends of a body that comes in batches of this size."""
    found: list[bytes] = []
    for start in range(0, len(values), size):
        known, rest = keyed.split(records(values[start : start + size]))
        assert len(known) + len(rest) == len(values[start : start + size])
        found += [record.value for record in rest]
    keyed.finish()
    return found


def test_a_key_is_one_printable_string() -> None:
    assert key_of(request(), "users") is None
    assert key_of(request("a"), "users") is not None
    for keys in (("",), ("x" * 256,), ("a\nb",), ("\xfc",), ("a", "a")):
        with pytest.raises(Problem) as caught:
            key_of(request(*keys), "users")
        assert (caught.value.status, caught.value.code) == (400, "malformed_idempotency_key")


def test_each_caller_and_each_entity_has_keys_of_its_own() -> None:
    found = {
        key_of(request(key, caller=caller), entity)
        for key in ("ada@example.org", "b")
        for caller in (ANYONE, OTHER)
        for entity in ("users", "matches")
    }
    assert len(found) == 8
    assert all(one is not None and "ada" not in one and len(one) == 32 for one in found)
    assert key_of(request("a"), "users") == key_of(request("a"), "users")


BODIES = st.lists(st.binary(max_size=3), max_size=12)


@given(body=BODIES, data=st.data(), size=st.integers(1, 5))
def test_a_repeat_sends_what_is_left(body: list[bytes], data: st.DataObject, size: int) -> None:
    done = data.draw(st.integers(0, len(body)))
    assert left(repeat(body[:done]), body, size) == body[done:]


@given(done=BODIES, body=BODIES, size=st.integers(1, 5))
def test_a_body_that_does_not_begin_alike_is_another(
    done: list[bytes], body: list[bytes], size: int
) -> None:
    if body[: len(done)] == done:
        assert left(repeat(done), body, size) == body[len(done) :]
        return
    with pytest.raises(Problem) as caught:
        left(repeat(done), body, size)
    assert (caught.value.status, caught.value.code) == (422, "key_reused")


def test_verdicts_of_an_input_that_was_there_before_are_not_looked_for() -> None:
    """Its records had the coordinates that records of the new one have."""
    ends: dict[str, tuple[int, ...]] = {"in": (0,), "out": (8,), "bad": (9,)}
    receipts = (
        Receipt(1, 1, "", "old", ends={"in": (7,)}),
        Receipt(2, 2, "", "new", ends=ends, earlier=5, topics={"out": "old"}),
    )
    chain = [StoredReceipt(offset, receipt) for offset, receipt in enumerate(receipts, 5)]
    now = SimpleNamespace(identity="new", identities={"in": "new", "out": "new", "bad": "one"})
    keyed = KeyedRequest(cast("Any", now), chain, {1: "in/0/0"})
    found = keyed.sent_before
    assert found is not None
    since = {Partition("in", 0): 0, Partition("out", 0): 0, Partition("bad", 0): 9}
    assert (found.identity, dict(found.since)) == ("new", since), "of a topic made anew, from 0"
    assert list(found.coordinates) == ["in/0/0"]


def test_a_digest_depends_on_where_records_end_and_on_all_of_a_large_one() -> None:
    def digest(*found: FileRecord) -> str:
        one = BodyDigest()
        one.add(found)
        return one.hex()

    joined, apart = records([b"ab"]), records([b"a", b"b"])
    assert digest(*joined) != digest(*apart)
    large = [
        FileRecord("users", "body", 1, b"start", oversize=99, sha256=one) for one in ("x", "y")
    ]
    assert digest(large[0]) != digest(large[1])


COUNTS = st.integers(0, 2**40)


@given(
    receipt=st.builds(
        Receipt,
        COUNTS,
        COUNTS,
        st.text("0123456789abcdef", max_size=64),
        st.none() | st.text(max_size=9),
        st.lists(COUNTS).map(tuple),
        st.dictionaries(st.text(max_size=9), st.lists(COUNTS).map(tuple)),
        st.none() | COUNTS,
    )
)
def test_a_receipt_reads_back(receipt: Receipt) -> None:
    sent = encode_receipt("buddy.internal.receipts", "0f", receipt)
    assert (sent.key, sent.partition) == (b"0f", 0)
    assert read_receipt(Message(sent.topic, 0, 1, 2, sent.key, sent.value)) == receipt


@pytest.mark.parametrize("value", [None, b"", b"{}", b"\xff", b"[" * 100_000])
def test_garbage_is_no_receipt(value: bytes | None) -> None:
    assert read_receipt(Message("buddy.internal.receipts", 0, 1, 2, b"0f", value)) is None
