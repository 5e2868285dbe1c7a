"""Records as any client of Kafka may send them, which none of the program's own would."""

from __future__ import annotations

from aiokafka import AIOKafkaProducer
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from worker.stream import Partition


class Name(str):
    """The name of a header that is sent as these bytes, given in hexadecimal."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return bytes.fromhex(self)


async def send_foreign(
    address: str,
    place: Partition,
    *rows: tuple[bytes | None, bytes | None],
    name: bytes = b"x",
    timestamp: int | None = None,
) -> list[str]:
    """Send rows in one batch, each with a header of this name; their coordinates."""
    async with AIOKafkaProducer(bootstrap_servers=address) as producer:
        batch = producer.create_batch()
        batch._builder = _DefaultRecordBatchBuilderPy(2, 0, 0, -1, -1, 0, 1 << 20)
        for key, value in rows:
            headers = [(Name(name.hex()), b"v")]
            assert batch.append(timestamp=timestamp, key=key, value=value, headers=headers)
        batch.close()
        sent = await producer.send_batch(batch, place.topic, partition=place.number)
        first = (await sent).offset
    return [f"{place.topic}/{place.number}/{first + n}" for n in range(len(rows))]
