"""Records that wait: for references, for an address, or behind an earlier record of their key.

Most records wait only for a moment, until related records are committed. A record therefore stays
*in memory* first. The checkpoint lists its offset as not done, and the next owner reads it from its
input again. A record that waits longer is *persisted*: the log gets a copy, which does not expire
with the input.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import attrgetter

from schemas import ENTITIES
from worker.core.frontier import Frontier
from worker.core.moments import Moment
from worker.core.parked import Parked, State


class _Entity:
    """The parked records of one entity."""

    # Dicts without values are sets that keep insertion order and remove in constant time. The order
    # of ordinals is the order of first reading, even on rereading.
    def __init__(self) -> None:
        self.records: dict[int, Parked] = {}
        """By ordinal, ascending."""
        self.queues: dict[bytes, deque[Parked]] = {}
        """By key."""
        self.in_grace: dict[Parked, None] = {}
        self.in_memory: dict[Parked, None] = {}
        self.bytes = 0


class Parking:
    """The parked records of one task, indexed by what they wait for."""

    def __init__(self) -> None:
        self._entities = {entity: _Entity() for entity in ENTITIES}
        self._waiting: dict[bytes, dict[Parked, None]] = {}
        """By id that is waited for."""
        self._need_frontier: dict[Parked, None] = {}
        self._by_frontier: dict[Frontier, dict[Parked, None]] = {}

    def __len__(self) -> int:
        return sum(len(each.records) for each in self._entities.values())

    def __iter__(self) -> Iterator[Parked]:
        for each in self._entities.values():
            yield from each.records.values()

    # --- counts -------------------------------------------------------------------------------

    def count(self, entity: str) -> int:
        """How many records of an entity are parked."""
        return len(self._entities[entity].records)

    def weight(self, entity: str) -> int:
        """About how many bytes of memory the parked records of an entity take."""
        return self._entities[entity].bytes

    def lowest(self, entity: str) -> int | None:
        """The lowest ordinal of a parked record of the entity; None if nothing is parked."""
        return next(iter(self._entities[entity].records), None)

    def young(self, entity: str, since: int) -> Parked | None:
        """The entity's first parked record, if it was first read after `since` (steady clock)."""
        first = self._first(entity)
        return first if first is not None and first.first_read.steady > since else None

    def oldest(self) -> Moment | None:
        """When the longest-waiting record was first read; None if nothing is parked."""
        firsts = map(self._first, self._entities)
        moments = [first.first_read for first in firsts if first is not None]
        return min(moments, key=attrgetter("steady"), default=None)

    # --- queues -------------------------------------------------------------------------------

    def queued(self, entity: str, key: bytes) -> bool:
        """Whether a record of that key is parked: later ones queue behind it."""
        return key in self._entities[entity].queues

    def queues(self, entity: str) -> Mapping[bytes, Sequence[Parked]]:
        """The parked records of an entity by key, each queue in order."""
        return self._entities[entity].queues

    def add(self, parked: Parked) -> None:
        """Park a record behind those of its key. Ordinals of an entity must be ascending."""
        parked.weigh()
        entity = self._entities[parked.entity]
        entity.records[parked.ordinal] = parked
        entity.bytes += parked.size
        entity.queues.setdefault(parked.decoded.key, deque()).append(parked)
        if parked.state is State.GRACE:
            entity.in_grace[parked] = None
        if not parked.persisted:
            entity.in_memory[parked] = None

    def find(self, entity: str, ordinal: int) -> Parked | None:
        """The parked record with this ordinal; None if it is not parked."""
        return self._entities[entity].records.get(ordinal)

    def is_parked(self, parked: Parked) -> bool:
        """Whether the record is still parked."""
        return self._entities[parked.entity].records.get(parked.ordinal) is parked

    def is_head(self, parked: Parked) -> bool:
        """Whether the record is the first parked one of its key."""
        queue = self._entities[parked.entity].queues.get(parked.decoded.key)
        return queue is not None and queue[0] is parked

    def remove(self, parked: Parked) -> Parked | None:
        """Remove the head of a queue. Returns the next record of its key, if any."""
        self.want(parked, ())
        entity = self._entities[parked.entity]
        entity.in_grace.pop(parked, None)
        self._need_frontier.pop(parked, None)
        if parked.frontier is not None:
            self._leave(parked.frontier, parked)
        entity.in_memory.pop(parked, None)
        del entity.records[parked.ordinal]
        entity.bytes -= parked.size
        queue = entity.queues[parked.decoded.key]
        queue.popleft()
        if queue:
            return queue[0]
        del entity.queues[parked.decoded.key]
        return None

    def unanswered(self, now: int) -> list[Parked]:
        """The users whose requests have been unanswered for too long; looks at all users."""
        return [
            parked
            for parked in self._entities["users"].records.values()
            if parked.state is State.REQUESTED and now - parked.tried >= parked.reply_patience
        ]

    # --- ids ----------------------------------------------------------------------------------

    def want(self, parked: Parked, ids: Iterable[bytes]) -> None:
        """Make `waiting_for` find the record by these ids, and by no others."""
        fresh = frozenset(ids)
        for wanted in parked.wanted - fresh:
            self._forget(parked, wanted)
        for wanted in fresh - parked.wanted:
            self._waiting.setdefault(wanted, {})[parked] = None
        parked.wanted = fresh

    def waiting_for(self, wanted: bytes) -> list[Parked]:
        """The records that wait for this id."""
        return list(self._waiting.get(wanted, ()))

    def awaited(self, ids: AbstractSet[bytes]) -> list[bytes]:
        """The ids among `ids` that records wait for, sorted."""
        return sorted(self._waiting.keys() & ids) if self._waiting else []

    # --- frontiers ----------------------------------------------------------------------------

    @property
    def past_grace(self) -> int:
        """How many records past their grace period wait for a definitive verdict."""
        return len(self._need_frontier) + sum(map(len, self._by_frontier.values()))

    def end_grace(self, latest: int) -> bool:
        """End the grace of records with references that were first read at `latest` or before.

        `latest` is a time of the steady clock. Returns whether records need a frontier.
        """
        for entity in self._entities.values():
            due = []
            for parked in entity.in_grace:
                if parked.first_read.steady > latest:
                    break
                due.append(parked)
            for parked in due:
                del entity.in_grace[parked]
                parked.move(State.NEEDS_FRONTIER)
                self._need_frontier[parked] = None
        return bool(self._need_frontier)

    def await_frontiers(self, users: Frontier, matches: Frontier) -> None:
        """Make each record that needs a frontier wait for the one that covers its references."""
        for parked in self._need_frontier:
            parked.move(State.HAS_FRONTIER)
            parked.frontier = matches if parked.refers_to_matches else users
            self._by_frontier.setdefault(parked.frontier, {})[parked] = None
        self._need_frontier = {}

    def drop_frontiers(self) -> None:
        """Make the records that wait for a frontier wait for a new one."""
        for waiting in self._by_frontier.values():
            for parked in waiting:
                parked.move(State.NEEDS_FRONTIER)
                parked.frontier = None
                self._need_frontier[parked] = None
        self._by_frontier = {}

    def frontiers(self) -> Collection[Frontier]:
        """The frontiers that records wait for."""
        return self._by_frontier.keys()

    def take_passed(self) -> list[Parked]:
        """The records whose frontier has been passed; each is returned only once."""
        passed = [frontier for frontier in self._by_frontier if frontier.passed]
        return [parked for frontier in passed for parked in self._by_frontier.pop(frontier)]

    # --- copies -------------------------------------------------------------------------------

    def in_memory(self) -> Iterator[Parked]:
        """The records without a copy in the log, oldest first within an entity."""
        for each in self._entities.values():
            yield from each.in_memory

    def to_persist(self, latest: int, most: int) -> list[Parked]:
        """Records in memory first read at `latest` or before (steady clock), or beyond `most`.

        All entities have an equal share of `most`. Within an entity the oldest records come first:
        no record stays in memory before a persisted one.
        """
        waiting = [each.in_memory for each in self._entities.values() if each.in_memory]
        share = most // max(1, len(waiting))
        due: list[Parked] = []
        for records in waiting:
            many = len(records) - share
            for index, parked in enumerate(records):
                if index >= many and parked.first_read.steady > latest:
                    break
                due.append(parked)
        return due

    def is_first_in_memory(self, parked: Parked) -> bool:
        """Whether the record is in memory, and no earlier one of its entity is."""
        return next(iter(self._entities[parked.entity].in_memory), None) is parked

    def persist(self, parked: Parked) -> None:
        """Mark a record as persisted."""
        parked.persisted = True
        del self._entities[parked.entity].in_memory[parked]

    # --- inside -------------------------------------------------------------------------------

    def _first(self, entity: str) -> Parked | None:
        return next(iter(self._entities[entity].records.values()), None)

    def _forget(self, parked: Parked, wanted: bytes) -> None:
        waiting = self._waiting[wanted]
        del waiting[parked]
        if not waiting:
            del self._waiting[wanted]

    def _leave(self, frontier: Frontier, parked: Parked) -> None:
        waiting = self._by_frontier.get(frontier)
        if waiting is not None:
            waiting.pop(parked, None)
            if not waiting:
                del self._by_frontier[frontier]
