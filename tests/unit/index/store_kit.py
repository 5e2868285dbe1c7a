"""Users for the index on disk, and an index that holds them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import UUID

from structlog.testing import capture_logs

from worker.core.known import address_digest
from worker.index.store import IndexStore
from worker.stream import Message, Partition

TOPIC = "p.accepted.users"
FIRST = Partition(TOPIC, 0)


def user(number: int) -> UUID:
    return UUID(bytes=address_digest(str(number)), version=4)


def row(number: int) -> Message:
    key = str(user(number)).encode()
    value = (
        b'{"id":"%b","email":"%d@x.org","first_name":"A","last_name":"B","role":"buddy",'
        b'"joined_at":"2024-01-15T10:00:00Z"}'
    ) % (key, number)
    return Message(TOPIC, 0, number, 0, key, value)


def filled(directory: Path, users: int = 1_000) -> None:
    store = IndexStore(directory, map_size=256 * 1024)
    store.open()
    store.apply([row(n) for n in range(users)], {FIRST: users})
    store.stamp(1_000)
    store.close()


def reopened(directory: Path) -> list[str]:
    """The reasons for which it was rebuilt at an opening; whatever it holds, it can be used."""
    store = IndexStore(directory, map_size=256 * 1024)
    with capture_logs() as logs:
        store.open()
    try:
        return _used(store, logs)
    finally:
        store.close()


def _used(store: IndexStore, logs: Sequence[Mapping[str, object]]) -> list[str]:
    expected = {FIRST: 300} if not logs else {}
    assert store.positions() == expected
    assert store.counts()["users"] == (0 if logs else 300)
    known = [store.user(user(n).bytes) for n in range(300)]
    assert all(known) if not logs else not any(known)
    store.apply([row(301)], {FIRST: 302})
    assert {log["event"] for log in logs} <= {"state_rebuild"}
    return [str(log["reason"]) for log in logs]
