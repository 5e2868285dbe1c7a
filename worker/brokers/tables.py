"""Reads a compacted partition as a table."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Generic, TypeVar

from worker.brokers.contract import Broker
from worker.errors import BrokerUnavailable, DamagedLog
from worker.stream import Message, Partition

_T = TypeVar("_T")

_BATCH: Final = 5_000
_STEP_SECONDS: Final = 0.5
_PATIENCE: Final = 20.0


class KeyedTable(Generic[_T]):
    """The latest readable value of each key.

    A message for which `read` returns None is skipped: it does not replace an earlier value.
    """

    def __init__(self, read: Callable[[bytes, bytes], _T | None]) -> None:
        self.rows: dict[bytes, _T] = {}
        self.unreadable: list[int] = []
        """The offsets of the messages that were skipped."""
        self.lost: dict[bytes, int] = {}
        """Keys without a readable message, each with the offset of its last message."""
        self.holes = 0
        """Number of offsets removed, or damaged and skipped: rows may be missing."""
        self._read = read

    def apply(self, message: Message) -> None:
        """Apply one message; call in offset order."""
        key = message.key or b""
        if message.value is None:
            self.rows.pop(key, None)
            self.lost.pop(key, None)
            return
        value = self._read(key, message.value)
        if value is not None:
            self.rows[key] = value
            self.lost.pop(key, None)
            return
        self.unreadable.append(message.offset)
        if key not in self.rows:
            self.lost[key] = message.offset


async def read_table(broker: Broker, partition: Partition) -> dict[bytes, bytes]:
    """The latest value of each key, unchecked. Raises as `read_checked` does."""
    return (await read_checked(broker, partition, lambda _, value: value)).rows


async def read_checked(
    broker: Broker, partition: Partition, read: Callable[[bytes, bytes], _T | None]
) -> KeyedTable[_T]:
    """The table decoded by `read`, up to the current end, open transactions included.

    Raises BrokerUnavailable, also after 20 s without a message, and DamagedLog.
    """
    span = (await broker.spans([partition], uncommitted=True))[partition]
    reader = broker.reader()
    reader.assign({partition: span.start})
    table = KeyedTable(read)
    table.holes = span.start  # compaction never moves the start: see `OffsetRange`
    quiet = 0.0
    try:
        while reader.position(partition) < span.end:
            messages = await reader.read(_BATCH, _STEP_SECONDS)
            if partition in (damaged := reader.damaged()):
                raise DamagedLog(damaged[partition])
            quiet = 0.0 if messages else quiet + _STEP_SECONDS
            if quiet >= _PATIENCE:
                raise BrokerUnavailable(
                    f"reading {partition.topic}/{partition.number} makes no progress: "
                    "a transaction has been left open, or the partition has no leader"
                )
            for message in messages:
                table.apply(message)
            table.holes += reader.skipped().get(partition, 0)
    finally:
        await reader.close()
    return table
