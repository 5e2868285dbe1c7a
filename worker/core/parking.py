"""Records that wait: for their references, and behind an earlier record of their key.

Most of them wait for a moment only, until what was sent beside them has been committed. So a
record is *held* first: all that is written down is that its offset is not done, and whoever takes
the task over reads it from its input again. One that waits for longer is *kept*: the log gets a
copy, which does not expire with the input.
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
"""Measured: what a parked record takes besides its bytes, and a header or an attendee of it."""


def headers_weight(headers: Headers) -> int:
    """About how many bytes of memory headers take."""
    return sum(_HEADER_BYTES + len(name) + len(value) for name, value in headers)


class Envelope(msgspec.Struct, frozen=True, array_like=True):
    """A parked record as `internal.parked` keeps it: enough to judge it as if just read."""

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
    """Its place among all records of its input: the offset, beyond those of an earlier topic."""
    frontier: Frontier | None = None
    claimed: bool = False
    """Whether its address has been asked for."""
    attempt: int = 0
    """How often it has been asked for again."""
    granted: bool | None = None
    """What the address's owner answered."""
    kept: bool = False
    """Whether the log has a copy of it."""
    wanted: frozenset[bytes] = frozenset()
    """The ids that it waits for; empty while it only queues behind its key."""
    size: int = 0
    """About how many bytes of memory it takes, while it is parked."""

    def weigh(self) -> None:
        """Note its size; where row and message are equal, as most are, keep only one of them.

        When it is parked: most records never are.
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
        """Whether it refers to anything at all."""
        outcome = self.outcome
        return isinstance(outcome, Decoded) and bool(outcome.users or outcome.matches)

    @property
    def refers_to_matches(self) -> bool:
        """Whether its orphan verdict depends on matches too."""
        return isinstance(self.outcome, Decoded) and bool(self.outcome.matches)

    def envelope(self) -> Envelope:
        """What is kept of it."""
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
    """The parked records of one task, by what each waits for."""

    def __init__(self) -> None:
        self._by_place: dict[str, dict[int, Parked]] = {}
        self._queues: dict[str, dict[bytes, deque[Parked]]] = {}
        """By entity and key."""
        # Dicts without values are sets that keep their order and forget in constant time.
        self._waiting: dict[bytes, dict[Parked, None]] = {}
        # By entity: within one they are first read in the order of their offsets, also again.
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
        """The lowest place of a parked record of that entity."""
        return next(iter(self._by_place.get(entity, ())), None)

    def young(self, entity: str, since: int) -> Parked | None:
        """The first parked record of an entity, if it was first read after that (steady clock)."""
        first = next(iter(self._by_place.get(entity, {}).values()), None)
        return first if first is not None and first.first_read.steady > since else None

    def oldest(self) -> Moment | None:
        """When the one that waits longest was first read."""
        firsts = (next(iter(parked.values()), None) for parked in self._by_place.values())
        moments = [first.first_read for first in firsts if first is not None]
        return min(moments, key=attrgetter("steady"), default=None)

    def queued(self, entity: str, key: bytes) -> bool:
        """Whether a record of that key is parked: later ones go behind it."""
        return key in self.queues(entity)

    def queues(self, entity: str) -> Mapping[bytes, Sequence[Parked]]:
        """The parked records of an entity by key, each queue in order."""
        return self._queues.get(entity, _NO_QUEUES)

    def add(self, parked: Parked) -> None:
        """Park a record behind those of its key. Places of an entity come in growing order."""
        parked.weigh()
        self._by_place.setdefault(parked.entity, {})[parked.place] = parked
        self._bytes[parked.entity] += parked.size
        queues = self._queues.setdefault(parked.entity, {})
        queues.setdefault(parked.outcome.key, deque()).append(parked)
        self._in_grace.setdefault(parked.entity, {})[parked] = None
        if not parked.kept:
            self._held.setdefault(parked.entity, {})[parked] = None

    def holds(self, parked: Parked) -> bool:
        """Whether it is still parked."""
        return self._by_place.get(parked.entity, {}).get(parked.place) is parked

    def is_head(self, parked: Parked) -> bool:
        """Whether nothing of its key waits before it."""
        queue = self.queues(parked.entity).get(parked.outcome.key)
        return queue is not None and queue[0] is parked

    def want(self, parked: Parked, ids: Iterable[bytes]) -> None:
        """Have it found by `waiting_for` these ids, and no others."""
        fresh = frozenset(ids)
        for wanted in parked.wanted - fresh:
            self._forget(parked, wanted)
        for wanted in fresh - parked.wanted:
            self._waiting.setdefault(wanted, {})[parked] = None
        parked.wanted = fresh

    def waiting_for(self, wanted: bytes) -> list[Parked]:
        """Those that wait for this id."""
        return list(self._waiting.get(wanted, ()))

    def awaited(self, ids: AbstractSet[bytes]) -> list[bytes]:
        """Which of these ids somebody waits for, in a fixed order."""
        return sorted(self._waiting.keys() & ids) if self._waiting else []

    def release(self, parked: Parked) -> Parked | None:
        """Take the head of a queue out; the next of its key, if any."""
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
        """Entity, offset and stamp of the first reading of each that is held, oldest first."""
        for entity, held in self._held.items():
            for parked in held:
                yield entity, parked.message.offset, parked.first_read.wall

    def to_keep(self, latest: int, most: int) -> list[Parked]:
        """Held records first read at `latest` or before (steady clock), and those beyond `most`.

        Of each entity the oldest, so that nothing of it is held before what is kept; each may
        hold the same share of `most`.
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
        """The log gets a copy of one that has been held."""
        parked.kept = True
        del self._held[parked.entity][parked]

    def overdue(self, latest: int) -> list[Parked]:
        """Those first read at `latest` or before (steady clock); each is given once."""
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
