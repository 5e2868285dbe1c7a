"""Reads a compacted partition as the table that it is."""

from __future__ import annotations

from typing import Final

from worker.brokers.contract import Broker, Partition
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
    quiet = 0.0
    try:
        while reader.position(partition) < span.end:
            messages = await reader.read(_BATCH, _STEP_SECONDS)
            quiet = 0.0 if messages else quiet + _STEP_SECONDS
            if quiet >= _PATIENCE:
                raise BrokerUnavailable(
                    f"reading {partition.topic}/{partition.number} makes no progress: "
                    "a transaction has been left open, or the partition has no leader"
                )
            for message in messages:
                key = message.key or b""
                if message.value is None:
                    table.pop(key, None)
                else:
                    table[key] = message.value
    finally:
        await reader.close()
    return table
