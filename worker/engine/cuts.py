"""Finds where the log of an input has lost its last messages, although it may have grown since."""

from __future__ import annotations

import asyncio
from typing import Final

from worker.brokers.contract import Broker
from worker.errors import BrokerUnavailable, DamagedLog
from worker.stream import Message, OffsetRange, Partition

_BATCH: Final = 5_000
_FIRST: Final = 1_000
"""How many offsets before the end to read first; four times as many at each further attempt."""
_STEP_SECONDS: Final = 0.5
_PATIENCE: Final = 20.0


async def cut_at(broker: Broker, partition: Partition, span: OffsetRange, latest: int) -> int:
    """The offset of the first message that arrived after `latest`; else the end of `span`.

    `latest` is the latest append time of the messages that were read before the log was cut. An
    append time tells old messages from new ones, whatever their offsets. If `latest` is 0 or the
    messages have no append times, all messages in `span` count as old. `span` includes open
    transactions. Raises BrokerUnavailable and DamagedLog.
    """
    size = _FIRST
    while latest:
        begin = max(span.start, span.end - size)
        found = _Later(latest)
        await _read(broker, partition, OffsetRange(begin, span.end), found)
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


async def _read(broker: Broker, partition: Partition, span: OffsetRange, found: _Later) -> None:
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
                    found.see(message)
            if messages:
                moved = clock()
            elif clock() - moved >= _PATIENCE:
                raise BrokerUnavailable(
                    f"reading {partition.topic}/{partition.number} makes no progress: the"
                    " partition has no leader"
                )
    finally:
        await reader.close()
