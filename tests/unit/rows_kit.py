"""Rows as the worker publishes them, for the tests of all that reads them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from worker.core.decode import Decoded, decoders
from worker.core.topics import Names
from worker.stream import Message

NAMES = Names("t")
ANY_TIME = datetime.max.replace(tzinfo=UTC)


def uuid(n: int) -> str:
    """The n-th id: a UUID v4 whose order is that of the numbers."""
    return str(UUID(int=n << 80 | 0x4 << 76 | 0x8 << 60))


def encode(**fields: Any) -> bytes:
    return json.dumps(fields, separators=(",", ":")).encode()


def canonical(entity: str, fields: Mapping[str, Any]) -> tuple[bytes, bytes]:
    """Key and row as the worker publishes them."""
    found = decoders()[entity].decode(encode(**fields), None, ANY_TIME)
    assert isinstance(found, Decoded)
    return found.key, found.row


def user(n: int, **more: Any) -> tuple[bytes, bytes]:
    row = {
        "id": uuid(n),
        "email": f"u{n}@example.com",
        "first_name": "Alice",
        "last_name": "Smith",
        "role": "buddy",
        "joined_at": "2024-01-15T10:00:00Z",
    }
    return canonical("users", row | more)


def match(n: int, participant: int, buddy: int, **more: Any) -> tuple[bytes, bytes]:
    row = {
        "match_id": uuid(n),
        "participant_id": uuid(participant),
        "buddy_id": uuid(buddy),
        "matched_at": "2024-02-01T00:00:00Z",
        "status": "active",
    }
    return canonical("matches", row | more)


def event(n: int, of: int, date: str = "2024-03-01T00:00:00Z") -> tuple[bytes, bytes]:
    row = {"event_id": uuid(n), "match_id": uuid(of), "event_type": "hangout", "event_date": date}
    return canonical("events", row)


def milestone(n: int, of: int) -> tuple[bytes, bytes]:
    row = {
        "milestone_id": n,
        "user_id": uuid(of),
        "milestone_title": "First match",
        "milestone_category": "skills",
        "reached_at": "2024-01-20T14:30:00Z",
        "points": 100,
    }
    return canonical("milestones", row)


def message(
    entity: str, offset: int, key: bytes | None, value: bytes | None, partition: int = 0
) -> Message:
    return Message(NAMES.accepted(entity), partition, offset, 1_000 + offset, key, value)
