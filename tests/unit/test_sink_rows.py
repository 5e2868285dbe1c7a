"""Rows for the sink's tests, and the reading of accepted messages."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

import pytest

from schemas import ENTITIES
from worker.brokers.contract import Message
from worker.sink.rows import RowReader, Unreadable
from worker.topics import Names

NAMES = Names("t")


def uuid(n: int) -> str:
    """The n-th id: a UUID v4 whose order is that of the numbers."""
    return str(UUID(int=n << 80 | 0x4 << 76 | 0x8 << 60))


def encode(**fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def user(n: int, **more: Any) -> tuple[bytes, bytes]:
    row = {
        "id": uuid(n),
        "email": f"u{n}@example.com",
        "first_name": "Alice",
        "last_name": "Smith",
        "role": "buddy",
        "joined_at": "2024-01-15T10:00:00Z",
    }
    return uuid(n).encode(), encode(**(row | more))


def match(n: int, participant: int, buddy: int, **more: Any) -> tuple[bytes, bytes]:
    row = {
        "match_id": uuid(n),
        "participant_id": uuid(participant),
        "buddy_id": uuid(buddy),
        "matched_at": "2024-02-01T00:00:00Z",
        "status": "active",
    }
    return uuid(n).encode(), encode(**(row | more))


def event(n: int, of: int, date: str = "2024-03-01T00:00:00Z") -> tuple[bytes, bytes]:
    row = {"event_id": uuid(n), "match_id": uuid(of), "event_type": "hangout", "event_date": date}
    return uuid(n).encode(), encode(**row)


def milestone(n: int, of: int) -> tuple[bytes, bytes]:
    row = {
        "milestone_id": n,
        "user_id": uuid(of),
        "milestone_title": "First match",
        "milestone_category": "skills",
        "reached_at": "2024-01-20T14:30:00Z",
        "points": 100,
    }
    return f"{n}:{uuid(of)}".encode(), encode(**row)


def message(
    entity: str, offset: int, key: bytes | None, value: bytes | None, partition: int = 0
) -> Message:
    return Message(NAMES.accepted(entity), partition, offset, 1_000 + offset, key, value)


def test_rows_and_deletions_are_readable() -> None:
    for entity, (key, value) in {
        "users": user(1),
        "matches": match(2, 1, 3),
        "events": event(4, 2),
        "milestones": milestone(10, 1),
    }.items():
        reader = RowReader(ENTITIES[entity])
        assert isinstance(reader.read(key, value), bytes)
        assert reader.read(key, None) == b""


def test_a_match_brings_the_ids_of_its_users() -> None:
    found = RowReader(ENTITIES["matches"]).read(*match(2, 1, 3))
    assert found == UUID(uuid(1)).bytes + UUID(uuid(3)).bytes
    assert RowReader(ENTITIES["milestones"]).read(*milestone(10, 1)) == b""


KEY, VALUE = user(1)


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (None, VALUE, "no key"),
        (None, None, "no key"),
        (b"\xff", None, "key not canonical"),
        (KEY.replace(b"0001", b"00AB"), None, "key not canonical"),
        (KEY.replace(b"0001", b"00AB"), VALUE.replace(b"0001", b"00AB"), "row does not decode"),
        (uuid(2).encode(), VALUE, "key is not the row's"),
        (b"", VALUE, "key is not the row's"),
        (KEY, b"", "row does not decode"),
        (KEY, b"{", "row does not decode"),
        (KEY, b"\xff", "row does not decode"),
        (KEY, b"[]", "row does not decode"),
        (KEY, VALUE.replace(b'"buddy"', b'"boss"'), "row does not decode"),
        (KEY, VALUE[:-1] + b',"shoe_size":44}', "row does not decode"),
        (KEY, VALUE[:-1] + b',"location":"\xff"}', "row does not decode"),
        (KEY, b"[" * 100_000, "row does not decode"),
        (KEY, VALUE.replace(b",", b",\n"), "row not canonical"),
    ],
)
def test_what_is_no_row_of_its_key_is_told_why(
    key: bytes | None, value: bytes | None, reason: str
) -> None:
    assert RowReader(ENTITIES["users"]).read(key, value) == Unreadable(reason)
