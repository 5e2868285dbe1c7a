"""Answers of a broker to `buddy status`: two tasks of one worker, with changes."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas import ENTITIES
from worker.core.checkpoint import Checkpoint
from worker.core.topics import Names
from worker.status.broker_answers import BrokerAnswers, TaskCheckpoint
from worker.stream import GroupMember, Message, OffsetRange, Partition

NAMES = Names("p")
NOW = 1_700_000_000_000
USERS = Partition("p.in.users", 0)
EVENTS = Partition("p.in.events", 1)
ALL_READ = dict.fromkeys(ENTITIES, 10)


def checkpoint(**fields: Any) -> Checkpoint:
    return Checkpoint(**{"next": ALL_READ, "judged": {}, "topics": {"claims": "c"}, **fields})


def answers(**changes: Any) -> BrokerAnswers:
    """Two tasks of one worker, all read, a minute ago; except for the changes."""
    partitions = [Partition(NAMES.input(e), number) for e in ENTITIES for number in (0, 1)]
    usual: dict[str, Any] = {
        "names": NAMES,
        "at": NOW,
        "tasks": dict.fromkeys((0, 1), TaskCheckpoint(checkpoint(), NOW - 60_000)),
        "spans": dict.fromkeys(partitions, OffsetRange(0, 10)),
        "ends": dict.fromkeys(partitions, 10),
        "group_offsets": {},
        "identities": {NAMES.input(entity): f"id-{entity}" for entity in ENTITIES},
        "workers": [GroupMember("w", frozenset({0, 1}))],
        "sinks": [],
        "exact": True,
    }
    return BrokerAnswers(**(usual | changes))


def behind(**changes: Any) -> BrokerAnswers:
    """As `answers`, but 3 users of task 0 are still to be read."""
    base = answers()
    return answers(spans={**base.spans, USERS: OffsetRange(0, 13)}, **changes)


def message(value: bytes | None, key: bytes = b"1", number: int = 1, at: int = NOW) -> Message:
    return Message(NAMES.progress, number, 0, at, key, value)


def progress(**positions: int) -> bytes:
    return msgspec.json.encode({"next": positions, "judged": {}})
