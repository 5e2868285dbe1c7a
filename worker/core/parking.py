"""Records that wait: for references, for an address, or behind an earlier record of their key.

Most records wait only for a moment, until related records are committed. A record is therefore
*held* in memory first. The checkpoint lists its offset as not done, and the next owner reads it
from its input again. A record that waits longer is *kept* (persisted): the log gets a copy, which
does not expire with the input.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from operator import attrgetter
from typing import Final

import msgspec

from worker.core.decode import Decoded, Deletion
from worker.core.frontier import Frontier
from worker.core.moments import Moment
from worker.stream import Headers, Message

PARKED_BYTES: Final = 2_500
_NO_QUEUES: Final[Mapping[bytes, Sequence[Parked]]] = {}
_HEADER_BYTES: Final = 200
_ATTENDEE_BYTES: Final = 96
"""Measured memory overhead of a parked record, and of each of its headers and attendees."""


def headers_weight(headers: Headers) -> int:
    """About how many bytes of memory the headers take."""
    return sum(_HEADER_BYTES + len(name) + len(value) for name, value in headers)


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A parked record as `internal.parked` stores it: enough to judge it as if newly read."""

    entity: str
    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers
    arrival: int
    first_read: int
    attempt: int = 0
    place: int = -1

    def message(self) -> Message:
        """The message as it was read."""
        return Message(
            self.topic,
            self.partition,
            self.offset,
            self.timestamp,
            self.key,
            self.value,
            self.headers,
        )


class Parked(msgspec.Struct, eq=False):
    """One parked record or deletion. `arrival` is in milliseconds since 1970."""

    entity: str
    message: Message
    outcome: Decoded | Deletion
    arrival: int
    first_read: Moment
    place: int
    """Its place in its input: the offset, after those of all earlier topics (`Reading.place`)."""
    frontier: Frontier | None = None
    claimed: bool = False
    """Whether its address has been requested."""
    attempt: int = 0
    """How often the request has been repeated."""
    granted: bool | None = None
    """The reply of the address's owner."""
    kept: bool = False
    """Whether the log has a copy of it."""
    wanted: frozenset[bytes] = frozenset()
    """The ids that the record waits for; empty while it only queues behind its key."""
    size: int = 0
    """About how many bytes of memory it takes while it is parked."""

    def weigh(self) -> None:
        """Set `size`. Keep one object for row and message if they are equal, as most are.

        Runs when the record is parked: most records never are.
        """
        message, outcome = self.message, self.outcome
        size = PARKED_BYTES + len(message.value or b"") + len(message.key or b"")
        size += headers_weight(message.headers)
        if isinstance(outcome, Decoded):
            if outcome.row == message.value:
                self.outcome = msgspec.structs.replace(outcome, row=message.value)
            else:
                size += len(outcome.row)
            size += _ATTENDEE_BYTES * len(outcome.attendees)
        self.size = size

    @property
    def has_references(self) -> bool:
        """Whether the record refers to any user or match."""
        outcome = self.outcome
        return isinstance(outcome, Decoded) and bool(outcome.users or outcome.matches)

    @property
    def refers_to_matches(self) -> bool:
        """Whether its orphan verdict depends on matches as well."""
        return isinstance(self.outcome, Decoded) and bool(self.outcome.matches)

    def envelope(self) -> Envelope:
        """The copy to persist."""
        m = self.message
        return Envelope(
            self.entity,
            m.topic,
            m.partition,
            m.offset,
            m.timestamp,
            m.key,
            m.value,
            m.headers,
            self.arrival,
            self.first_read.wall,
            self.attempt,
            self.place,
        )


class Parking:
    """The parked records of one task, indexed by what they wait for."""

    def __init__(self) -> None:
        self._by_place: dict[str, dict[int, Parked]] = {}
        self._queues: dict[str, dict[bytes, deque[Parked]]] = {}
        """By entity and key."""
        # Dicts without values are sets that keep insertion order and remove in constant time.
        self._waiting: dict[bytes, dict[Parked, None]] = {}
        # By entity: within one, offset order is the order of first reading, even on rereading.
        self._in_grace: dict[str, dict[Parked, None]] = {}
        self._held: dict[str, dict[Parked, None]] = {}
        self._bytes: Counter[str] = Counter()

    def __len__(self) -> int:
        return sum(map(len, self._by_place.values()))

    def __iter__(self) -> Iterator[Parked]:
        for parked in self._by_place.values():
            yield from parked.values()

    def count(self, entity: str) -> int:
        """How many records of an entity are parked."""
        return len(self._by_place.get(entity, ()))

    def weight(self, entity: str) -> int:
        """About how many bytes of memory the parked records of an entity take."""
        return self._bytes[entity]

    def lowest(self, entity: str) -> int | None:
        """The lowest place of a parked record of the entity; None if nothing is parked."""
        return next(iter(self._by_place.get(entity, ())), None)

    def young(self, entity: str, since: int) -> Parked | None:
        """The entity's first parked record, if it was first read after `since` (steady clock)."""
        first = next(iter(self._by_place.get(entity, {}).values()), None)
        return first if first is not None and first.first_read.steady > since else None

    def oldest(self) -> Moment | None:
        """When the longest-waiting record was first read; None if nothing is parked."""
        firsts = (next(iter(parked.values()), None) for parked in self._by_place.values())
        moments = [first.first_read for first in firsts if first is not None]
        return min(moments, key=attrgetter("steady"), default=None)

    def queued(self, entity: str, key: bytes) -> bool:
        """Whether a record of that key is parked: later ones queue behind it."""
        return key in self.queues(entity)

    def queues(self, entity: str) -> Mapping[bytes, Sequence[Parked]]:
        """The parked records of an entity by key, each queue in order."""
        return self._queues.get(entity, _NO_QUEUES)

    def add(self, parked: Parked) -> None:
        """Park a record behind those of its key. Places of an entity must be in ascending order."""
        parked.weigh()
        self._by_place.setdefault(parked.entity, {})[parked.place] = parked
        self._bytes[parked.entity] += parked.size
        queues = self._queues.setdefault(parked.entity, {})
        queues.setdefault(parked.outcome.key, deque()).append(parked)
        self._in_grace.setdefault(parked.entity, {})[parked] = None
        if not parked.kept:
            self._held.setdefault(parked.entity, {})[parked] = None

    def holds(self, parked: Parked) -> bool:
        """Whether the record is still parked."""
        return self._by_place.get(parked.entity, {}).get(parked.place) is parked

    def is_head(self, parked: Parked) -> bool:
        """Whether the record is the first parked one of its key."""
        queue = self.queues(parked.entity).get(parked.outcome.key)
        return queue is not None and queue[0] is parked

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

    def release(self, parked: Parked) -> Parked | None:
        """Remove the head of a queue. Returns the next record of its key, if any."""
        self.want(parked, ())
        self._in_grace[parked.entity].pop(parked, None)
        if not parked.kept:
            del self._held[parked.entity][parked]
        del self._by_place[parked.entity][parked.place]
        self._bytes[parked.entity] -= parked.size
        queues = self._queues[parked.entity]
        queue = queues[parked.outcome.key]
        queue.popleft()
        if queue:
            return queue[0]
        del queues[parked.outcome.key]
        return None

    def held(self) -> Iterator[tuple[str, int, int]]:
        """Entity, offset and wall time of first reading of each held record.

        Oldest first within an entity.
        """
        for entity, held in self._held.items():
            for parked in held:
                yield entity, parked.message.offset, parked.first_read.wall

    def to_keep(self, latest: int, most: int) -> list[Parked]:
        """Held records first read at `latest` or before (steady clock), and those beyond `most`.

        All entities have an equal share of `most`. Within an entity the oldest records come first:
        no record stays held before a persisted one.
        """
        share = most // max(1, sum(map(bool, self._held.values())))
        due: list[Parked] = []
        for held in self._held.values():
            many = len(held) - share
            for place, parked in enumerate(held):
                if place >= many and parked.first_read.steady > latest:
                    break
                due.append(parked)
        return due

    def keep(self, parked: Parked) -> None:
        """Mark a held record as persisted."""
        parked.kept = True
        del self._held[parked.entity][parked]

    def overdue(self, latest: int) -> list[Parked]:
        """Records first read at `latest` or before (steady clock); each is returned only once."""
        due = []
        for waiting in self._in_grace.values():
            for parked in waiting:
                if parked.first_read.steady > latest:
                    break
                due.append(parked)
        for parked in due:
            del self._in_grace[parked.entity][parked]
        return due

    def _forget(self, parked: Parked, wanted: bytes) -> None:
        waiting = self._waiting[wanted]
        del waiting[parked]
        if not waiting:
            del self._waiting[wanted]
