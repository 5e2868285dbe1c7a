"""A task's position in its inputs, and the records before it that are not done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from schemas import ENTITIES
from worker.core.books import Books
from worker.core.checkpoint import Checkpoint
from worker.core.moments import Moment, restored
from worker.core.outbox import Tally
from worker.core.parking import Parking
from worker.stream import Message

_GENERATION_BITS: Final = 40
"""Places of two topics would collide only if a topic held 2^40 records, a million million."""

_NONE: Final[Mapping[int, Moment]] = {}

_json = msgspec.json.Encoder().encode


def write_progress(progress: Checkpoint) -> bytes:
    """The checkpoint as `internal.progress` holds it."""
    return _json(progress)


def place_of(progress: Checkpoint, name: str, offset: int) -> int:
    """The place of a record in its input: see `Reading.place`."""
    return _place(progress.earlier, name, offset)


def offset_of(place: int) -> int:
    """The offset of the record at that place."""
    return place & ((1 << _GENERATION_BITS) - 1)


def _place(earlier: Mapping[str, int], name: str, offset: int) -> int:
    return (earlier.get(name, 0) << _GENERATION_BITS) + offset


class Reread(msgspec.Struct):
    """The held records of an earlier owner: read again, among records that are done."""

    first_read: dict[int, Moment]
    """When each record was first read, by ascending offset."""
    until: int
    """The first offset that has never been read."""


class Missed(NamedTuple):
    """The losses in its inputs that a task finds when it begins."""

    recreated: tuple[str, ...] = ()
    """The inputs whose topics were recreated: the task reads them from the start."""
    expired: Mapping[str, int] = {}
    """By entity, how many records disappeared before they were judged."""
    parked: Mapping[str, int] = {}
    """By entity, how many parked records disappeared together with their copies."""
    others: tuple[str, ...] = ()
    """Other recreated topics, as in `accepted.users`: their former content is unknown."""


class Reading:
    """The next offset of each input, and the records that a task reads for the second time."""

    def __init__(self) -> None:
        self.next: dict[str, int] = {}
        self.reached: dict[str, int] = {}
        """As `next`, but while held records are read again, the first offset that was never
        read."""
        self.topics: dict[str, str] = {}
        """The identity of each topic that the checkpoint names: inputs by name, and others."""
        self.earlier: dict[str, int] = {}
        """How often the topic of each input was recreated."""
        self.until: dict[str, int] = {}
        """The append time up to which all users, and all matches, are judged."""
        self._again: dict[str, Reread] = {}
        self._saved: object = None

    def restore(self, progress: Checkpoint, now: Moment) -> None:
        """Restore the position from the checkpoint."""
        self.next = dict(progress.next)
        self.topics = dict(progress.topics)
        self.earlier = dict(progress.earlier)
        for entity, held in progress.held.items():
            stamps = {at: when for when, offsets in held.items() for at in offsets}
            places = sorted(stamps)
            moments = restored([stamps[at] for at in places], now)
            again = dict(zip(places, moments, strict=True))
            self._again[entity] = Reread(again, self.next[entity])
            self.next[entity] = min(again)

    def begin(
        self, topics: Mapping[str, str], starts: Mapping[str, int], others: Mapping[str, str]
    ) -> Missed:
        """Compare with the current inputs: the identities of their topics and their start offsets.

        `others` has the identities of the other topics that the checkpoint of this task names. Call
        once, after `restore` if there is a checkpoint. A recreated topic is read from its start.
        Held records that no longer exist are given up.
        """
        recreated: list[str] = []
        expired: dict[str, int] = {}
        for name, identity in topics.items():
            start = starts[name]
            again = self._again.get(name, Reread({}, 0))
            if self._is_another(name, identity):
                recreated.append(name)
                self.earlier[name] = self.earlier.get(name, 0) + 1
                self._again.pop(name, None)
                gone = len(again.first_read) + start
                self.next[name] = start
            elif name not in self.next:
                gone = start
                self.next[name] = start
            else:
                there = {at: when for at, when in again.first_read.items() if at >= start}
                gone = len(again.first_read) - len(there)
                again.first_read = there
                if name in self._again:
                    self.next[name] = min(there, default=again.until)
            self.topics[name] = identity
            if gone and name in ENTITIES:
                expired[name] = gone
        unknown = [name for name in others if self._is_another(name, others[name])]
        self.topics |= others
        return Missed(tuple(recreated), expired, others=tuple(unknown))

    def _is_another(self, name: str, identity: str) -> bool:
        """Whether the topic is not the one read before. False if the broker has no identities."""
        before = self.topics.get(name)
        return bool(before and identity) and before != identity

    def place(self, name: str, offset: int) -> int:
        """The place of a record in its input. Unique across recreated topics, in reading order."""
        return _place(self.earlier, name, offset)

    def undone(self, entity: str, batch: Sequence[Message]) -> Sequence[Message]:
        """The batch without the records that are done."""
        reread = self._again.get(entity)
        if reread is None:
            return batch
        return [m for m in batch if m.offset >= reread.until or m.offset in reread.first_read]

    def first_read(self, entity: str) -> Mapping[int, Moment]:
        """By offset, when the records to be read again were first read."""
        reread = self._again.get(entity)
        return _NONE if reread is None else reread.first_read

    @property
    def left(self) -> int:
        """How many records are still to be read again."""
        return sum(len(reread.first_read) for reread in self._again.values())

    def save(self, parking: Parking, books: Books, tally: Tally, *, anyhow: bool) -> bytes | None:
        """The checkpoint to write; None if it is unchanged, unless `anyhow`.

        Enters `tally`, the outcomes of the decision, into the books.

        Passing a transaction marker in claims or grants alone is not saved: saving it would create
        another transaction.
        """
        self.reached = dict(self.next)
        judged = {entity: self.next.get(entity, 0) for entity in ENTITIES}
        held: dict[str, dict[int, list[int]]] = {}
        for entity, offset, first_read in parking.held():
            held.setdefault(entity, {}).setdefault(first_read, []).append(offset)
        for entity, reread in list(self._again.items()):
            place = self.next[entity]
            if place >= reread.until:
                del self._again[entity]
                continue
            judged[entity] = self.reached[entity] = reread.until
            reread.first_read = {at: t for at, t in reread.first_read.items() if at >= place}
            for offset, moment in reread.first_read.items():
                held.setdefault(entity, {}).setdefault(moment.wall, []).append(offset)
                judged[entity] = min(judged[entity], offset)
        for entity in ENTITIES:
            lowest = parking.lowest(entity)
            if lowest is not None:
                judged[entity] = min(judged[entity], max(-1, lowest - self.place(entity, 0)))
        waiting = {e: parking.count(e) + len(self.first_read(e)) for e in ENTITIES}
        books.enter(tally, {entity: count for entity, count in waiting.items() if count})
        read = {entity: self.reached.get(entity, 0) for entity in ENTITIES}
        saved = (read, judged, held, dict(books.incidents))
        if not anyhow and self._saved == saved:
            return None
        self._saved = saved
        oldest = parking.oldest()
        return write_progress(
            Checkpoint(
                self.reached,
                judged,
                self.topics,
                self.until,
                held,
                self.earlier,
                books.counts,
                books.incidents,
                books.worker,
                books.since,
                0 if oldest is None else oldest.wall,
                books.seen,
            )
        )
