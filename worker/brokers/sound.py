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
    asked = list(partitions)
    try:
        return await broker.spans(asked, uncommitted=uncommitted)
    except DamagedLog:
        pass
    found: dict[Partition, OffsetRange] = {}
    for partition in asked:
        try:
            found |= await broker.spans([partition], uncommitted=uncommitted)
        except DamagedLog:
            continue
    return found
