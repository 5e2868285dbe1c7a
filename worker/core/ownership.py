"""Who may write for a task: each take-over is a record in `internal.owners`. Pure.

Kafka fences by transactional id alone, and a worker has one for all of its tasks. So whoever takes
a task over writes down the id that it will write under, and then fences every earlier one that has
not given the task up: docs/exactly-once.md, "Fence, then read".
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from worker.core.topics import Names
from worker.stream import Message, ProducerRecord

_ID = re.compile(rb"[0-9a-f]{32}")


def writer_name(names: Names, owner: str) -> str:
    """Under which name an owner commits: on Kafka its transactional id. Never used twice."""
    return f"{names.prefix}-task-{owner}"


def earlier_writer_name(names: Names, number: int) -> str:
    """Under which name releases before 2 committed for a task."""
    return f"{names.prefix}-task-{number}"


def taken_over(names: Names, number: int, owner: str) -> ProducerRecord:
    """The owner takes the task over. A key of its own: compaction hides no owner from another."""
    return ProducerRecord(names.owners, owner.encode(), b"{}", partition=number)


def given_up(names: Names, number: int, owner: str) -> ProducerRecord:
    """The owner writes nothing more for the task, or has been fenced."""
    return ProducerRecord(names.owners, owner.encode(), None, partition=number)


def owners_before(messages: Iterable[Message], offset: int) -> list[str]:
    """Who took the task over before that offset and has not given it up, oldest first.

    `messages` are those of the task's partition, in order, those of open and of aborted
    transactions included. Of the former some may never count: fencing their writers does no harm.
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
