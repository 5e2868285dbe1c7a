"""Restores the parked records of a task at its take-over, from their copies in the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable, Iterator, Mapping
from functools import cached_property
from typing import Final, NamedTuple

import msgspec

from schemas import ENTITIES
from worker.core.addresses import Reservation
from worker.core.checkpoint import Checkpoint
from worker.core.decode import DecodeResult, Invalid, RecordDecoder, latest_moment
from worker.core.moments import Moment, restored
from worker.core.parked import Envelope, Parked
from worker.core.reading import Reading, generation_of, ordinal_of
from worker.core.references import unexpected

_MOST_GENERATIONS: Final = 2**19
"""Half as many as a checkpoint may count: see `internal`."""


class SavedState(msgspec.Struct, frozen=True, dict=True):
    """The state of a task in the log: checkpoint, copies of parked records, and reservations."""

    checkpoint: Checkpoint | None = None
    parked: tuple[Envelope, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    doubtful: bool = False
    """Whether some of the state is missing: `parked` may contain records that are judged."""
    replaced: Collection[str] = ()
    """The entities whose unknown copies are of records that their input has not: see `unknown`."""

    @cached_property
    def unknown(self) -> list[Envelope]:
        """The copies of records that are not read yet, as the checkpoint says; all without one.

        Without foreign ones, which may claim any ordinal, and would leave no room for others.

        One commit writes a copy and a checkpoint beyond its record. So later checkpoints have been
        lost: since this one if they are more than its `unneeded`.
        """
        checkpoint = self.checkpoint
        ends = dict.fromkeys(ENTITIES, 0)
        if checkpoint is not None:
            ends = {e: ordinal_of(checkpoint, e, checkpoint.next.get(e, 0)) for e in ENTITIES}
        return [
            copy
            for copy in self.parked
            if copy.ordinal >= ends[copy.entity]
            and generation_of(copy.ordinal) <= _MOST_GENERATIONS  # else it is foreign
        ]

    def earlier(self) -> dict[str, int]:
        """What the unknown copies say about `Reading.earlier`, by entity.

        The ordinals of records that are read from now on are beyond those of the copies, but for
        records that are the same.
        """
        earlier: dict[str, int] = {}
        for copy in self.unknown:
            generation = generation_of(copy.ordinal) + (copy.entity in self.replaced)
            earlier[copy.entity] = max(generation, earlier.get(copy.entity, 0))
        return earlier

    def behind(self) -> int:
        """How many offsets the checkpoint is behind at least; 0 if it accounts for all copies."""
        checkpoint, unknown = self.checkpoint, self.unknown
        if checkpoint is None or len(unknown) <= checkpoint.unneeded:
            return 0
        ends: dict[str, int] = {}
        for copy in unknown:
            ends[copy.entity] = max(copy.offset + 1, ends.get(copy.entity, 0))
        return sum(max(1, end - checkpoint.next.get(entity, 0)) for entity, end in ends.items())

    def persisted(self) -> Counter[str]:
        """By entity, how many parked records had a copy when the checkpoint was saved.

        A checkpoint without books proves one copy at most: that of the first parked record before
        `next`. Call only if there is a checkpoint.
        """
        assert self.checkpoint is not None
        if not self.checkpoint.has_books:
            return Counter(
                {e: 1 for e, at in self.checkpoint.judged.items() if self._is_persisted(e, at)}
            )
        persisted = Counter({e: count.parked for e, count in self.checkpoint.counts.items()})
        for entity, in_memory in self.checkpoint.in_memory.items():
            persisted[entity] -= sum(map(len, in_memory.values()))
        return persisted

    def _is_persisted(self, entity: str, offset: int) -> bool:
        assert self.checkpoint is not None
        in_memory = self.checkpoint.in_memory.get(entity, {}).values()
        is_read = 0 <= offset < self.checkpoint.next.get(entity, 0)
        return is_read and not any(offset in offsets for offsets in in_memory)


class Outdated(NamedTuple):
    """A parked record that is rejected when its copy is decoded again.

    Either the rules are newer than its parking, or the broker refuses its outcome, or decoding
    fails.
    """

    envelope: Envelope
    invalid: Invalid


class Restorer:
    """Decodes the copies of parked records again. `skew` is in seconds."""

    def __init__(
        self,
        decoders: Mapping[str, RecordDecoder],
        skew: float,
        refused: Container[tuple[str, int]],
    ) -> None:
        self._decoders = decoders
        self._skew = skew
        self._refused = refused

    def records(self, copies: Iterable[Envelope], now: Moment) -> Iterator[Parked | Outdated]:
        """The records of these copies, in parking order.

        Order is by ordinal within an entity, and otherwise by first reading.
        """
        by_entity: dict[str, list[Envelope]] = {}
        for envelope in sorted(copies, key=lambda e: e.ordinal):
            by_entity.setdefault(envelope.entity, []).append(envelope)
        pairs = [
            pair
            for parked in by_entity.values()
            for pair in zip(restored([e.first_read for e in parked], now), parked, strict=True)
        ]
        for first_read, envelope in sorted(pairs, key=lambda pair: pair[0].steady):
            yield self._record(envelope, first_read)

    def _record(self, envelope: Envelope, first_read: Moment) -> Parked | Outdated:
        entity, message = envelope.entity, envelope.message()
        latest = latest_moment(envelope.arrival, self._skew)
        outcome: DecodeResult
        try:
            outcome = self._decoders[entity].decode(message.value, message.key, latest)
            if (entity, envelope.offset) in self._refused:
                outcome = _unexpected()
        except Exception:  # noqa: BLE001 -- isolated, as where records are read
            outcome = _unexpected()
        if isinstance(outcome, Invalid):
            return Outdated(envelope, outcome)
        parked = Parked(entity, message, outcome, envelope.arrival, first_read, envelope.ordinal)
        parked.persisted = True
        parked.attempt = envelope.attempt
        return parked


def will_be_read(copy: Envelope, reading: Reading, starts: Mapping[str, int]) -> bool:
    """Whether the task reads the record of this copy from its input, for the first time or again.

    `starts` are the first offsets of the inputs. `reading` must have been compared with them.
    """
    entity = copy.entity
    first = max(reading.first_unread(entity), starts.get(entity, 0))
    at = copy.ordinal - reading.ordinal(entity, 0)
    return at >= first or at in reading.first_read(entity)


def _unexpected() -> Invalid:
    return Invalid(None, (unexpected(),), malformed=True)
