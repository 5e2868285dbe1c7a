"""What is a row of ours in the accepted topics: one rule, and what index and sink make of it."""

from __future__ import annotations

import json
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.rows_kit import NAMES, encode, event, match, message, milestone, user, uuid
from worker.accepted import Foreign, Read, read_rows, rule_of
from worker.brokers.partitioner import partition_for
from worker.core.decode import Decoded, decoders, latest_moment
from worker.core.known import address_digest
from worker.core.outbox import SOURCE_HEADER
from worker.index.memory import MemoryIndex
from worker.index.store import IndexStore
from worker.sink.store.row_store import RowStore
from worker.stream import Message, Partition

KEY, VALUE = user(1)
UPPER = KEY.replace(b"0001", b"00AB"), VALUE.replace(b"0001", b"00AB")

FOREIGN: list[tuple[bytes | None, bytes | None, Foreign]] = [
    (None, VALUE, Foreign.NO_KEY),
    (None, None, Foreign.NO_KEY),
    (b"\xff", None, Foreign.KEY),
    (UPPER[0], None, Foreign.KEY),
    (*UPPER, Foreign.ROW),
    (uuid(2).encode(), VALUE, Foreign.OTHER_KEY),
    (b"", VALUE, Foreign.OTHER_KEY),
    (KEY, b"", Foreign.ROW),
    (KEY, b"{", Foreign.ROW),
    (KEY, b"\xff", Foreign.ROW),
    (KEY, b"[]", Foreign.ROW),
    (KEY, b'{"email":"a@x.org"}', Foreign.ROW),
    (KEY, VALUE.replace(b'"buddy"', b'"boss"'), Foreign.ROW),
    (KEY, VALUE[:-1] + b',"shoe_size":44}', Foreign.ROW),
    (KEY, VALUE[:-1] + b',"location":"\xff"}', Foreign.ROW),
    (KEY, VALUE[:-1] + b',"location":""}', Foreign.ROW),
    (KEY, VALUE[:-1] + b',"location":null}', Foreign.ROW),
    (KEY, VALUE.replace(b"u1@example.com", b"U1@example.com"), Foreign.ROW),
    (KEY, VALUE.replace(b"u1@example.com", b"nobody"), Foreign.ROW),
    (KEY, VALUE.replace(b'"Alice"', b'" "'), Foreign.ROW),
    (KEY, VALUE.replace(b"T10:00:00Z", b"T10:00:00"), Foreign.ROW),
    (KEY, VALUE.replace(b"T10:00:00Z", b"T12:00:00+02:00"), Foreign.ROW),
    (KEY, VALUE.replace(b"T10:00:00Z", b"T10:00:00.000Z"), Foreign.ROW),
    (KEY, b"[" * 100_000, Foreign.ROW),
    (KEY, VALUE.replace(b",", b",\n"), Foreign.ROW),
    (KEY, VALUE.replace(b",", b", "), Foreign.ROW),
    (KEY, json.dumps(dict(reversed(json.loads(VALUE).items()))).encode(), Foreign.ROW),
]


@pytest.mark.parametrize(("key", "value", "reason"), FOREIGN)
def test_what_is_no_row_of_its_key_is_told_why(
    key: bytes | None, value: bytes | None, reason: Foreign
) -> None:
    assert rule_of("users").read(key, value) is reason


def test_rows_and_deletions_are_told_apart() -> None:
    for entity, (key, value) in {
        "users": user(1),
        "matches": match(2, 1, 3),
        "events": event(4, 2),
        "milestones": milestone(10, 1),
    }.items():
        rule = rule_of(entity)
        assert isinstance(rule.read(key, value), ENTITIES[entity].struct)
        assert rule.read(key, None) is None


CHECKIN = {"checkin_id": uuid(1), "match_id": uuid(2), "checkin_date": "2024-01-01T00:00:00Z"}
SESSION = {
    "session_id": uuid(1),
    "skill_id": 1,
    "skill_name": "Chess",
    "teacher_id": uuid(2),
    "learner_id": uuid(3),
    "completed_at": "2024-01-01T00:00:00Z",
}


@pytest.mark.parametrize(
    ("entity", "record"),
    [
        ("users", VALUE.replace(b"u1@example.com", "ÖÄ@münchen.example".encode())),
        ("users", VALUE.replace(b"u1@example.com", "İ@x".encode())),
        ("users", VALUE.replace(b"T10:00:00Z", b"t10:00:00.1234565+02:00")),
        ("users", VALUE.replace(b"Alice", "\u0085a\u2028\U0001f600".encode())),
        ("skill_sessions", encode(**SESSION, teacher_rating=0, learner_rating=1)),
        ("skill_sessions", encode(**SESSION, teacher_rating=-0.0, learner_rating=1e-300)),
        ("checkins", encode(**CHECKIN, question_responses={"a": [-0.0, 1e300, 10**400, None]})),
        ("checkins", encode(**CHECKIN)[:-1] + b',"question_responses":{"a":' + b"9" * 5000 + b"}}"),
        ("checkins", encode(**CHECKIN)[:-1] + b',"question_responses":{"a":1,"a":{"":""}}}'),
    ],
)
def test_what_the_worker_accepts_is_a_row(entity: str, record: bytes) -> None:
    """Judging is idempotent: else a row of ours would be set aside. More cases: tests/cases."""
    outcome = decoders()[entity].decode(record, None, latest_moment(2**41, 0))
    assert isinstance(outcome, Decoded)
    assert isinstance(rule_of(entity).read(outcome.key, outcome.row), ENTITIES[entity].struct)


@given(st.characters(exclude_categories=["Cs"]), st.text(max_size=5))
def test_any_address_that_the_worker_accepts_is_canonical(letter: str, more: str) -> None:
    record = json.loads(VALUE) | {"email": f"a{letter}{more}@x{letter}.org", "first_name": letter}
    outcome = decoders()["users"].decode(json.dumps(record).encode(), None, latest_moment(2**41, 0))
    if isinstance(outcome, Decoded):
        assert not isinstance(rule_of("users").read(outcome.key, outcome.row), Foreign)


@given(st.binary(max_size=60), st.binary(max_size=60) | st.none())
def test_no_bytes_make_the_rule_fail(key: bytes, value: bytes | None) -> None:
    for entity in ENTITIES:
        assert isinstance(rule_of(entity).read(key, value), Foreign)


# --- places ---------------------------------------------------------------------------------------


def read_one(found: Message, partitions: int) -> Read:
    (_, [(_, read)]) = next(read_rows([found], {found.topic: partitions}))
    return read


def test_a_row_lies_where_its_key_belongs() -> None:
    right = partition_for(KEY, 4)
    for number in range(4):
        read = read_one(message("users", 0, KEY, VALUE, number), 4)
        assert (read is Foreign.PARTITION) is (number != right)
        gone = read_one(message("users", 0, KEY, None, number), 4)
        assert gone is (None if number == right else Foreign.PARTITION)
    assert read_one(message("users", 0, b"?", VALUE, 0), 4) is Foreign.OTHER_KEY


def test_a_row_that_names_its_source_may_lie_where_it_was_put_before_the_topic_grew() -> None:
    for number in range(4):
        assert not isinstance(read_one(from_source(number, "users", b"0/7"), 4), Foreign)


@pytest.mark.parametrize(
    "rest", [b"", b"/", b"0", b"-1/7", b"0/7/1", b"\xff/\xff", b"9" * 99 + b"/7"]
)
def test_a_header_that_no_worker_writes_moves_no_row(rest: bytes) -> None:
    right = partition_for(KEY, 4)
    for number in range(4):
        for entity in ("users", "matches"):
            found = read_one(from_source(number, entity, rest), 4)
            assert (found is Foreign.PARTITION) is (number != right)
    other = read_one(from_source((right + 1) % 4, "matches", b"0/7"), 4)
    assert other is Foreign.PARTITION


def from_source(partition: int, entity: str, rest: bytes) -> Message:
    headers = ((SOURCE_HEADER, NAMES.input(entity).encode() + b"/" + rest),)
    return Message(NAMES.accepted("users"), partition, 0, 0, KEY, VALUE, headers)


def test_messages_keep_their_order_over_topics() -> None:
    rows = [message("users", 0, *user(1)), message("matches", 0, *match(2, 1, 1))]
    rows += [message("users", 1, b"?", b"?"), message("users", 2, *user(2))]
    runs = list(read_rows(rows, {}))
    assert [rule.entity.name for rule, _ in runs] == ["users", "matches", "users"]
    assert [m for _, found in runs for m, _ in found] == rows


# --- index and sink -------------------------------------------------------------------------------


def test_index_and_sink_agree_whatever_lies_in_the_topics(tmp_path: Path) -> None:
    """Point by point: who is known, and which address is whose, is the same in both."""
    chance = random.Random(9)
    shared = [f"u{n}@example.com" for n in range(3)]
    log: list[Message] = []
    for offset in range(3_000):
        n = chance.randrange(6)
        key, value = user(n, email=chance.choice(shared))
        kind = chance.randrange(8)
        if kind == 0:
            value = b""
        elif kind == 1:
            key, value, _ = chance.choice(FOREIGN)  # type: ignore[assignment]
        elif kind == 2:
            value = value.replace(b"@", b"@X")
        place = partition_for(key or b"", 3) if kind != 3 else chance.randrange(3)
        row = None if kind == 4 else value
        log.append(Message(NAMES.accepted("users"), place, offset, 0, key, row))
    ends = {Partition(NAMES.accepted("users"), q): 3_000 for q in range(3)}

    index = IndexStore(tmp_path / "index")
    index.open()
    store = RowStore(tmp_path / "store", NAMES)
    for first in range(0, 3_000, 500):
        part = log[first : first + 500]
        index.apply(part, ends)
        store.apply(part, dict.fromkeys(ends, first + 500))
    snapshot = store.snapshot()
    rows = {row["id"]: row["email"] for b in snapshot.blocks("users") for row in map(json.loads, b)}
    for n in range(6):
        id_ = bytes.fromhex(uuid(n).replace("-", ""))
        assert index.user(id_) == (uuid(n) in rows)
        for email in shared:
            held = id_ in index.holders(address_digest(email))
            assert held == (rows.get(uuid(n)) == email)
    assert index.refused() == index.foreign == store.foreign()["users"] > 500
    index.close()
    store.close()


def test_memory_and_disk_read_by_the_same_rule() -> None:
    with tempfile.TemporaryDirectory() as folder:
        index = IndexStore(Path(folder))
        index.open()
        memory = MemoryIndex()
        for offset, (key, value, _) in enumerate(FOREIGN):
            index.apply([message("users", offset, key, value)], {})
            assert not memory.apply_row("users", key, value)
        assert index.counts() == memory.counts() == {"users": 0, "matches": 0, "addresses": 0}
        assert index.foreign == memory.foreign == len(FOREIGN)
        index.close()
