"""Waits until all records that are in the inputs at the start are judged, by any worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import structlog

from schemas import ENTITIES
from worker.brokers.contract import Broker, Reader
from worker.core.topics import Names
from worker.errors import BrokerUnavailable, DamagedLog, MissingTopic
from worker.sink.awaited import Awaited, SavedPosition, read_saved_position
from worker.stream import Message, OffsetRange, Partition

Advance = Callable[[int, int], None]
"""Called with progress: done, total."""
Unreadable = Callable[[Partition, int], None]
"""Called for each garbage message, which is skipped."""

_BATCH: Final = 1_000
_POLL_SECONDS: Final = 0.25
_PATIENCE: Final = 20.0
_TAIL: Final = 200
"""How many offsets before the end to search first for a task's latest checkpoint."""

_log = structlog.get_logger(__name__)


class Judged(msgspec.Struct, frozen=True):
    """How far the inputs were judged when the wait ended; `pending` is empty if far enough."""

    judged: Mapping[Partition, int]
    pending: Mapping[Partition, int]
    """For each input not judged to its noted end, the number of offsets left."""


async def wait_until_judged(
    broker: Broker, names: Names, patience: float, unreadable: Unreadable, advance: Advance
) -> Judged:
    """Wait until all records now in the inputs are judged, open transactions included.

    Gives up after `patience` seconds in which no worker makes progress on them; `pending` then
    tells what is left. Raises `MissingTopic`, `BrokerUnavailable`, and `DamagedLog` if damage hides
    what tasks have judged.
    """
    inputs = [names.input(entity) for entity in ENTITIES]
    # Identities come first: a checkpoint for a topic recreated after this must not count.
    identities = await broker.identities(inputs)
    topics = await broker.topics([*inputs, names.progress])
    for name in (*inputs, names.progress):
        if name not in topics:
            raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
    partitions = [Partition(n, q) for n in inputs for q in range(topics[n].partitions)]
    spans = await broker.spans(partitions, uncommitted=True)
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
    """Reads the tasks' checkpoints, and notes them in `Awaited`."""

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
        self._ends = {partition: span.end for partition, span in spans.items()}
        self._unreadable = unreadable

    async def take(self) -> set[int]:
        """Note the new checkpoints; return the tasks that saved them."""
        messages = await self.reader.read(_BATCH, _POLL_SECONDS)
        read = [
            (message, read_saved_position(message))
            for message in messages
            if message.value is not None
        ]
        if any(saved is not None and self._is_beyond(m, saved) for m, saved in read):
            spans = await self._broker.spans(self._ends, uncommitted=True)  # they may have grown
            self._ends = {partition: span.end for partition, span in spans.items()}
        found = set()
        for message, saved in read:
            if saved is None:
                self._unreadable(Partition(message.topic, message.partition), message.offset)
                continue
            if not self._is_beyond(message, saved):
                self._awaited.note(message.partition, saved)
            found.add(message.partition)
        return found

    def _is_beyond(self, message: Message, saved: SavedPosition) -> bool:
        return self._awaited.is_beyond(message.partition, saved, self._ends)

    async def take_all(
        self, positions: Mapping[Partition, int], spans: Mapping[Partition, OffsetRange]
    ) -> set[int]:
        """Read from `positions` to the ends; return the tasks with a checkpoint in between.

        Raises DamagedLog, and BrokerUnavailable after 20 s without progress.
        """
        clock = asyncio.get_running_loop().time
        self.reader.assign(positions)
        found: set[int] = set()
        before, moved = dict(positions), clock()
        while left := [p for p, span in spans.items() if self.reader.position(p) < span.end]:
            found |= await self.take()
            damaged = self.reader.damaged()
            if line := next((damaged[p] for p in left if p in damaged), None):
                raise DamagedLog(line)
            now = {partition: self.reader.position(partition) for partition in spans}
            if now != before:
                before, moved = now, clock()
            elif clock() - moved >= _PATIENCE:
                raise BrokerUnavailable(
                    f"reading {left[0].topic}/{left[0].number} makes no progress: nothing has come "
                    f"for {_PATIENCE:.0f} s"
                )
        return found


async def _read_latest(broker: Broker, latest: _Latest, tasks: list[Partition]) -> None:
    """Read each task's latest checkpoint: near the end first, since the topic may be long."""
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
            blocking = [f"{partition.topic}/{partition.number}" for partition in list(pending)[:10]]
            _log.warning("export_incomplete", pending=sum(pending.values()), by=blocking)
            return
