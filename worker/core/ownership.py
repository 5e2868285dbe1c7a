"""Who may write for a task: each take-over is a record in `internal.owners`. Pure.

Kafka fences by transactional id alone, and a worker has one id for all of its tasks. The new owner
of a task therefore records the last part of the id that it writes under. Then it fences every
earlier owner that has not given the task up: docs/exactly-once.md, "Fence, then read".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from worker.core.topics import Names
from worker.stream import Message, ProducerRecord

_ID = re.compile(rb"[0-9a-f]{32}")


def writer_name(names: Names, owner: str) -> str:
    """The name that an owner commits under: on Kafka its transactional id. Never reused."""
    return f"{names.prefix}-task-{owner}"


def earlier_writer_name(names: Names, number: int) -> str:
    """The name that versions before 2 committed under for a task."""
    return f"{names.prefix}-task-{number}"


def owner_record(names: Names, number: int, owner: str) -> ProducerRecord:
    """The record of a take-over. Each owner has its own key: compaction hides none of them."""
    return ProducerRecord(names.owners, owner.encode(), b"{}", partition=number)


def owner_tombstone(names: Names, number: int, owner: str) -> ProducerRecord:
    """The tombstone of an owner that writes nothing more for the task, or that is fenced."""
    return ProducerRecord(names.owners, owner.encode(), None, partition=number)


def no_owners(messages: Iterable[Message]) -> list[int]:
    """The offsets of messages that no worker has written."""
    return [m.offset for m in messages if not _ID.fullmatch(m.key or b"")]


def owners_before(messages: Iterable[Message], offset: int) -> list[str]:
    """Owners that took the task over before `offset` and have not given it up, oldest first.

    `messages` are those of the task's partition in order, including open and aborted transactions.
    An open take-over may never be committed; fencing its writer does no harm.
    """
    owners: dict[bytes, None] = {}
    for message in messages:
        key = message.key or b""
        if message.offset >= offset or not _ID.fullmatch(key):
            continue
        owners.pop(key, None)
        if message.value is not None:
            owners[key] = None
    return [owner.decode() for owner in owners]
