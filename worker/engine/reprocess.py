"""A deliberate reset: records that have been judged are read and judged again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Final

import msgspec

from worker.brokers.contract import Broker, Outgoing, Partition
from worker.core.barrier import Progress
from worker.core.reading import place_of, write_progress
from worker.engine.tables import read_table
from worker.engine.tasks import GROUP, committer_name
from worker.errors import Fenced
from worker.topics import Names

_PAUSES: Final = (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0)


async def reprocess(
    broker: Broker, names: Names, entity: str, offsets: Mapping[int, int]
) -> dict[int, int]:
    """Have each of these partitions of an entity's input read again from its offset.

    Only backwards: an offset that has not been read yet changes nothing. Records parked from there
    on are no longer, since they will be read again. Workers may run: each task is taken from its
    worker for the moment, which takes it up again from the new offset. Returns how many offsets
    each partition goes back. Everything judged again has a second outcome.
    """
    return {
        number: await _with_patience(broker, names, entity, number, offset)
        for number, offset in offsets.items()
    }


async def _with_patience(
    broker: Broker, names: Names, entity: str, number: int, offset: int
) -> int:
    """Reset one task. Its worker may take it back while its state is being read: then once more.

    Raises Fenced if that never ends.
    """
    for pause in _PAUSES:
        try:
            return await _take_and_reset(broker, names, entity, number, offset)
        except Fenced:
            await asyncio.sleep(pause)
    return await _take_and_reset(broker, names, entity, number, offset)


async def _take_and_reset(
    broker: Broker, names: Names, entity: str, number: int, offset: int
) -> int:
    committer = await broker.committer(committer_name(names, number), f"{names.prefix}-{GROUP}")
    try:
        back, messages = await _reset(broker, names, entity, number, offset)
        if messages:
            await committer.commit(messages, {Partition(names.inputs(entity), number): offset})
    finally:
        await committer.close()
    return back


async def _reset(
    broker: Broker, names: Names, entity: str, number: int, offset: int
) -> tuple[int, list[Outgoing]]:
    """How far a task goes back, and the messages that say so."""
    key = str(number).encode()
    saved = (await read_table(broker, Partition(names.progress, number))).get(key)
    if saved is None:
        return 0, []
    progress = msgspec.json.decode(saved, type=Progress)
    read = progress.next.get(entity, 0)
    if offset >= read:
        return 0, []
    judged = {
        name: min(value, offset) if name == entity else value
        for name, value in progress.judged.items()
    }
    held = dict(progress.held)
    for first_read, offsets in held.pop(entity, {}).items():
        if before := [place for place in offsets if place < offset]:
            held.setdefault(entity, {})[first_read] = before
    value = write_progress(
        msgspec.structs.replace(
            progress, next=progress.next | {entity: offset}, judged=judged, held=held
        )
    )
    first = place_of(progress, entity, offset)
    messages = [Outgoing(names.progress, key, value, partition=number)]
    for parked in await read_table(broker, Partition(names.parked, number)):
        name, _, place = parked.decode().partition("/")
        if name == entity and int(place.rpartition("/")[2]) >= first:
            messages.append(Outgoing(names.parked, parked, None, partition=number))
    return read - offset, messages
