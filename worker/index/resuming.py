"""Asks the broker whether a store may resume from its positions; pure code decides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from worker.brokers.contract import Broker
from worker.errors import BrokerUnavailable
from worker.index.freshness import SavedIndex
from worker.index.tails import Comparison
from worker.stream import Message, OffsetRange, Partition

_BATCH: Final = 500
_STEP_SECONDS: Final = 0.1
_PATIENCE: Final = 40.0
"""Longer than a reader takes to say that a partition stalls, which is damage."""


async def another_log(
    broker: Broker,
    saved: SavedIndex,
    spans: Mapping[Partition, OffsetRange],
    on_step: Callable[[], None] = lambda: None,
    on_other: Callable[[Partition], None] = lambda _partition: None,
) -> str | None:
    """Why the log may differ from the log that was read, for a log line; None if verified.

    Reads the last few messages before each position again. Reads more only from partitions where
    compaction removed some of them. Call after `freshness.reason_to_rebuild` has returned None.
    Calls `on_step` after each read, and `on_other` with each partition that is not the one that was
    read: once one is found, others are not looked for. Raises BrokerUnavailable, also after 40 s
    without progress.
    """
    comparison = Comparison(saved.tails, saved.positions, spans, saved.beside)
    if comparison.reason is None and comparison.starts:
        await _compare(broker, comparison, on_step)
    for partition in sorted(comparison.others):
        on_other(partition)
    return comparison.reason


async def _compare(broker: Broker, comparison: Comparison, on_step: Callable[[], None]) -> None:
    clock = asyncio.get_running_loop().time
    reader = broker.reader()
    reader.assign(comparison.starts)
    before, moved = dict(comparison.starts), clock()
    try:
        while comparison.open and comparison.reason is None:
            for message in await reader.read(_BATCH, _STEP_SECONDS, comparison.settled):
                comparison.take(message)
            positions = {p: reader.position(p) for p in comparison.starts}
            comparison.moved(positions)
            for partition in reader.damaged():
                comparison.unreadable(partition)
            on_step()
            if positions != before:
                before, moved = positions, clock()
            elif comparison.open and clock() - moved >= _PATIENCE:
                stuck = comparison.open[0]
                raise BrokerUnavailable(
                    f"reading {stuck.topic}/{stuck.number} again, before the position that was "
                    f"reached, has given nothing for {_PATIENCE:.0f} s"
                )
    finally:
        await reader.close()


def went_back(
    messages: Sequence[Message],
    positions: Mapping[Partition, int],
    before: Mapping[Partition, int],
) -> Partition | None:
    """A partition that a reader has restarted because its log ended before the position.

    None if there is none. `before` and `positions` are the positions before and after the read of
    `messages`.
    """
    for partition, position in before.items():
        if positions[partition] < position:
            return partition
    last: Message | None = None
    for message in messages:  # in runs of one partition, each in offset order
        if last is None or message.partition != last.partition or message.topic != last.topic:
            partition = Partition(message.topic, message.partition)
            if message.offset < before.get(partition, 0):
                return partition
        last = message
    return None
