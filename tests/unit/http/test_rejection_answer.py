"""One rejection as JSON: what its original was, and its values only where they may be seen."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.core.decode import Invalid
from worker.core.rejection import reject
from worker.core.violations import Code, Violation
from worker.desk.originals import read_original
from worker.desk.queries import RejectionListed
from worker.http.problems import Problem
from worker.http.rejection_stream import EventPlace, decode_place
from worker.http.rejections import rejection_answer
from worker.http.replays import ReplayRequest, read_request
from worker.stream import Message

NOW = 1_764_547_200_000
LISTED = RejectionListed(
    "b.rejected.users/0/5",
    "b.in.users/0/1",
    NOW,
    "users",
    [("invalid_enum", "role")],
    "",
    "open",
    None,
)


def answer(record: bytes | None, *, masks: bool, limit: int = 1 << 20) -> Any:
    """The answer about a record that was rejected."""
    found = Violation(Code.INVALID_ENUM, "role", "expected a role", "error")
    is_json = record is None or not record.startswith(b"\xff")
    source = Message("b.in.users", 0, 1, NOW, b"k", record, ())
    value, _ = reject("users", source, Invalid(b"k", (found,), malformed=not is_json), NOW, limit)
    message = Message("b.rejected.users", 0, 5, NOW, b"k", value, ())
    original = read_original(message)
    assert original is not None
    return json.loads(msgspec.json.encode(rejection_answer(LISTED, original, masks=masks)))


def test_a_record_is_shown_as_it_was_sent_or_by_its_shape() -> None:
    record = b'{"role": "mentor", "age": 17, "tags": ["x", "y"], "of": {"a": 1}, "old": null}'
    seen = answer(record, masks=False)
    assert (seen["form"], seen["size"], seen["masked"]) == ("json", len(record), False)
    assert seen["record"] == json.loads(record)
    assert answer(record, masks=True)["record"] == {
        "role": '"m•••••" 6 characters',
        "age": "a number",
        "tags": "a list of 2 values",
        "of": "an object",
        "old": None,
    }


@pytest.mark.parametrize("masks", [True, False])
def test_what_is_no_json_has_its_bytes_only_unmasked(masks: bool) -> None:
    seen = answer(b"\xff secret", masks=masks)
    assert (seen["form"], seen["size"], seen["record"]) == ("no_json", 8, None)
    assert ("record_base64" in seen) is not masks


def test_deletions_and_records_that_were_not_kept_have_no_values() -> None:
    assert answer(None, masks=False)["form"] == "deletion"
    seen = answer(b'"%b"' % (b"x" * 5_000), masks=False, limit=1_000)
    assert (seen["form"], seen["size"], seen["record"]) == ("omitted", 5_002, None)


def test_what_no_worker_wrote_has_what_the_store_knows() -> None:
    seen = rejection_answer(LISTED, None, masks=True)
    assert (seen["form"], seen["violations"]) == (
        "unreadable",
        [{"code": "invalid_enum", "field": "role"}],
    )


words = st.text("qxz", min_size=8)


@given(
    st.dictionaries(
        st.sampled_from(["a", "b"]),
        st.recursive(words, lambda inner: st.lists(inner) | st.dictionaries(words, inner)),
    )
)
def test_no_text_of_a_record_passes_the_mask(record: dict[str, Any]) -> None:
    told = json.dumps(answer(json.dumps(record).encode(), masks=True)["record"])
    assert not any(pair in told for pair in ("qq", "qx", "xz", "zq", "zz", "xx", "zx", "xq", "qz"))


@given(st.text(max_size=40), st.integers(0, 2**63 - 1), st.integers(0, 2**62 - 1))
def test_a_place_comes_back(identity: str, number: int, at: int) -> None:
    place = EventPlace(identity, number, at)
    text = place.encode()
    assert text.isascii()
    assert text.isprintable()
    assert decode_place(text) == place


@given(st.text(max_size=60))
def test_any_other_text_is_no_place_or_a_sound_one(text: str) -> None:
    found = decode_place(text)
    assert found is None or (found.number >= 0 and found.at >= 0)


@given(st.binary(max_size=200))
def test_any_body_is_a_request_or_a_problem(body: bytes) -> None:
    with suppress(Problem):
        assert isinstance(read_request(body), ReplayRequest)
