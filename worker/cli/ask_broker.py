"""Asks the broker what `buddy status` reports. `worker.status` evaluates the answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.cli.settings import Settings
from worker.core.topics import Names
from worker.engine.latest import read_last
from worker.errors import BrokerUnavailable
from worker.status.broker_answers import (
    BrokerAnswers,
    TaskCheckpoint,
    latest_checkpoint,
    with_earlier,
)
from worker.status.strangers import stranger_in
from worker.status.trouble import undecided
from worker.stream import GroupMember, Message, OffsetRange, Partition

_NEAR: Final = 20
"""Offsets to read at the end of a task's checkpoint partition. The newest checkpoint is there,
unless other programs write to the topic."""

_FAR: Final = 20_000
"""Offsets up to which earlier checkpoints are searched, back from the end."""

_OPEN_MS: Final = 10_000
"""A transaction is open for long after this time: longer than any of a worker."""

_ENDS_SECONDS: Final = 0.5
"""How long a transaction that seems to be open for long has to end."""

_NEXT_SECONDS: Final = 2.0
"""Seconds to wait for the next messages of inputs that may be stalled."""


async def broker_answers(broker: Broker, settings: Settings, tasks: int) -> BrokerAnswers:
    """The answers for all tasks. Raises BrokerUnavailable if the broker cannot be asked."""
    names = Names(settings.prefix)
    topics = [names.input(entity) for entity in ENTITIES]
    inputs = [Partition(topic, number) for topic in topics for number in range(tasks)]
    group = f"{names.prefix}-worker"
    # Before the checkpoints, which a transaction commits with it: see `without_progress`.
    committed = await broker.committed(group, inputs)
    (
        (checkpoints, (spans, ends)),
        (identities, workers, sinks, skipped),
    ) = await asyncio.gather(
        asyncio.gather(
            latest_checkpoints(broker, names, tasks),
            _spans_and_ends(broker, inputs),
        ),
        asyncio.gather(
            broker.identities(topics),
            broker.members(group),
            _members_if_allowed(broker, f"{names.prefix}-sink"),
            broker.skipped(),
        ),
    )
    return BrokerAnswers(
        names=names,
        at=time.time_ns() // 1_000_000,
        tasks=checkpoints,
        spans=spans,
        ends=ends,
        group_offsets=committed,
        identities=identities,
        workers=[member for member in workers if member.ours],
        sinks=None if sinks is None else [member for member in sinks if member.ours],
        strangers={
            "worker": stranger_in(group, workers),
            "sink": stranger_in(f"{names.prefix}-sink", sinks or ()),
        },
        exact=settings.broker.startswith("embedded:"),
        skipped=skipped,
        grace_ms=int(settings.grace_seconds * 1000),
    )


async def _spans_and_ends(
    broker: Broker, partitions: Sequence[Partition]
) -> tuple[Mapping[Partition, OffsetRange], dict[Partition, int]]:
    """How far partitions can be read, and their ends with open transactions.

    The ends come first: what is appended between the two requests is not taken for blocked.
    """
    latest = await broker.spans(partitions, uncommitted=True)
    spans = await broker.spans(partitions)
    return spans, {partition: span.end for partition, span in latest.items()}


async def latest_checkpoints(broker: Broker, names: Names, tasks: int) -> dict[int, TaskCheckpoint]:
    """The newest checkpoint of each task. A whole partition is read only if its end holds none."""
    partitions = [Partition(names.progress, number) for number in range(tasks)]
    found, stuck = await read_last(broker, partitions, _NEAR)
    latest = {p.number: latest_checkpoint(messages) for p, messages in found.items()}
    rest = [p for p in partitions if latest[p.number].committed is None and p not in stuck]
    if rest:
        found, more = await read_last(broker, rest, 2**62)
        latest |= {p.number: latest_checkpoint(messages) for p, messages in found.items()}
        stuck += more
    for partition in {*stuck, *await _behind_open_transactions(broker, partitions)}:
        task = latest[partition.number]
        latest[partition.number] = msgspec.structs.replace(task, complete=False)
    return latest


async def _behind_open_transactions(
    broker: Broker, partitions: Sequence[Partition]
) -> list[Partition]:
    """The partitions whose last messages are behind a transaction that stays open.

    Those of workers end within a moment. How long one has been open, its first message tells.
    """
    spans, ends = await _spans_and_ends(broker, partitions)
    behind = {p: span.end for p, span in spans.items() if ends[p] > span.end}
    if not behind:
        return []
    reader = broker.reader(uncommitted=True)
    reader.assign(behind)
    left, found = set(behind), []
    latest = time.time_ns() // 1_000_000 - _OPEN_MS
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _NEXT_SECONDS
    try:
        while left and loop.time() < deadline:
            for message in await reader.read(1_000, 0.1, behind.keys() - left):
                partition = Partition(message.topic, message.partition)
                if partition in left and message.timestamp <= latest:
                    found.append(partition)
                left.discard(partition)
    finally:
        await reader.close()
    if not found:
        return []
    # This clock may be ahead of the one that the messages have. A worker's transaction ends soon.
    await asyncio.sleep(_ENDS_SECONDS)
    now = await broker.spans(found)
    return [partition for partition in found if now[partition].end <= behind[partition]]


async def with_earlier_checkpoints(
    broker: Broker, answers: BrokerAnswers, waiting: Mapping[Partition, int | None]
) -> BrokerAnswers:
    """Read earlier checkpoints, up to `_FAR` offsets back, until they show whether inputs move."""
    back = _NEAR
    spans: Mapping[Partition, OffsetRange] = {}
    while (tasks := undecided(answers, waiting)) and back < _FAR:
        partitions = [Partition(answers.names.progress, number) for number in tasks]
        spans = spans or await broker.spans(partitions)
        if all(span.end - span.start <= back for span in spans.values()):
            break
        back *= 2
        positions = {p: max(spans[p].start, spans[p].end - back) for p in partitions}
        found, _ = await _next(broker, positions, spans)
        read = {p.number: with_earlier(answers.tasks[p.number], m) for p, m in found.items()}
        answers = msgspec.structs.replace(answers, tasks={**answers.tasks, **read})
    return answers


async def _members_if_allowed(broker: Broker, group: str) -> list[GroupMember] | None:
    """The members, or None if refused: watching workers needs no right on the sinks' group."""
    try:
        return await broker.members(group)
    except BrokerUnavailable:
        return None


async def first_unread(
    broker: Broker, positions: Mapping[Partition, int], spans: Mapping[Partition, OffsetRange]
) -> dict[Partition, int | None]:
    """The append time of the first unread record of each input; None if the time is unknown.

    An input with only transaction markers left is not in the result.
    """
    found, left = await _next(broker, positions, spans)
    since = {partition: m.timestamp if m.appended else None for partition, m in found.items()}
    return {**since, **dict.fromkeys(left)}


async def _next(
    broker: Broker, positions: Mapping[Partition, int], spans: Mapping[Partition, OffsetRange]
) -> tuple[dict[Partition, Message], set[Partition]]:
    """The next message of each partition; also those left unread when none came for 2 s."""
    found: dict[Partition, Message] = {}
    left = set(positions)
    if not left:
        return found, left
    loop = asyncio.get_running_loop()
    moved = loop.time()
    reader = broker.reader()
    reader.assign(positions)
    try:
        while left and loop.time() < moved + _NEXT_SECONDS:
            for message in await reader.read(1_000, 0.1, positions.keys() - left):
                found.setdefault(Partition(message.topic, message.partition), message)
            still = {p for p in left - found.keys() if reader.position(p) < spans[p].end}
            if still != left:
                left, moved = still, loop.time()
    finally:
        await reader.close()
    return found, left
