"""Waiting until everything that had entered the inputs is judged, by whichever worker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final

import msgspec
import structlog

from schemas import ENTITIES
from worker.brokers.contract import Broker, Partition, Reader, Span
from worker.core.barrier import Reached
from worker.errors import MissingTopic
from worker.sink.awaited import Awaited
from worker.topics import Names

Advance = Callable[[int, int], None]
"""Told of progress: done, of total."""

_BATCH: Final = 1_000
_POLL_SECONDS: Final = 0.25
_TAIL: Final = 200
"""Offsets before the end in which a task's latest progress is looked for first."""

_log = structlog.get_logger(__name__)
_progress = msgspec.json.Decoder(Reached)


class Judged(msgspec.Struct, frozen=True):
    """How far the inputs were judged when the waiting ended; `pending` is empty if far enough."""

    judged: Mapping[Partition, int]
    pending: Mapping[Partition, int]
    """How many offsets are not judged, of those inputs that are not judged to the noted ends."""


async def wait_for_verdicts(
    broker: Broker, names: Names, patience: float, advance: Advance
) -> Judged:
    """Wait until all is judged that is in the inputs now, open transactions included.

    Gives up after `patience` seconds in which nobody has made progress on it. Raises
    `MissingTopic`, `BrokerUnavailable`.
    """
    inputs = [names.inputs(entity) for entity in ENTITIES]
    topics = await broker.topics([*inputs, names.progress])
    for name in (*inputs, names.progress):
        if name not in topics:
            raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
    places = [Partition(n, q) for n in inputs for q in range(topics[n].partitions)]
    awaited = Awaited(await broker.spans(places, uncommitted=True), names)
    tasks = [Partition(names.progress, q) for q in range(topics[names.progress].partitions)]
    reader = broker.reader()
    try:
        await _read_latest(broker, reader, tasks, awaited)
        await _follow(reader, awaited, patience, advance)
    finally:
        await reader.close()
    return Judged(awaited.judged(), awaited.pending())


async def _read_latest(
    broker: Broker, reader: Reader, tasks: list[Partition], awaited: Awaited
) -> None:
    """Read what each task saved last, from near the end: the topic may be long, its rest is old."""
    spans = await broker.spans(tasks)
    near = {task: max(span.start, span.end - _TAIL) for task, span in spans.items()}
    found = await _read_from(near, spans, reader, awaited)
    rest = [t for t in tasks if t.number not in found and near[t] > spans[t].start]
    if rest:
        positions = {task: reader.position(task) for task in tasks}
        positions |= {task: spans[task].start for task in rest}
        await _read_from(positions, spans, reader, awaited)


async def _read_from(
    positions: Mapping[Partition, int],
    spans: Mapping[Partition, Span],
    reader: Reader,
    awaited: Awaited,
) -> set[int]:
    """Read from there to the ends; the tasks of which anything was found."""
    reader.assign(positions)
    found: set[int] = set()
    while any(reader.position(task) < span.end for task, span in spans.items()):
        found |= await _take(reader, awaited)
    return found


async def _follow(reader: Reader, awaited: Awaited, patience: float, advance: Advance) -> None:
    clock = asyncio.get_running_loop().time
    moved = clock()
    best, total = awaited.steps()
    while pending := awaited.pending():
        advance(best, total)
        await _take(reader, awaited)
        done, _ = awaited.steps()
        if done > best:
            best, moved = done, clock()
        elif clock() - moved >= patience:
            blocking = [f"{place.topic}/{place.number}" for place in list(pending)[:10]]
            _log.warning("export_incomplete", pending=sum(pending.values()), by=blocking)
            return


async def _take(reader: Reader, awaited: Awaited) -> set[int]:
    """Note what has been saved meanwhile; the tasks that did."""
    messages = await reader.read(_BATCH, _POLL_SECONDS)
    found = set()
    for message in messages:
        if message.value is not None:
            awaited.note(message.partition, _progress.decode(message.value))
            found.add(message.partition)
    return found
