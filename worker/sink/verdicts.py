"""Waiting until everything that had entered the inputs is judged, by whichever worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import structlog

from schemas import ENTITIES
from worker.brokers.contract import Broker, Reader
from worker.core.topics import Names
from worker.errors import BrokerUnavailable, MissingTopic
from worker.sink.awaited import Awaited, Saved, read_saved
from worker.stream import Message, OffsetRange, Partition

Advance = Callable[[int, int], None]
"""Told of progress: done, of total."""
Unreadable = Callable[[Partition, int], None]
"""Told of a message that is garbage, and skipped."""

_BATCH: Final = 1_000
_POLL_SECONDS: Final = 0.25
_PATIENCE: Final = 20.0
_TAIL: Final = 200
"""Offsets before the end in which a task's latest progress is looked for first."""

_log = structlog.get_logger(__name__)


class Judged(msgspec.Struct, frozen=True):
    """How far the inputs were judged when the waiting ended; `pending` is empty if far enough."""

    judged: Mapping[Partition, int]
    pending: Mapping[Partition, int]
    """How many offsets are not judged, of those inputs that are not judged to the noted ends."""


async def wait_for_verdicts(
    broker: Broker, names: Names, patience: float, unreadable: Unreadable, advance: Advance
) -> Judged:
    """Wait until all is judged that is in the inputs now, open transactions included.

    Gives up after `patience` seconds in which nobody has made progress on it. Raises
    `MissingTopic`, `BrokerUnavailable`.
    """
    inputs = [names.inputs(entity) for entity in ENTITIES]
    # First of all: progress in a topic that is created anew from now on is not taken for its own.
    identities = await broker.identities(inputs)
    topics = await broker.topics([*inputs, names.progress])
    for name in (*inputs, names.progress):
        if name not in topics:
            raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
    places = [Partition(n, q) for n in inputs for q in range(topics[n].partitions)]
    spans = await broker.spans(places, uncommitted=True)
    awaited = Awaited(spans, names, identities)
    tasks = [Partition(names.progress, q) for q in range(topics[names.progress].partitions)]
    reader = broker.reader()
    latest = _Latest(broker, reader, awaited, spans, unreadable)
    try:
        await _read_latest(broker, latest, tasks)
        await _follow(latest, awaited, patience, advance)
    finally:
        await reader.close()
    return Judged(awaited.judged(), awaited.pending())


class _Latest:
    """Reads what tasks save, and notes it."""

    def __init__(
        self,
        broker: Broker,
        reader: Reader,
        awaited: Awaited,
        spans: Mapping[Partition, OffsetRange],
        unreadable: Unreadable,
    ) -> None:
        self.reader = reader
        self._broker = broker
        self._awaited = awaited
        self._ends = {place: span.end for place, span in spans.items()}
        self._unreadable = unreadable

    async def take(self) -> set[int]:
        """Note what has been saved meanwhile; the tasks that did."""
        messages = await self.reader.read(_BATCH, _POLL_SECONDS)
        read = [(message, read_saved(message)) for message in messages if message.value is not None]
        if any(saved is not None and self._is_beyond(m, saved) for m, saved in read):
            spans = await self._broker.spans(self._ends, uncommitted=True)  # there may be more now
            self._ends = {place: span.end for place, span in spans.items()}
        found = set()
        for message, saved in read:
            if saved is None or self._is_beyond(message, saved):
                self._unreadable(Partition(message.topic, message.partition), message.offset)
                continue
            self._awaited.note(message.partition, saved)
            found.add(message.partition)
        return found

    def _is_beyond(self, message: Message, saved: Saved) -> bool:
        return self._awaited.is_beyond(message.partition, saved, self._ends)

    async def take_all(
        self, positions: Mapping[Partition, int], spans: Mapping[Partition, OffsetRange]
    ) -> set[int]:
        """Read from there to the ends; the tasks of which anything was found.

        Raises BrokerUnavailable when nothing has come for 20 s.
        """
        clock = asyncio.get_running_loop().time
        self.reader.assign(positions)
        found: set[int] = set()
        before, moved = dict(positions), clock()
        while left := [p for p, span in spans.items() if self.reader.position(p) < span.end]:
            found |= await self.take()
            now = {place: self.reader.position(place) for place in spans}
            if now != before:
                before, moved = now, clock()
            elif clock() - moved >= _PATIENCE:
                raise BrokerUnavailable(
                    f"reading {left[0].topic}/{left[0].number} makes no progress: nothing has come "
                    f"for {_PATIENCE:.0f} s"
                )
        return found


async def _read_latest(broker: Broker, latest: _Latest, tasks: list[Partition]) -> None:
    """Read what each task saved last, from near the end: the topic may be long, its rest is old."""
    spans = await broker.spans(tasks)
    near = {task: max(span.start, span.end - _TAIL) for task, span in spans.items()}
    found = await latest.take_all(near, spans)
    rest = [t for t in tasks if t.number not in found and near[t] > spans[t].start]
    if rest:
        positions = {task: latest.reader.position(task) for task in tasks}
        positions |= {task: spans[task].start for task in rest}
        await latest.take_all(positions, spans)


async def _follow(latest: _Latest, awaited: Awaited, patience: float, advance: Advance) -> None:
    clock = asyncio.get_running_loop().time
    moved = clock()
    best, total = awaited.steps()
    while pending := awaited.pending():
        advance(best, total)
        await latest.take()
        done, _ = awaited.steps()
        if done > best:
            best, moved = done, clock()
        elif clock() - moved >= patience:
            blocking = [f"{place.topic}/{place.number}" for place in list(pending)[:10]]
            _log.warning("export_incomplete", pending=sum(pending.values()), by=blocking)
            return
