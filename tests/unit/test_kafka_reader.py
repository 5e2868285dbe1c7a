"""How much a Kafka reader hands out at once: fetches are bounded as they are sent, maybe packed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from worker.brokers.contract import Message, Partition
from worker.brokers.kafka_reader import KafkaReader

HERE = Partition("t", 0)
MIB = 1024 * 1024


class Fetched:
    """aiokafka's consumer, with so many messages that it has fetched."""

    def __init__(self, message: Message, count: int) -> None:
        self.message = message
        self.left = count

    async def getmany(self, *, timeout_ms: int, max_records: int) -> dict[Partition, list[Message]]:
        del timeout_ms
        some = min(max_records, self.left)
        self.left -= some
        return {HERE: [self.message] * some}


@pytest.mark.parametrize(
    "message",
    [
        Message("t", 0, 0, 0, b"k", b"x" * MIB),
        Message("t", 0, 0, 0, b"x" * MIB, b"v"),
        Message("t", 0, 0, 0, b"k", b"v", (("h", b"x" * MIB),)),
        Message("t", 0, 0, 0, b"k", b"v", (("h" * MIB, b"x"),)),
        Message("t", 0, 0, 0, b"k", b"v", (("h", b""),) * 5_200),
    ],
    ids=["value", "key", "header", "header's name", "many headers"],
)
def test_a_read_is_bounded_by_all_that_a_message_has(message: Message) -> None:
    unused: Any = None
    reader = KafkaReader(unused, unused, unused, "read_committed")
    reader._consumer = Fetched(message, 1_000)
    found = asyncio.run(reader._poll(5_000, 0.1))
    assert 8 <= len(found) <= 10
