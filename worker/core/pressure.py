"""Back-pressure: what is not read now, so that memory is bounded. docs/operations.md."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.core.parking import PARKED_BYTES, Parking, headers_weight
from worker.stream import Message

_MIB: Final = 1024 * 1024

_LEVELS: Final = (
    (("users",), 4),
    (("matches",), 4),
    (tuple(name for name in ENTITIES if name not in {"users", "matches"}), 2),
)
"""Each refers to those before it alone, so each has a part of the room for itself: one that is
full keeps nothing from being read that it waits for."""


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """How much a worker holds of parked records."""

    records: int = 200_000
    bytes: int = 256 * _MIB

    def room(self, tasks: int) -> int:
        """The bytes of parked records of one task. The same whoever runs how many of them."""
        return max(1, self.bytes // tasks)

    def batch(self, tasks: int) -> int:
        """The bytes that one task reads before it judges, and that one decision settles."""
        return max(_MIB, self.bytes // 4 // tasks)


def crowded(parking: Parking, records: int, room: int) -> set[str]:
    """The entities of which a task parks so much that no more of them is read."""
    found: set[str] = set()
    for level, part in _LEVELS:
        count = sum(map(parking.count, level))
        # Where nothing is parked nothing will be released: however small a share is, one is read.
        if count and (count >= records or sum(map(parking.weight, level)) >= room // part):
            found.update(level)
    return found


def overfull(inbox: Mapping[str, int], room: int) -> set[str]:
    """The inputs of which so much waits in an inbox that no more is read.

    What waits, and the `room` for it, is in bytes or in messages.
    """
    found = {name for name, size in inbox.items() if name not in ENTITIES and size >= room}
    for level, part in _LEVELS:
        size = sum(inbox.get(entity, 0) for entity in level)
        if size and size >= room // part:  # however small a share is, one is read
            found.update(level)
    return found


def weight(message: Message) -> int:
    """About how many bytes of memory a message takes, should it have to be parked."""
    size = PARKED_BYTES + len(message.value or b"") + len(message.key or b"")
    return size + headers_weight(message.headers) if message.headers else size
