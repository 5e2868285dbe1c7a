"""Reads offset ranges although an entry of the embedded log may be damaged."""

from __future__ import annotations

from collections.abc import Iterable

from worker.brokers.contract import Broker
from worker.errors import DamagedLog
from worker.stream import OffsetRange, Partition


async def sound_spans(
    broker: Broker, partitions: Iterable[Partition], *, uncommitted: bool = False
) -> dict[Partition, OffsetRange]:
    """As `Broker.spans`, without the partitions whose entry is damaged: see `Broker.damage`."""
    found, _ = await spans_and_damage(broker, partitions, uncommitted=uncommitted)
    return found


async def spans_and_damage(
    broker: Broker, partitions: Iterable[Partition], *, uncommitted: bool = False
) -> tuple[dict[Partition, OffsetRange], dict[Partition, str]]:
    """As `sound_spans`, with a line about each partition whose entry is damaged."""
    asked = list(partitions)
    found: dict[Partition, OffsetRange] = {}
    damaged: dict[Partition, str] = {}
    try:
        return await broker.spans(asked, uncommitted=uncommitted), damaged
    except DamagedLog:
        pass
    for partition in asked:
        try:
            found |= await broker.spans([partition], uncommitted=uncommitted)
        except DamagedLog as error:
            damaged[partition] = str(error)
    return found, damaged
