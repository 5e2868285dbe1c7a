"""In which order a backlog is read: what others refer to comes first.

Read side by side, most of a backlog would have to be parked until the users in it have been
judged: written down and read again, for nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Final

from schemas import ENTITIES
from worker.brokers.contract import Message
from worker.clock import Clock
from worker.engine.follower import INDEXED
from worker.topics import Names

BATCH: Final = 5_000
"""Messages a read, at most."""
_OLD_MS: Final = 10_000
"""Messages that have lain for longer come from a backlog."""
_LONGEST_MS: Final = 2_000
"""For so long the others wait, so that a stream of users alone does not hold them up for ever."""

_AFTER: Final = [frozenset(list(ENTITIES)[number + 1 :]) for number in range(len(INDEXED))]
"""What waits while users (0) or matches (1) are read."""


class ReadingOrder:
    """Says which inputs had better wait for the next read."""

    def __init__(self, names: Names, clock: Clock) -> None:
        self._first = {names.inputs(entity): entity for entity in INDEXED}
        self._clock = clock
        self._found: set[str] = set()
        self._old: set[str] = set()
        self._later: frozenset[str] = frozenset()
        self._until = [clock.steady() + _LONGEST_MS] * len(INDEXED)

    def note(self, messages: Sequence[Message]) -> None:
        """Learn what a read has brought, and of which entities it was a backlog."""
        # A wrong wall clock makes the others wait for `_LONGEST_MS` at a time, and no longer.
        old = self._clock.wall() - _OLD_MS
        first = [message for message in messages if message.topic in self._first]
        self._found = {self._first[message.topic] for message in first}
        self._old = {self._first[message.topic] for message in first if message.timestamp < old}

    def later(self, behind: Collection[str], *, users_waiting: bool) -> frozenset[str]:
        """The inputs, by entity, that are not read next.

        `behind` are the entities of which not all has been read that was there when their tasks
        were taken over: that has an end, so the others wait for as long as it goes on. For what
        has piled up since, for users that wait for their addresses, and for a backlog that gives
        nothing, they wait `_LONGEST_MS` at most.
        """
        now = self._clock.steady()
        for place, entity in enumerate(INDEXED):
            if entity in behind and entity in self._found:
                self._until[place] = now + _LONGEST_MS
            wanted = entity in behind or entity in self._old
            if entity == "users":
                wanted = wanted or (users_waiting and bool(self._later))
            if wanted and now <= self._until[place]:
                # The patience for what comes after begins when its turn has come.
                self._until[place + 1 :] = [now + _LONGEST_MS] * (len(INDEXED) - place - 1)
                self._later = _AFTER[place]
                return self._later
        self._until = [now + _LONGEST_MS] * len(INDEXED)
        self._later = frozenset()
        return self._later
