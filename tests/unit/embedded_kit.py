"""For tests of the embedded broker: a clock to be set, a broker that is open, what is in it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path

from worker.brokers.contract import Message, Partition
from worker.brokers.embedded import EmbeddedBroker

ROOT = Path(__file__).parents[2]
HOUR = 3_600_000


class Clock:
    """Milliseconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


@contextlib.asynccontextmanager
async def opened(directory: Path, clock: Clock | None = None) -> AsyncIterator[EmbeddedBroker]:
    broker = EmbeddedBroker(directory, clock=clock or Clock())
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def read_all(broker: EmbeddedBroker, topic: str, number: int = 0) -> list[Message]:
    reader = broker.reader()
    reader.assign({Partition(topic, number): 0})
    messages: list[Message] = []
    while some := await reader.read(1000, 0):
        messages += some
    await reader.close()
    return messages


def latest(messages: list[Message]) -> dict[bytes | None, bytes]:
    """The table that a reader of a compacted topic ends up with."""
    table: dict[bytes | None, bytes] = {}
    for message in messages:
        if message.value is None:
            table.pop(message.key, None)
        else:
            table[message.key] = message.value
    return table
