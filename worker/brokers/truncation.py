"""Finds partitions that have lost their last messages, and where. They may have grown since.

An append time tells old messages from new ones, whatever their offsets: a message that arrived
after every message that was read is new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from worker.brokers.contract import Broker
from worker.errors import BrokerUnavailable, DamagedLog
from worker.stream import Message, OffsetRange, Partition

_BATCH: Final = 5_000
_FIRST: Final = 1_000
"""How many offsets before the end to read first; four times as many at each further attempt."""
_BEFORE: Final = 10
"""How many offsets before a position to compare: the last ones may be transaction markers."""
_STEP_SECONDS: Final = 0.5
_PATIENCE: Final = 20.0


class Read(NamedTuple):
    """What was read of a partition: the first offset that was not, and the latest append time."""

    until: int
    latest: int
    """0 if it is unknown."""


async def truncated_partitions(broker: Broker, read: Mapping[Partition, Read]) -> list[Partition]:
    """Those that end before what was read, or hold a new message there.

    A partition that gives nothing, because it is damaged or has no leader, counts as whole. Raises
    BrokerUnavailable.
    """
    spans = await broker.spans(read)  # committed messages only: nothing else was read
    known = {
        partition: max(spans[partition].start, until - _BEFORE)
        for partition, (until, latest) in read.items()
        if spans[partition].start < until <= spans[partition].end and latest
    }
    last = await _last(broker, known, read) if known else {}
    return [
        partition
        for partition, (until, latest) in read.items()
        if until > spans[partition].end or last.get(partition, 0) > latest
    ]


async def _last(
    broker: Broker, positions: Mapping[Partition, int], read: Mapping[Partition, Read]
) -> dict[Partition, int]:
    """The append time of the last message between these positions and what was not read."""
    last: dict[Partition, int] = {}
    reader = broker.reader()
    reader.assign(positions)
    clock = asyncio.get_running_loop().time
    moved = clock()
    try:
        while left := [p for p in positions if reader.position(p) < read[p].until]:
            if reader.damaged().keys() >= set(left) or clock() - moved >= _PATIENCE:
                break
            done = [partition for partition in positions if partition not in left]
            messages = await reader.read(_BEFORE * len(left), _STEP_SECONDS, done)
            for message in messages:
                partition = Partition(message.topic, message.partition)
                if message.offset < read[partition].until:
                    last[partition] = message.timestamp if message.appended else 0
            if messages:
                moved = clock()
    finally:
        await reader.close()
    return last


async def truncated_at(broker: Broker, partition: Partition, span: OffsetRange, latest: int) -> int:
    """The offset of the first message that arrived after `latest`; else the end of `span`.

    `latest` is the latest append time of the messages that were read before the truncation. If it
    is 0 or the messages have no append times, all messages in `span` count as old. `span` includes
    open transactions. Raises BrokerUnavailable and DamagedLog.
    """
    size = _FIRST
    while latest:
        begin = max(span.start, span.end - size)
        found = _Later(latest)
        await read_span(broker, partition, OffsetRange(begin, span.end), found.see)
        if begin == span.start or not found.all_later:
            return span.end if found.first is None else found.first
        size *= 4
    return span.end


class _Later:
    """The run of later messages at the end of those seen, which come in offset order."""

    def __init__(self, latest: int) -> None:
        self.first: int | None = None
        self.all_later = True
        self._latest = latest

    def see(self, message: Message) -> None:
        if not message.appended or message.timestamp <= self._latest:
            self.first, self.all_later = None, False
        elif self.first is None:
            self.first = message.offset


async def read_span(
    broker: Broker, partition: Partition, span: OffsetRange, see: Callable[[Message], None]
) -> None:
    """Call `see` with each message in `span`, open transactions included, in offset order.

    Raises BrokerUnavailable and DamagedLog.
    """
    reader = broker.reader(uncommitted=True)
    reader.assign({partition: span.start})
    clock = asyncio.get_running_loop().time
    moved = clock()
    try:
        while reader.position(partition) < span.end:
            messages = await reader.read(_BATCH, _STEP_SECONDS)
            if partition in (damaged := reader.damaged()):
                raise DamagedLog(damaged[partition])
            for message in messages:
                if message.offset < span.end:
                    see(message)
            if messages:
                moved = clock()
            elif clock() - moved >= _PATIENCE:
                raise BrokerUnavailable(
                    f"reading {partition.topic}/{partition.number} makes no progress: the"
                    " partition has no leader"
                )
    finally:
        await reader.close()
