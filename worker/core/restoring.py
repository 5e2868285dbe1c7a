"""Restores the parked records of a task at its take-over, from their copies in the log."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterator, Mapping
from typing import NamedTuple

import msgspec

from worker.core.addresses import Reservation
from worker.core.checkpoint import Checkpoint
from worker.core.decode import DecodeResult, Invalid, RecordDecoder, latest_moment
from worker.core.moments import Moment, restored
from worker.core.parked import Envelope, Parked
from worker.core.reading import Reading
from worker.core.references import unexpected


class SavedState(msgspec.Struct, frozen=True):
    """The state of a task in the log: checkpoint, parked records and reservations."""

    checkpoint: Checkpoint | None = None
    parked: tuple[Envelope, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    doubtful: bool = False
    """Whether some of the state is missing: `parked` may contain records that are judged."""

    def persisted(self) -> Counter[str]:
        """By entity, how many parked records had a copy when the checkpoint was saved.

        A checkpoint without books proves one copy at most: that of the first parked record before
        `next`.
        """
        if self.checkpoint is None:
            return Counter()
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

    def records(
        self, saved: SavedState, reading: Reading, now: Moment
    ) -> Iterator[Parked | Outdated]:
        """Every record that the task has read and will not read again, in parking order.

        Order is by ordinal within an entity, and otherwise by first reading. `reading` must be
        restored already.
        """
        by_entity: dict[str, list[Envelope]] = {}
        for envelope in sorted(_read_before(saved, reading), key=lambda e: e.ordinal):
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


def _read_before(saved: SavedState, reading: Reading) -> Iterator[Envelope]:
    ends = {} if saved.checkpoint is None else saved.checkpoint.next
    for envelope in saved.parked:
        entity, ordinal = envelope.entity, envelope.ordinal
        again = ordinal - reading.ordinal(entity, 0) in reading.first_read(entity)
        if ordinal < reading.ordinal(entity, ends.get(entity, 0)) and not again:
            yield envelope


def _unexpected() -> Invalid:
    return Invalid(None, (unexpected(),), malformed=True)
