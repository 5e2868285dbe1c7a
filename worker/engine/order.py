"""How far a backlog is judged: in order of arrival, referenced entities first.

If all inputs of a backlog were judged as they are read, most records would be parked until their
users are judged. So a record waits in its inbox until all users (and matches) that arrived
earlier have been read. Append times decide what arrived earlier, so the speed of each read does
not matter. A live stream waits for nothing. A producer's time counts where there is no append time
(`TaskHandle.put`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from schemas import ENTITIES
from worker.engine.index_updater import INDEXED

FOREVER: Final = 1 << 62
"""Later than any clock's time: `TaskHandle.put` admits no others."""
LONGEST_MS: Final = 5_000
"""How long a record waits in its inbox: an input with a large lag must not delay others."""

_WAITS_FOR: Final = {
    entity: INDEXED if entity not in INDEXED else INDEXED[: INDEXED.index(entity)]
    for entity in ENTITIES
}


class ReadingOrder:
    """Decides up to which append time records are judged now, by entity. `clock` is steady."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._held: dict[str, tuple[int, int]] = {}
        """By waiting entity: the append time of its first record, and when the wait began."""
        self._open: set[str] = set()

    def limits(self, read_until: Mapping[str, int], waiting: Mapping[str, int]) -> dict[str, int]:
        """The latest append time that is judged now, by entity.

        `read_until` has the append time up to which all users, and all matches, have been read;
        `FOREVER` if there are no more. `waiting` has, by entity, the append time of the first
        record in the inboxes.
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
