"""How far a task has read its inputs, and what of it is not done: its progress."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.brokers.contract import Message
from worker.core.barrier import Progress
from worker.core.moments import Moment, restored
from worker.core.parking import Parking

_NONE: Final[Mapping[int, Moment]] = {}

_read_progress = msgspec.json.Decoder(Progress).decode
_json = msgspec.json.Encoder().encode


def write_progress(progress: Progress) -> bytes:
    """Progress as its topic holds it."""
    return _json(progress)


class Reread(msgspec.Struct):
    """The held records of an earlier run: to be read again among others that are done."""

    first_read: dict[int, Moment]
    """By offset, in growing order."""
    until: int
    """Where those that have not been read at all begin."""


class Reading:
    """What a task reads next of each input, and which records it reads for the second time."""

    def __init__(self) -> None:
        self.next: dict[str, int] = {}
        self.reached: dict[str, int] = {}
        """As `next`, but while held records are read again where what has not been read begins."""
        self._again: dict[str, Reread] = {}
        self._saved: object = None

    def restore(self, saved: bytes, now: Moment) -> None:
        """Take up where the log says the task stands."""
        progress = _read_progress(saved)
        self.next = dict(progress.next)
        for entity, held in progress.held.items():
            stamps = {at: when for when, offsets in held.items() for at in offsets}
            places = sorted(stamps)
            moments = restored([stamps[at] for at in places], now)
            again = dict(zip(places, moments, strict=True))
            self._again[entity] = Reread(again, self.next[entity])
            self.next[entity] = min(again)

    def expired(self, entity: str, start: int) -> int:
        """Its input begins there. How many held records are gone; reading goes on at the others.

        Call after `restore`.
        """
        reread = self._again.get(entity)
        if reread is None:
            return 0
        there = {at: when for at, when in reread.first_read.items() if at >= start}
        gone = len(reread.first_read) - len(there)
        reread.first_read = there
        self.next[entity] = min(there, default=reread.until)
        return gone

    def undone(self, entity: str, batch: Sequence[Message]) -> Sequence[Message]:
        """A batch without the records that are done."""
        reread = self._again.get(entity)
        if reread is None:
            return batch
        return [m for m in batch if m.offset >= reread.until or m.offset in reread.first_read]

    def first_read(self, entity: str) -> Mapping[int, Moment]:
        """When the records that are to be read again were first read, by offset."""
        reread = self._again.get(entity)
        return _NONE if reread is None else reread.first_read

    @property
    def left(self) -> int:
        """How many records are still to be read again."""
        return sum(len(reread.first_read) for reread in self._again.values())

    def save(self, parking: Parking, *, anyhow: bool) -> bytes | None:
        """The progress, to be written; None where it has not changed, unless `anyhow`.

        That the end of a transaction lies behind us in claims or grants is no news of its own:
        written down, it would make a transaction for each transaction.
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
                judged[entity] = min(judged[entity], lowest)
        read = {entity: self.reached.get(entity, 0) for entity in ENTITIES}
        if not anyhow and self._saved == (read, judged, held):
            return None
        self._saved = (read, judged, held)
        return write_progress(Progress(self.reached, judged, held))
