"""Reads the last messages of partitions whose newest message says all there is to know."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import Final

from worker.brokers.contract import Broker
from worker.stream import Message, Partition

_BATCH: Final = 5_000
_STEP_SECONDS: Final = 0.5
_PATIENCE: Final = 3.0


async def read_last(
    broker: Broker, partitions: Collection[Partition], offsets: int
) -> tuple[dict[Partition, list[Message]], list[Partition]]:
    """What stands in the last so many offsets of each partition, in order.

    Also the partitions that gave nothing for 3 s: they have not been read to their ends.
    """
    spans = await broker.spans(partitions)
    found: dict[Partition, list[Message]] = {partition: [] for partition in partitions}
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _PATIENCE
    reader = broker.reader()
    reader.assign({p: max(span.start, span.end - offsets) for p, span in spans.items()})
    try:
        while left := [p for p, span in spans.items() if reader.position(p) < span.end]:
            messages = await reader.read(_BATCH, _STEP_SECONDS)
            for message in messages:
                found[Partition(message.topic, message.partition)].append(message)
            if messages:
                deadline = loop.time() + _PATIENCE
            elif loop.time() >= deadline:
                break
    finally:
        await reader.close()
    return found, left
