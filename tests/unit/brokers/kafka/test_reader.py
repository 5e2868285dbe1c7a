"""What a Kafka reader hands out: bounded at once, since fetches may be packed; nothing damaged."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from worker.brokers.kafka.fetched import ReadableRecords
from worker.brokers.kafka.reader import KafkaReader
from worker.stream import Message, Partition

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


def fetched(*batches: bytes) -> PartitionRecords:
    """As aiokafka unpacks what a broker has sent."""
    records = MemoryRecords(b"".join(batches))
    return PartitionRecords(
        TopicPartition("t", 0), records, [], 0, None, None, check_crcs=True,
        isolation_level=READ_COMMITTED,
    )  # fmt: skip


def batch(first: int) -> bytes:
    """Two records, at this offset and the next."""
    builder = DefaultRecordBatchBuilder(
        magic=2, compression_type=0, is_transactional=0, producer_id=-1, producer_epoch=-1,
        base_sequence=0, batch_size=999,
    )  # fmt: skip
    for number in range(2):
        builder.append(number, timestamp=1, key=b"k", value=b"value", headers=[])
    built = builder.build()
    built[:8] = first.to_bytes(8, "big")
    return bytes(built)


@pytest.mark.parametrize("at", [-1, 17, 21, 57], ids=["value", "crc", "kind", "count"])
def test_a_damaged_batch_ends_what_can_be_read_of_its_partition(at: int) -> None:
    damaged = bytearray(batch(2))
    damaged[at] ^= 0x7F
    told: list[tuple[int, str]] = []

    def note(number: Any, offset: int, why: BaseException) -> None:
        assert Partition(*number) == HERE
        told.append((offset, type(why).__name__))

    records = fetched(batch(0), bytes(damaged), batch(4))
    readable = ReadableRecords(HERE, records, note)
    assert [message.offset for message in readable] == [0, 1]
    assert readable.next_fetch_offset == 2
    assert [offset for offset, _ in told] == [2]


def test_a_read_that_is_cut_short_goes_on_where_it_ended() -> None:
    unused: Any = None
    readable = ReadableRecords(HERE, fetched(batch(0), batch(2)), unused)
    for expected in range(4):
        assert next(iter(readable)).offset == expected
    assert list(readable) == []
