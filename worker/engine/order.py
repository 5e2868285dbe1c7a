"""How far a backlog is judged: in the order of arrival, what others refer to first.

Read side by side, most of a backlog would have to be parked until the users in it have been
judged. So a record waits in its inbox until all users (and matches) that arrived before it have
been read. The records' own append times say which these are, so it makes no difference how quickly
anything is read; a live stream waits for nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from schemas import ENTITIES
from worker.engine.index_updater import INDEXED

FOREVER: Final = 1 << 62
"""Later than any append time."""
LONGEST_MS: Final = 5_000
"""So long a record waits in its inbox: an input that is far behind must not hold the others up."""

_WAITS_FOR: Final = {
    entity: INDEXED if entity not in INDEXED else INDEXED[: INDEXED.index(entity)]
    for entity in ENTITIES
}


class ReadingOrder:
    """Says up to which append time records of an entity are judged now. `clock` is steady."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._held: dict[str, tuple[int, int]] = {}
        """Of each entity that waits: the append time of the first record, and since when."""
        self._open: set[str] = set()

    def limits(self, read_until: Mapping[str, int], waiting: Mapping[str, int]) -> dict[str, int]:
        """The latest append time of a record that is judged now, by entity.

        `read_until`: up to which append time all users, and all matches, have been read; `FOREVER`
        if there are no more. `waiting`: the append time of the first record in the inboxes of an
        entity, if there is one.
        """
        now = self._clock()
        limits = {}
        for entity, others in _WAITS_FOR.items():
            limit = min((read_until[other] for other in others), default=FOREVER)
            head = waiting.get(entity)
            if limit == FOREVER:
                self._open.discard(entity)
            if head is None or head <= limit:
                self._held.pop(entity, None)
            else:
                first, since = self._held.setdefault(entity, (head, now))
                if head != first:
                    self._held[entity] = (head, now)
                elif now - since >= LONGEST_MS:
                    self._open.add(entity)
            limits[entity] = FOREVER if entity in self._open else limit
        return limits
