"""What a Kafka reader hands out: bounded at once, since fetches may be packed; nothing damaged."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from hypothesis import assume, example, given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from worker.brokers.kafka.broker import KafkaBroker
from worker.brokers.kafka.fetched import OrderedBatches, ReadableRecords
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
    reader = KafkaReader(unused, unused, unused, "read_committed", {})
    reader._consumer = Fetched(message, 1_000)
    found = asyncio.run(reader._poll(5_000, 0.1))
    assert 8 <= len(found) <= 10


def fetched(*batches: bytes, at: int = 0) -> PartitionRecords:
    """As aiokafka unpacks what a broker has sent from `at` on."""
    records = MemoryRecords(b"".join(batches))
    return PartitionRecords(
        TopicPartition("t", 0), records, [], at, None, None, check_crcs=True,
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
    built[:8] = first.to_bytes(8, "big", signed=True)
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


def readable(at: int, end: int, firsts: Sequence[int], *, gapless: bool) -> tuple[list[int], int]:
    """The offsets read from `at` on of batches that begin there, and the offset reached."""
    records = fetched(*map(batch, firsts), at=at)
    records._records = OrderedBatches(records._records, at, end, gapless=gapless)
    told: list[int] = []
    read = ReadableRecords(HERE, records, lambda _number, offset, _why: told.append(offset))
    offsets = [message.offset for message in read]
    assert told in ([], [read.next_fetch_offset])
    return offsets, -1 if told else read.next_fetch_offset


@pytest.mark.parametrize(
    ("at", "firsts", "offsets"),
    [
        (0, (0, 2, 4), [0, 1, 2, 3, 4, 5]),
        (3, (2, 4), [3, 4, 5]),
        (5, (4,), [5]),
    ],
)
@pytest.mark.parametrize("gapless", [True, False])
def test_batches_in_order_are_read(
    at: int, firsts: Sequence[int], offsets: list[int], *, gapless: bool
) -> None:
    assert readable(at, 6, firsts, gapless=gapless) == (offsets, 6)


@given(
    wrong=st.integers(-3, 9) | st.integers(-(2**63), 2**63 - 3),
    which=st.sampled_from([0, 1, 2]),
    gapless=st.booleans(),
)
@example(wrong=3, which=1, gapless=False)
@example(wrong=1, which=1, gapless=False)
@example(wrong=5, which=2, gapless=False)
@example(wrong=-1, which=0, gapless=True)
@example(wrong=1, which=0, gapless=True)
def test_no_record_of_a_batch_with_a_wrong_offset_is_read(
    wrong: int, which: int, *, gapless: bool
) -> None:
    assume(gapless or (which, wrong) != (0, -1))  # then it may begin before where reading began
    firsts = [0, 2, 4]
    right, firsts[which] = firsts[which], wrong
    offsets, reached = readable(0, 6, firsts, gapless=gapless)
    if wrong == right:
        assert (offsets, reached) == ([0, 1, 2, 3, 4, 5], 6)
    else:
        assert (offsets, reached) == ([*range(right)], -1)


def test_compaction_leaves_gaps() -> None:
    assert readable(1, 14, (4, 8, 12), gapless=False) == ([4, 5, 8, 9, 12, 13], 14)
    assert readable(1, 14, (4, 8, 12), gapless=True) == ([], -1)


def test_a_batch_after_a_gap_is_read_with_the_batch_that_follows_it() -> None:
    """Its offset may be too high by a little: only what follows shows that it is not."""
    assert readable(1, 20, (4, 8, 12), gapless=False) == ([4, 5, 8, 9], 10)
    assert readable(10, 20, (12, 14), gapless=False) == ([12, 13, 14, 15], 16)
    assert readable(10, 20, (12,), gapless=False) == ([12, 13], 14)  # there is no more to see


def test_a_position_that_is_another_by_now_is_not_lost() -> None:
    """aiokafka keeps the answer "out of range" until the next read."""
    unused: Any = None
    reader = KafkaReader(unused, unused, unused, "read_committed", {})
    reader.assign({HERE: 7})
    asyncio.run(reader._skip(1, {TopicPartition("t", 0): 3, TopicPartition("t", 1): 7}))
    assert (reader.position(HERE), reader.expired()) == (7, {})


@pytest.mark.parametrize("logs_damage", [False, True])
def test_a_command_may_report_damage_itself(*, logs_damage: bool) -> None:
    """Its line is for people; a log line beside it would say the same again, as JSON."""
    reader = KafkaBroker("localhost:1", logs_damage=logs_damage).reader()
    reader.assign({HERE: 7})

    async def find() -> None:
        reader._is_damaged(TopicPartition("t", 0), 7, CorruptRecordException("crc"))

    with capture_logs() as logs:
        asyncio.run(find())
    assert [(e["event"], e["offset"]) for e in logs] == [("log_damaged", 7)] * logs_damage
    (line,) = reader.damaged().values()
    assert line.startswith("t/0 is damaged from offset 7: Kafka gives a batch")


def test_a_read_that_is_cut_short_goes_on_where_it_ended() -> None:
    unused: Any = None
    readable = ReadableRecords(HERE, fetched(batch(0), batch(2)), unused)
    for expected in range(4):
        assert next(iter(readable)).offset == expected
    assert list(readable) == []
