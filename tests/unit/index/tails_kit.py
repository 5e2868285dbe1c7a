"""A log, and the tails of a store that has read a part of it."""

from __future__ import annotations

from collections.abc import Sequence

from worker.index.tails import Tail, extended
from worker.stream import Message, Partition

PLACE = Partition("b.accepted.users", 0)


def message(offset: int, key: str = "", value: str | None = "v", time: int = 0) -> Message:
    name = (key or f"k{offset}").encode()
    content = None if value is None else value.encode()
    return Message(PLACE.topic, 0, offset, time, name, content, (("h", b"x"),))


def read(log: Sequence[Message], position: int, *, at_once: int = 3) -> dict[Partition, Tail]:
    """The tails of whoever has read the log up to there."""
    tails: dict[Partition, Tail] = {}
    messages = [m for m in log if m.offset < position]
    before = 0
    for first in range(0, max(1, len(messages)), at_once):
        some = messages[first : first + at_once]
        now = position if first + at_once >= len(messages) else some[-1].offset + 1
        tails |= extended(tails, {PLACE: before}, some, {PLACE: now})
        before = now
    return tails


LOG = [message(n) for n in range(20)]
