"""Reads the last messages of partitions in which the newest message is sufficient."""

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
    """The messages in the last `offsets` offsets of each partition, in offset order.

    Also the partitions not read to their ends, because no message arrived for 3 s. Raises
    MissingTopic, BrokerUnavailable.
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
