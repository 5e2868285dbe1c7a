"""Whether a store of state can go on from its positions: asked of the broker, judged purely."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from worker.brokers.contract import Broker
from worker.errors import BrokerUnavailable
from worker.index.freshness import Saved
from worker.index.tails import Comparison
from worker.stream import Message, OffsetRange, Partition

_BATCH: Final = 500
_STEP_SECONDS: Final = 0.1
_PATIENCE: Final = 20.0


async def another_log(
    broker: Broker,
    saved: Saved,
    spans: Mapping[Partition, OffsetRange],
    on_step: Callable[[], None] = lambda: None,
) -> str | None:
    """Why the partitions are not known to be those that were read, for the log; None if they are.

    Reads the last few messages before each position again; more only of partitions where some of
    these were compacted away. To be asked once `freshness.reason_to_rebuild` has nothing to say.
    `on_step` is called now and then. Raises BrokerUnavailable, also when a partition that has to
    be read gives nothing for 20 s.
    """
    comparison = Comparison(saved.tails, saved.positions, spans, saved.beside)
    if comparison.reason is not None or not comparison.starts:
        return comparison.reason
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
                place = comparison.open[0]
                raise BrokerUnavailable(
                    f"reading {place.topic}/{place.number} again, before the position that was "
                    f"reached, has given nothing for {_PATIENCE:.0f} s"
                )
    finally:
        await reader.close()
    return comparison.reason


def went_back(
    messages: Sequence[Message],
    positions: Mapping[Partition, int],
    before: Mapping[Partition, int],
) -> Partition | None:
    """Which of the partitions in `before` a reader has begun anew, since its log ended too early.

    `messages` were read from `before` on, which led to `positions`.
    """
    for partition, position in before.items():
        if positions[partition] < position:
            return partition
    last: Message | None = None
    for message in messages:  # in runs of one partition, each in its order
        if last is None or message.partition != last.partition or message.topic != last.topic:
            partition = Partition(message.topic, message.partition)
            if message.offset < before.get(partition, 0):
                return partition
        last = message
    return None
