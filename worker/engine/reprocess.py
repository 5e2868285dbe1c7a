"""A deliberate reset: records that have been judged are read and judged again."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from worker.brokers.contract import Broker, Outgoing, Partition
from worker.core.barrier import Progress
from worker.core.outbox import write_progress
from worker.engine.tables import read_table
from worker.engine.tasks import GROUP, committer_name
from worker.topics import Names


async def reprocess(
    broker: Broker, names: Names, entity: str, offsets: Mapping[int, int]
) -> dict[int, int]:
    """Have each of these partitions of an entity's input read again from its offset.

    Only backwards: an offset that has not been read yet changes nothing. Records parked from there
    on are unparked, since they will be read again. Workers may run: each task is taken from its
    worker for the moment, which takes it up again from the new offset. Returns how many offsets
    each partition goes back. Everything judged again has a second outcome.
    """
    back = {}
    for number, offset in offsets.items():
        committer = await broker.committer(committer_name(names, number), f"{names.prefix}-{GROUP}")
        try:
            back[number], messages = await _reset(broker, names, entity, number, offset)
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
    value = write_progress(Progress(progress.next | {entity: offset}, judged))
    messages = [Outgoing(names.progress, key, value, partition=number)]
    for parked in await read_table(broker, Partition(names.parked, number)):
        name, _, place = parked.decode().partition("/")
        if name == entity and int(place.rpartition("/")[2]) >= offset:
            messages.append(Outgoing(names.parked, parked, None, partition=number))
    return read - offset, messages
