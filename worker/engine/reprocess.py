"""Deliberate reset: records that are already judged are read and judged again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Final, NamedTuple

import msgspec

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.brokers.tables import read_checked
from worker.core.checkpoint import Checkpoint, Counts, write_checkpoint
from worker.core.internal import read_parked
from worker.core.ownership import owner_record, owner_tombstone
from worker.core.reading import ordinal_of
from worker.core.topics import TASK_INPUTS, Names
from worker.engine.saved import read_progress_table
from worker.engine.session import Session
from worker.engine.takeover import fence_earlier
from worker.errors import BrokerUnavailable, BuddyError, Fenced, NobodyWorks
from worker.index.freshness import is_another
from worker.stream import Partition, ProducerRecord

_PAUSES: Final = (0.1, 0.2, 0.4, 0.8, 1.0, 1.0, 2.0, 2.0, 3.0, 3.0)


async def reprocess(
    broker: Broker, names: Names, entity: str, offsets: Mapping[int, int]
) -> dict[int, int]:
    """Reset partitions of an entity's input to earlier offsets.

    Returns how many offsets each partition moves back: 0 if the given offset is not read yet.
    Records parked at or after the offset are removed, since they are read again. Every record
    that is judged again gets a second outcome. Workers may run: this call takes the tasks over,
    and the workers resume them from the new offsets.

    If a task has checkpoints but none is readable, all its inputs restart from their start
    offsets. The result then counts the offsets of all inputs. Raises Fenced if workers keep
    taking the tasks back, NobodyWorks if no worker has found out yet that an input has lost its
    last records, and BrokerUnavailable.
    """
    for pause in _PAUSES:
        try:
            return await _take_and_reset(broker, names, entity, offsets)
        except Fenced:
            await asyncio.sleep(pause)
    return await _take_and_reset(broker, names, entity, offsets)


async def _take_and_reset(
    broker: Broker, names: Names, entity: str, offsets: Mapping[int, int]
) -> dict[int, int]:
    session = Session(broker, names)
    await session.open()
    try:
        owner = session.owner
        said = [owner_record(names, number, owner) for number in offsets]
        coordinates = dict(zip(offsets, await session.commit(said, {}), strict=True))
        messages: list[ProducerRecord] = []
        back = {}
        reset_to: dict[Partition, int] = {}
        for number, offset in offsets.items():
            # A worker does not release a task that is assigned to it, so fence it at once.
            _, at = coordinates[number]
            earlier = await fence_earlier(broker, names, number, owner, at, seconds=0)
            back[number], reset, positions = await _reset(broker, names, entity, number, offset)
            messages += reset
            reset_to |= positions
            messages += [owner_tombstone(names, number, one) for one in earlier.owners]
        try:
            await session.commit(messages, reset_to)
        except BrokerUnavailable as error:
            raise BrokerUnavailable(
                f"{error}; the records of {names.input(entity)} may be judged again all the same:"
                " before another attempt, see how many are to be read in 'buddy status'"
            ) from error
        # In a transaction of its own: the next owner trusts a release even when uncommitted. The
        # reset is committed: if a worker has fenced this session already, nothing is left to
        # release, and another attempt would reset the tasks a second time.
        with suppress(BuddyError):
            await session.commit([owner_tombstone(names, number, owner) for number in offsets], {})
    finally:
        await session.close()
    return back


async def _reset(
    broker: Broker, names: Names, entity: str, number: int, offset: int
) -> tuple[int, list[ProducerRecord], dict[Partition, int]]:
    """The number of offsets that a task moves back, the messages and positions that reset it."""
    key = str(number).encode()
    table = await read_progress_table(broker, names, number)
    if key in table.lost:
        return await _begin_anew(broker, names, number)
    checkpoint = table.rows.get(key)
    if checkpoint is None:
        return 0, [], {}
    topic = names.input(entity)
    identity = (await broker.identities([topic])).get(topic)
    read = checkpoint.next.get(entity, 0)
    # A re-created topic is read from its start anyway; parked records belong to the old one.
    if offset >= read or is_another(checkpoint.topics.get(entity), identity):
        return 0, [], {}
    place = Partition(topic, number)
    end = (await broker.spans([place], uncommitted=True))[place].end
    if identity and read > end:
        # A take-over finds out what is left and what is new; behind a reset it could not.
        raise NobodyWorks(
            f"{topic}/{number} ends at {end} and was read up to {read}: it has lost its last"
            " records. Start a worker, which goes on behind what is left, and repeat the command"
        )
    judged = {
        name: min(value, offset) if name == entity else value
        for name, value in checkpoint.judged.items()
    }
    in_memory = dict(checkpoint.in_memory)
    for first_read, offsets in in_memory.pop(entity, {}).items():
        if before := [at for at in offsets if at < offset]:
            in_memory.setdefault(entity, {})[first_read] = before
    first = ordinal_of(checkpoint, entity, offset)
    parked = [p for p in await _parked(broker, names, number) if p.entity == entity]
    again = [p for p in parked if p.ordinal >= first]
    left = len(parked) - len(again) + sum(map(len, in_memory.get(entity, {}).values()))
    booked = checkpoint.counts.get(entity, Counts())
    # These have no outcome yet: count their next read as their first.
    unread = max(0, booked.parked - left)
    counted = msgspec.structs.replace(booked, read=max(0, booked.read - unread), parked=left)
    value = write_checkpoint(
        msgspec.structs.replace(
            checkpoint,
            next=checkpoint.next | {entity: offset},
            judged=judged,
            in_memory=in_memory,
            counts=checkpoint.counts | {entity: counted},
        )
    )
    messages = [ProducerRecord(names.progress, key, value, partition=number)]
    messages += [ProducerRecord(names.parked, gone.key, None, partition=number) for gone in again]
    return read - offset, messages, {place: offset}


async def _begin_anew(
    broker: Broker, names: Names, number: int
) -> tuple[int, list[ProducerRecord], dict[Partition, int]]:
    """As `_reset`, for a task without a readable checkpoint."""
    inputs = {name: Partition(names.input(name), number) for name in TASK_INPUTS}
    spans = await broker.spans(inputs.values())
    starts = {name: spans[partition].start for name, partition in inputs.items()}
    checkpoint = Checkpoint(starts, {entity: starts[entity] for entity in ENTITIES})
    key = str(number).encode()
    messages = [ProducerRecord(names.progress, key, write_checkpoint(checkpoint), partition=number)]
    messages += [
        ProducerRecord(names.parked, parked.key, None, partition=number)
        for parked in await _parked(broker, names, number)
    ]
    back = sum(span.end - span.start for span in spans.values())
    return back, messages, {inputs[name]: start for name, start in starts.items()}


class _Parked(NamedTuple):
    key: bytes
    entity: str
    ordinal: int


async def _parked(broker: Broker, names: Names, number: int) -> list[_Parked]:
    """The persisted parked records of a task, with their ordinals."""

    def read(key: bytes, value: bytes) -> _Parked | None:
        envelope = read_parked(key, value, number, names)
        return None if envelope is None else _Parked(key, envelope.entity, envelope.ordinal)

    return list((await read_checked(broker, Partition(names.parked, number), read)).rows.values())
