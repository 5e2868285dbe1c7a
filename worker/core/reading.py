"""A task's position in its inputs, and the records before it that are not done."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

import msgspec

from schemas import ENTITIES
from worker.core.checkpoint import Checkpoint
from worker.core.moments import Moment, restored
from worker.stream import Message, OffsetRange

_GENERATION_BITS: Final = 40
"""Ordinals of two topics would collide only if a topic held 2^40 records, a million million."""
LAST_OFFSET: Final = (1 << _GENERATION_BITS) - 1
"""The highest offset of an input: the bits above it count recreated topics."""

_NONE: Final[Mapping[int, Moment]] = {}


def ordinal_of(checkpoint: Checkpoint, name: str, offset: int) -> int:
    """The ordinal of a record in its input: see `Reading.ordinal`."""
    return _ordinal(checkpoint.earlier, name, offset)


def offset_of(ordinal: int) -> int:
    """The offset of the record with that ordinal."""
    return ordinal & LAST_OFFSET


def _ordinal(earlier: Mapping[str, int], name: str, offset: int) -> int:
    return (earlier.get(name, 0) << _GENERATION_BITS) + offset


def generation_of(ordinal: int) -> int:
    """How often the topic of its input had been recreated or truncated before that record."""
    return ordinal >> _GENERATION_BITS


class Reread(msgspec.Struct):
    """The records that an earlier owner had in memory: read again, among records that are done."""

    first_read: dict[int, Moment]
    """When each record was first read, by ascending offset."""
    until: int
    """The first offset that has never been read."""


class Missed(NamedTuple):
    """The losses in its inputs that a task finds when it begins."""

    recreated: tuple[str, ...] = ()
    """The inputs whose topics were recreated: the task reads them from the start."""
    truncated: Mapping[str, int] = {}
    """By input, how many offsets that the task had read are gone from the end of the topic."""
    expired: Mapping[str, int] = {}
    """By entity, how many records disappeared before they were judged."""
    parked: Mapping[str, int] = {}
    """By entity, how many parked records disappeared together with their copies."""
    surplus: int = 0
    """How many copies of parked records belong to records that are judged."""
    reservations: int = 0
    """How many reservations are missing, or if negative, came back although they are released."""
    behind: int = 0
    """How many offsets the checkpoint is behind the last one, which is lost."""
    others: tuple[str, ...] = ()
    """Other recreated topics, as in `accepted.users`: their former content is unknown."""


class Reading:
    """The next offset of each input, and the records that a task reads for the second time."""

    def __init__(self) -> None:
        self.next: dict[str, int] = {}
        self.reached: dict[str, int] = {}
        """As `next`, but while records are read again, the first offset that was never read."""
        self.topics: dict[str, str] = {}
        """The identity of each topic that the checkpoint names: inputs by name, and others."""
        self.earlier: dict[str, int] = {}
        """How often the topic of each input was recreated or truncated."""
        self.arrived: dict[str, int] = {}
        """By input, the latest append time of the records read."""
        self.watermarks: dict[str, int] = {}
        """By entity (users, matches): see `Reached.watermarks`."""
        self._again: dict[str, Reread] = {}

    def restore(self, checkpoint: Checkpoint, now: Moment) -> None:
        """Restore the position from the checkpoint."""
        self.next = dict(checkpoint.next)
        self.topics = dict(checkpoint.topics)
        self.earlier = dict(checkpoint.earlier)
        self.arrived = dict(checkpoint.arrived)
        for entity, records in checkpoint.in_memory.items():
            stamps = {at: when for when, some in records.items() for at in some}
            offsets = sorted(stamps)
            moments = restored([stamps[at] for at in offsets], now)
            again = dict(zip(offsets, moments, strict=True))
            self._again[entity] = Reread(again, self.next[entity])
            self.next[entity] = min(again)

    def compare_topics(
        self, topics: Mapping[str, str], spans: Mapping[str, OffsetRange], others: Mapping[str, str]
    ) -> Missed:
        """Compare with the current inputs: the identities of their topics and their offsets.

        `spans` include open transactions; the span of a truncated topic ends at the truncation.
        `others` has the identities of the other topics that the checkpoint of this task names. Call
        once, after `restore` if there is a checkpoint. A recreated topic is read from its start. If
        a topic has lost its last records, reading goes on at its end; if it has lost the next ones
        of an entity, at its start. Records to be read again that no longer exist are given up.
        """
        recreated: list[str] = []
        truncated: dict[str, int] = {}
        expired: dict[str, int] = {}
        for name, identity in topics.items():
            start, end = spans[name].start, spans[name].end
            again = self._again.get(name, Reread({}, self.first_unread(name)))
            lost = again.until - end if identity else 0
            if self._is_another(name, identity) or (lost > 0 and not self.topics.get(name)):
                recreated.append(name)
                self.earlier[name] = self.earlier.get(name, 0) + 1
                self._again.pop(name, None)
                gone = len(again.first_read) + start
                self.next[name] = start
            elif name not in self.next:
                gone = start
                self.next[name] = start
            else:
                if lost > 0:  # the offsets of the lost records are given to others
                    truncated[name] = lost
                    self.earlier[name] = self.earlier.get(name, 0) + 1
                    self.next[name] = again.until = end
                unread = max(0, start - again.until) if name in ENTITIES else 0
                again.until += unread
                first_read = again.first_read
                there = {at: t for at, t in first_read.items() if start <= at < again.until}
                gone = len(first_read) - len(there) + unread
                again.first_read = there
                if name in self._again:
                    self.next[name] = min(there, default=again.until)
                else:
                    self.next[name] = again.until
            self.topics[name] = identity
            if gone and name in ENTITIES:
                expired[name] = gone
        unknown = [name for name in others if self._is_another(name, others[name])]
        self.topics |= others
        return Missed(tuple(recreated), truncated, expired, others=tuple(unknown))

    def behind(self, committed: Mapping[str, int]) -> int:
        """How many offsets were read beyond this position, by the group's offsets of the inputs.

        One transaction saves both, so the last checkpoint is never behind. Call after `restore`.
        Inputs that were recreated or truncated are passed over: their group offsets may be older.
        """
        return sum(
            max(0, offset - self.first_unread(name))
            for name, offset in committed.items()
            if name in ENTITIES and not self.earlier.get(name)
        )

    def first_unread(self, name: str) -> int:
        """The first offset of an input that was never read; 0 for an unknown input."""
        reread = self._again.get(name)
        return self.next.get(name, 0) if reread is None else reread.until

    def _is_another(self, name: str, identity: str) -> bool:
        """Whether the topic is not the one read before. False if the broker has no identities."""
        before = self.topics.get(name)
        return bool(before and identity) and before != identity

    def ordinal(self, name: str, offset: int) -> int:
        """The number of a record in its input: unique, and in order, over what topics have lost."""
        return _ordinal(self.earlier, name, offset)

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

    def move(
        self,
        positions: Mapping[str, int],
        watermarks: Mapping[str, int],
        batches: Mapping[str, Sequence[Message]],
    ) -> None:
        """Move to what follows a batch of each input; see `TaskBatch`."""
        self.next.update(positions)
        self.watermarks.update(watermarks)
        for name, batch in batches.items():
            # Not that of the last message: the clock of a new leader may be behind.
            latest = max((m.timestamp for m in batch if m.appended), default=0)
            if latest > self.arrived.get(name, 0):
                self.arrived[name] = latest

    def advance(self) -> None:
        """Forget the records to be read again that the position has passed: a round read them."""
        self.reached = dict(self.next)
        for entity, reread in list(self._again.items()):
            position = self.next[entity]
            if position >= reread.until:
                del self._again[entity]
                continue
            self.reached[entity] = reread.until
            reread.first_read = {at: t for at, t in reread.first_read.items() if at >= position}
