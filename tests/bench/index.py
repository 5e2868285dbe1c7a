"""Figures of the index on disk: `apply`, look-ups, a restart. Called by `make bench`."""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from uuid import UUID

import msgspec

from worker.core.known import address_digest
from worker.index.store import IndexStore
from worker.stream import Message, Partition

BATCH = 5_000
LOOKUPS = 1_000_000


def run(users: int = 1_000_000, matches: int = 100_000) -> list[tuple[str, float, str]]:
    """Fill an index with made-up users and matches and measure it: (name, figure, unit)."""
    with tempfile.TemporaryDirectory(prefix="buddy-bench-") as folder:
        return _run(Path(folder) / "index", users, matches)


def _run(directory: Path, users: int, matches: int) -> list[tuple[str, float, str]]:
    store = IndexStore(directory)
    store.open()
    users_rate = fill(store, messages("users", users))
    again = fill(store, messages("users", min(users, 100_000)))
    matches_rate = fill(store, messages("matches", matches))
    store.close()
    size = (directory / "data.mdb").stat().st_blocks * 512

    before = _mapped()
    start = time.perf_counter()
    store = IndexStore(directory)
    store.open()
    ready = time.perf_counter() - start
    rng = random.Random(2)
    known = [rng.randrange(users) for _ in range(LOOKUPS)]
    ids = [made_id("users", n) if rng.random() < 0.99 else rng.randbytes(16) for n in known]
    for number in range(users):  # brings the whole tree into memory
        store.user(made_id("users", number))
    memory = _mapped() - before
    single = _rate(store.user, [(i,) for i in ids])
    digests = [address_digest(_email(n)) for n in known]
    taken = _rate(store.taken, list(zip(digests, ids, strict=True)))
    store.close()
    return [
        (f"index: apply of {users:,} new users, batches of {BATCH:,}", users_rate, "rows/s"),
        ("index: apply of users that are known already", again, "rows/s"),
        (f"index: apply of {matches:,} new matches", matches_rate, "rows/s"),
        (f"index: look-up of a user among {users:,}", single, "1/s"),
        (f"index: look-up of an address among {users:,}", taken, "1/s"),
        ("index: ready after a restart", ready * 1000, "ms"),
        (
            "index: memory after each user was looked up, addresses apart",
            memory / users,
            "bytes/user",
        ),
        ("index: disk, addresses included", size / (users + matches), "bytes/id"),
    ]


def fill(store: IndexStore, batches: Iterator[list[Message]]) -> float:
    """Rows a second in `apply` alone; making the messages does not count."""
    rows, seconds = 0, 0.0
    for batch in batches:
        rows += len(batch)
        position = {Partition(batch[0].topic, 0): rows}
        start = time.perf_counter()
        store.apply(batch, position)
        seconds += time.perf_counter() - start
    return rows / seconds


def _rate(function: object, arguments: Sequence[tuple[bytes, ...]]) -> float:
    assert callable(function)
    start = time.perf_counter()
    for some in arguments:
        function(*some)
    return len(arguments) / (time.perf_counter() - start)


def made_id(entity: str, number: int) -> bytes:
    """The id of a made-up row: spread like random ids, and known from the number alone."""
    return UUID(bytes=address_digest(f"{entity} {number}"), version=4).bytes


def _email(number: int) -> str:
    return f"user.{number}@example.org"


def messages(entity: str, count: int, start: int = 0) -> Iterator[list[Message]]:
    """Rows as they are accepted, from number `start` up to `count`, in batches."""
    for first in range(start, count, BATCH):
        yield [_message(entity, number) for number in range(first, min(first + BATCH, count))]


def _message(entity: str, number: int) -> Message:
    key = str(UUID(bytes=made_id(entity, number)))
    row: dict[str, object]
    if entity == "users":
        row = {
            "id": key,
            "email": _email(number),
            "first_name": "Anna",
            "last_name": "Svensson",
            "role": "participant",
            "joined_at": "2024-03-01T09:30:00Z",
            "language_preference": "sv",
            "interests": ["music", "hiking"],
            "location": "Malmö",
        }
    else:
        row = {
            "match_id": key,
            "participant_id": str(UUID(bytes=made_id("users", number))),
            "buddy_id": str(UUID(bytes=made_id("users", number + 1))),
            "matched_at": "2024-03-01T09:30:00Z",
            "status": "active",
        }
    topic = f"buddy.accepted.{entity}"
    return Message(topic, 0, number, 0, key.encode(), msgspec.json.encode(row))


def _mapped() -> int:
    """Bytes of mapped files that are in this process's memory; 0 where the system does not say."""
    try:
        status = Path("/proc/self/status").read_text("ascii")
    except OSError:
        return 0
    found = re.search(r"^RssFile:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    for name, figure, unit in run():
        print(f"{name}: {figure:,.0f} {unit}")
