"""Reads compacted partitions as the tables that they are."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from typing import Final

from worker.brokers.contract import Broker, Message, Partition, Reader
from worker.errors import BrokerUnavailable

_BATCH: Final = 5_000
_STEP_SECONDS: Final = 0.5
_PATIENCE: Final = 20.0


async def read_table(broker: Broker, partition: Partition) -> dict[bytes, bytes]:
    """The latest value of each key, up to the end of now, open transactions included.

    Raises BrokerUnavailable when nothing has come for 20 s.
    """
    span = (await broker.spans([partition], uncommitted=True))[partition]
    reader = broker.reader()
    reader.assign({partition: span.start})
    table: dict[bytes, bytes] = {}
    try:
        async for messages in _read_to(reader, {partition: span.end}):
            for message in messages:
                key = message.key or b""
                if message.value is None:
                    table.pop(key, None)
                else:
                    table[key] = message.value
    finally:
        await reader.close()
    return table


async def read_last(
    broker: Broker, partitions: Collection[Partition], offsets: int
) -> dict[Partition, list[Message]]:
    """What stands in the last so many offsets of each partition, in order.

    Raises BrokerUnavailable when nothing has come for 20 s.
    """
    spans = await broker.spans(partitions)
    found: dict[Partition, list[Message]] = {partition: [] for partition in partitions}
    reader = broker.reader()
    reader.assign({p: max(span.start, span.end - offsets) for p, span in spans.items()})
    try:
        async for messages in _read_to(reader, {p: span.end for p, span in spans.items()}):
            for message in messages:
                found[Partition(message.topic, message.partition)].append(message)
    finally:
        await reader.close()
    return found


async def _read_to(reader: Reader, ends: Mapping[Partition, int]) -> AsyncIterator[list[Message]]:
    quiet = 0.0
    while left := [
        partition for partition, end in ends.items() if reader.position(partition) < end
    ]:
        messages = await reader.read(_BATCH, _STEP_SECONDS)
        quiet = 0.0 if messages else quiet + _STEP_SECONDS
        if quiet >= _PATIENCE:
            raise BrokerUnavailable(
                f"reading {left[0].topic}/{left[0].number} makes no progress: "
                "a transaction has been left open, or the partition has no leader"
            )
        yield messages
