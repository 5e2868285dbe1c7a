"""Packs messages into batches, and delivers batches to Kafka; `publish` and `commit` share it.

Per message, aiokafka's `send` costs three times as much as a batch built here. Its batches also
have one size limit for all topics, while Kafka refuses a batch above the limit of its topic.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from aiokafka.errors import KafkaError

from worker.brokers.kafka.errors import TOO_LARGE
from worker.brokers.kafka.wire import CALL_SECONDS, milliseconds_now, retrieve
from worker.brokers.partitioner import Rotation, by_partition, by_topic
from worker.errors import MessageRefused
from worker.stream import Partition, ProducerRecord, Topic

BATCH_BYTES = 256 * 1024
"""The largest batch, if its topic allows as much. A request carries one batch per partition, and
the broker accepts 100 MB per request. A larger message gets a batch of its own."""

BATCH_MESSAGES = 5_000
"""The most messages in a batch; more gain nothing (measured)."""

REQUEST_BYTES = 48 * 1024 * 1024
"""The most bytes in flight at once: half of what a broker accepts in one request by default."""

_BATCH_OVERHEAD = 61
_MESSAGE_OVERHEAD = 31
"""An upper bound besides key, value and headers: lengths, timestamp, offset, attributes."""
_HEADER_OVERHEAD = 10


class PackedBatch(msgspec.Struct, frozen=True):
    """A batch for one partition, and the indices of its messages in the call."""

    builder: Any
    indices: list[int]
    size: int


def place(
    messages: Sequence[ProducerRecord], topics: Mapping[str, Topic], rotation: Rotation
) -> dict[Partition, list[int]]:
    """The messages of each partition, in order, as indices into `messages`.

    Messages of a topic without a key all go to one partition; the next call uses the next one.
    Raises `MissingTopic` for a partition that the topic does not have.
    """
    return {
        Partition(name, number): chosen
        for name, indices in by_topic(messages).items()
        for number, chosen in by_partition(messages, indices, topics[name], rotation).items()
    }


def check(
    messages: Sequence[ProducerRecord], topics: Mapping[str, Topic], producer: Any
) -> list[int]:
    """An upper bound in bytes of the size of each message inside a batch.

    Raises `MessageRefused` with all messages that their topics will never accept; its text is
    about the first of them.
    """
    sizes = []
    refused: dict[int, str] = {}
    limits = {name: topics[name].max_message_bytes - _BATCH_OVERHEAD for name in topics}
    compacted = {name for name, topic in topics.items() if topic.compacted}
    letters: dict[str, int] = {}
    for index, message in enumerate(messages):
        name, key, value = message.topic, message.key, message.value
        if key is None and name in compacted:
            refused[index] = f"{name} is compacted: it takes no message without a key"
        size = _MESSAGE_OVERHEAD + (len(key) if key else 0) + (len(value) if value else 0)
        for header, content in message.headers:
            taken = letters.get(header)
            if taken is None:
                taken = letters[header] = _HEADER_OVERHEAD + len(header.encode())
            size += taken + len(content)
        sizes.append(size)
        if size > limits[name]:
            topic = topics[name]
            exact = _exact_bytes(message, producer)
            if exact > topic.max_message_bytes:
                refused[index] = (
                    f"a message of {exact} bytes is too large for {topic.name}, which takes"
                    f" {topic.max_message_bytes}: raise its max.message.bytes"
                )
    if refused:
        raise MessageRefused.of(refused)
    return sizes


def _exact_bytes(message: ProducerRecord, producer: Any) -> int:
    """The size of a batch with this message alone, which Kafka compares with its limit."""
    builder = producer.create_batch()
    _append(builder, message, milliseconds_now())
    size: int = builder.size()
    return size


def pack(
    messages: Sequence[ProducerRecord],
    topics: Mapping[str, Topic],
    rotation: Rotation,
    producer: Any,
) -> dict[Partition, list[PackedBatch]]:
    """The batches of each partition, in order. Raises as `check` and `place` do."""
    sizes = check(messages, topics, producer)
    placed = place(messages, topics, rotation)
    now = milliseconds_now()
    batches: dict[Partition, list[PackedBatch]] = {}
    for partition, indices in placed.items():
        limit = min(BATCH_BYTES, topics[partition.topic].max_message_bytes)
        start, size = 0, _BATCH_OVERHEAD
        some = []
        for end, index in enumerate(indices):
            size += sizes[index]
            if end > start and (size > limit or end - start == BATCH_MESSAGES):
                some.append(_batch(messages, indices[start:end], producer, now))
                start, size = end, _BATCH_OVERHEAD + sizes[index]
        some.append(_batch(messages, indices[start:], producer, now))
        batches[partition] = some
    return batches


def _batch(
    messages: Sequence[ProducerRecord], indices: list[int], producer: Any, now: int
) -> PackedBatch:
    builder = producer.create_batch()
    for index in indices:
        _append(builder, messages[index], now)
    builder.close()
    return PackedBatch(builder, indices, builder.size())


def _append(builder: Any, message: ProducerRecord, now: int) -> None:
    added = builder.append(
        timestamp=now, key=message.key, value=message.value, headers=list(message.headers)
    )
    if added is None:
        raise AssertionError("a batch is smaller than BATCH_CEILING")


async def deliver(
    batches: Mapping[Partition, Sequence[PackedBatch]], producer: Any
) -> dict[int, tuple[int, int]]:
    """Send every batch and wait for each; return (partition, offset) by message index.

    Raises `MessageRefused`, TimeoutError if a batch takes longer than `CALL_SECONDS`, or errors of
    aiokafka. Then batches may still be in flight, and the producer's sequence numbers have a gap:
    discard the producer.
    """
    written: dict[int, tuple[int, int]] = {}
    for wave in _waves(batches):
        outcomes = await asyncio.gather(
            *(_deliver(partition, batches[partition], producer) for partition in wave),
            return_exceptions=True,
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
            written.update(outcome)
    return written


def _waves(batches: Mapping[Partition, Sequence[PackedBatch]]) -> Iterable[list[Partition]]:
    """Groups of partitions whose largest batches fit into one request together."""
    wave: list[Partition] = []
    total = 0
    for partition, some in batches.items():
        size = max(batch.size for batch in some)
        if wave and total + size > REQUEST_BYTES:
            yield wave
            wave, total = [], 0
        wave.append(partition)
        total += size
    if wave:
        yield wave


async def _deliver(
    partition: Partition, batches: Sequence[PackedBatch], producer: Any
) -> dict[int, tuple[int, int]]:
    futures = []
    for batch in batches:
        # Waits while the previous batch is queued: this keeps the order and bounds memory.
        async with asyncio.timeout(CALL_SECONDS):
            future = await producer.send_batch(
                batch.builder, partition.topic, partition=partition.number
            )
        future.add_done_callback(retrieve)
        futures.append(future)
    written = {}
    for batch, future in zip(batches, futures, strict=True):
        try:
            async with asyncio.timeout(CALL_SECONDS):
                base: int = (await future).offset
        except TOO_LARGE as error:
            # The limit was lowered since `check`.
            why = (
                f"{partition.topic} takes no batch of {batch.size} bytes any more:"
                " raise its max.message.bytes"
            )
            alone = len(batch.indices) == 1
            raise MessageRefused(why, {batch.indices[0]: why} if alone else None) from error
        if base < 0:
            raise KafkaError("the broker knows the batch already, but not where it stands")
        for place_in_batch, index in enumerate(batch.indices):
            written[index] = (partition.number, base + place_in_batch)
    return written
