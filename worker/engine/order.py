"""In which order a backlog is read: what others refer to comes first.

Read side by side, most of a backlog would have to be parked until the users in it have been
judged: written down and read again, for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from schemas import ENTITIES
from worker.brokers.contract import Message
from worker.engine.follower import INDEXED
from worker.topics import Names

BATCH: Final = 5_000
"""Messages a read, at most."""
_OLD_MS: Final = 1_000
"""Messages that have lain for longer come from a backlog."""
_LONGEST_MS: Final = 2_000
"""For so long the others wait, so that a stream of users alone does not hold them up for ever."""


class ReadingOrder:
    """Says after each read which inputs had better wait for the next."""

    def __init__(self, names: Names, clock: Callable[[], int]) -> None:
        self._first = {names.inputs(entity): entity for entity in INDEXED}
        self._clock = clock
        self._later: frozenset[str] = frozenset()
        self._since = clock()

    def later(self) -> frozenset[str]:
        """The inputs, by entity, that are not read next."""
        return self._later

    def note(self, messages: Sequence[Message], users_waiting: bool) -> None:  # noqa: FBT001
        """Learn from what a read has brought, and whether users wait for their addresses."""
        now = self._clock()
        backlog = bool(messages) and now - messages[0].timestamp > _OLD_MS
        found = {self._first[m.topic] for m in messages if m.topic in self._first}
        if now - self._since > _LONGEST_MS:
            first = None
        elif (backlog and "users" in found) or (self._later and users_waiting):
            first = 0
        else:
            first = 1 if backlog and "matches" in found else None
        if first is None:
            self._since = now
            self._later = frozenset()
        else:
            # Nothing that comes after the first of those that are read now.
            self._later = frozenset(list(ENTITIES)[first + 1 :])
