"""The bare copy loop: consume, produce, commit in transactions, without looking at a record.

What aiokafka alone reaches on this machine, or the embedded broker. A process of its own, as the
worker is one: `python -m tests.bench.bare BROKER PREFIX RECORDS PARTITIONS OUTPUT` prints seconds
and CPU seconds as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from schemas import ENTITIES
from tests.bench.running import opened
from worker.core.topics import Names
from worker.stream import Partition, ProducerRecord

TRANSACTION = 5_000
"""Records, as the worker's batches."""

_BATCH_BYTES = 900_000  # a broker takes 1 MiB by default
_STALL_SECONDS = 30.0


async def copy(url: str, prefix: str, total: int, partitions: int, output: str) -> dict[str, float]:
    """Copy all inputs of the prefix into one topic, partition by partition."""
    places = [Partition(Names(prefix).input(e), n) for e in ENTITIES for n in range(partitions)]
    kind, _, rest = url.partition(":")
    if kind == "kafka":
        return await _copy_kafka(rest.removeprefix("//"), places, total, output)
    return await _copy_embedded(url, places, total, output)


async def _copy_embedded(
    url: str, places: Sequence[Partition], total: int, output: str
) -> dict[str, float]:
    async with opened(url) as broker:
        reader = broker.reader()
        reader.assign(dict.fromkeys(places, 0))
        committer = await broker.committer(f"{output}-copier", f"{output}-group")
        try:
            wall, cpu = time.perf_counter(), time.process_time()
            copied = 0
            while copied < total:
                found = await reader.read(min(TRANSACTION, total - copied), _STALL_SECONDS)
                if not found:
                    raise TimeoutError(f"{total - copied} records are missing")
                copies = [
                    ProducerRecord(output, m.key, m.value, partition=m.partition) for m in found
                ]
                offsets = {Partition(m.topic, m.partition): m.offset + 1 for m in found}
                await committer.commit(copies, offsets)
                copied += len(found)
            return {
                "seconds": time.perf_counter() - wall,
                "cpu": time.process_time() - cpu,
            }
        finally:
            await committer.close()
            await reader.close()


async def _copy_kafka(
    address: str, places: Sequence[Partition], total: int, output: str
) -> dict[str, float]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=address, enable_auto_commit=False, auto_offset_reset="earliest",
        isolation_level="read_committed", fetch_max_wait_ms=100,
    )  # fmt: skip
    producer = AIOKafkaProducer(
        bootstrap_servers=address, transactional_id=f"{output}-copier", max_batch_size=_BATCH_BYTES,
        max_request_size=64 * 1024 * 1024,
    )  # fmt: skip
    await consumer.start()
    try:
        await producer.start()
        try:
            consumer.assign([TopicPartition(*place) for place in places])
            wall, cpu = time.perf_counter(), time.process_time()
            copied = 0
            while copied < total:
                records, offsets = await _consume(consumer, min(TRANSACTION, total - copied))
                await _produce(producer, output, records, offsets)
                copied += sum(map(len, records.values()))
            return {
                "seconds": time.perf_counter() - wall,
                "cpu": time.process_time() - cpu,
            }
        finally:
            await producer.stop()
    finally:
        await consumer.stop()


async def _consume(
    consumer: Any, wanted: int
) -> tuple[dict[int, list[Any]], dict[TopicPartition, int]]:
    """So many records, by partition number, and where to go on."""
    records: dict[int, list[Any]] = {}
    offsets: dict[TopicPartition, int] = {}
    deadline = time.monotonic() + _STALL_SECONDS
    while wanted:
        found = await consumer.getmany(timeout_ms=100, max_records=wanted)
        for place, some in found.items():
            records.setdefault(place.partition, []).extend(some)
            offsets[place] = some[-1].offset + 1
            wanted -= len(some)
            deadline = time.monotonic() + _STALL_SECONDS
        if time.monotonic() > deadline:
            raise TimeoutError(f"{wanted} records are missing")
    return records, offsets


async def _produce(
    producer: Any, output: str, records: dict[int, list[Any]], offsets: dict[TopicPartition, int]
) -> None:
    await producer.begin_transaction()
    futures = []
    for number, some in records.items():
        batch = producer.create_batch()
        for record in some:
            key, value = record.key, record.value
            if batch.append(key=key, value=value, timestamp=None) is None:
                futures.append(await producer.send_batch(batch, output, partition=number))
                batch = producer.create_batch()
                batch.append(key=key, value=value, timestamp=None)
        futures.append(await producer.send_batch(batch, output, partition=number))
    await asyncio.gather(*futures)
    await producer.send_offsets_to_transaction(offsets, f"{output}-group")
    await producer.commit_transaction()


if __name__ == "__main__":
    _, _url, _prefix, _total, _partitions, _output = sys.argv
    _found = asyncio.run(copy(_url, _prefix, int(_total), int(_partitions), _output))
    print(json.dumps(_found))
