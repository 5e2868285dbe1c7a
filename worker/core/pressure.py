"""Back-pressure: which inputs pause, to bound memory. docs/operations/running.md."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final, NamedTuple

import msgspec

from schemas import ENTITIES
from worker.core.parked import PARKED_BYTES, headers_weight
from worker.core.parking import Parking
from worker.stream import Message

_MIB: Final = 1024 * 1024

_LEVELS: Final = (
    (("users",), 4),
    (("matches",), 4),
    (tuple(name for name in ENTITIES if name not in {"users", "matches"}), 2),
)
"""Entities by level, each with its fraction (1/n) of the room. A level refers only to earlier
levels. With room of its own, a full level never blocks the records that it waits for."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How many parked records a worker may have, and how many bytes of them."""

    records: int = 200_000
    bytes: int = 256 * _MIB

    def room(self, tasks: int, of: int = 1) -> int:
        """The bytes for the parked records of `of` tasks, however many tasks this worker runs.

        `tasks` is the number of tasks of all workers.
        """
        return max(1, self.bytes * of // tasks)

    def batch(self, tasks: int, of: int = 1) -> int:
        """The bytes that `of` tasks read before they judge. One decision settles those of one."""
        return max(_MIB, self.bytes // 4 * of // tasks)


class ParkedLoad(NamedTuple):
    """How many records of a level are parked, and how many bytes they take."""

    records: int
    bytes: int


def loads(parking: Parking) -> list[ParkedLoad]:
    """What a task has parked, by level."""
    return [
        ParkedLoad(sum(map(parking.count, level)), sum(map(parking.weight, level)))
        for level, _ in _LEVELS
    ]


def total(tasks: Iterable[list[ParkedLoad]]) -> list[ParkedLoad]:
    """What several tasks have parked, by level. There must be one at least."""
    return [ParkedLoad(*map(sum, zip(*level, strict=True))) for level in zip(*tasks, strict=True)]


def crowded(parked: Iterable[ParkedLoad], records: int, room: int) -> set[str]:
    """The entities that pause because too many of their records are parked."""
    found: set[str] = set()
    for (level, part), load in zip(_LEVELS, parked, strict=True):
        # Without a parked record, none will be released: however small the share, read one.
        if load.records and (load.records >= records or load.bytes >= room // part):
            found.update(level)
    return found


def overfull(inbox: Mapping[str, int], room: int) -> set[str]:
    """The inputs that pause because too much waits in their inbox.

    `inbox` and `room` are both in bytes, or both in messages.
    """
    found = {name for name, size in inbox.items() if name not in ENTITIES and size >= room}
    for level, part in _LEVELS:
        size = sum(inbox.get(entity, 0) for entity in level)
        if size and size >= room // part:  # however small the share, read one
            found.update(level)
    return found


def weight(message: Message) -> int:
    """About how many bytes of memory a message takes if it is parked."""
    size = PARKED_BYTES + len(message.value or b"") + len(message.key or b"")
    return size + headers_weight(message.headers) if message.headers else size
