"""A log on Kafka with a wrong byte: that partition stands still and is told, no other does."""

from __future__ import annotations

from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.contract.helpers import numbered, take
from tests.kafka_server import KafkaServer
from worker.brokers.kafka import reader as kafka_reader
from worker.cli.connect_broker import connect
from worker.cli.settings import Settings
from worker.stream import Partition, Topic

pytestmark = pytest.mark.kafka

HERE, THERE = Partition("t", 0), Partition("t", 1)
BATCH = 4


def flip(log: Path, at: int) -> None:
    with log.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 0x7F]))


async def test_a_damaged_batch_holds_up_its_partition_alone(
    kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_reader, "_TRY_AGAIN_SECONDS", 0.2)
    broker = connect(Settings(broker=f"kafka://{kafka_server.address}"), {})
    await broker.open()
    try:
        await broker.create([Topic("t", 2, retention_ms=86_400_000)])
        for first in range(1_000, 1_000 + 3 * BATCH, BATCH):
            await broker.publish(numbered("t", range(first, first + BATCH), 0))
        await broker.publish(numbered("t", range(5), 1))
        (log,) = kafka_server.logs("t", 0)
        at = log.read_bytes().index(b"1004")
        flip(log, at)
        reader = broker.reader()
        reader.assign({HERE: 0, THERE: 0})
        with capture_logs() as logs:
            found = await take(reader, BATCH + 5)
            await broker.publish(numbered("t", range(5, 9), 1))
            found += await take(reader, 4)
        assert {(m.partition, m.offset) for m in found if m.partition == 0} == {
            (0, offset) for offset in range(BATCH)
        }
        assert [(e["topic"], e["offset"]) for e in logs if e["event"] == "log_damaged"] == [
            ("t", 4)
        ]
        (line,) = await broker.damage()
        assert line.startswith("t/0 is damaged from offset 4: Kafka gives a batch")
        assert (reader.damaged(), reader.position(HERE)) == ({HERE: line}, 4)
        flip(log, at)  # as if another broker had sent it a copy
        assert [m.offset for m in await take(reader, 2 * BATCH)] == [*range(BATCH, 3 * BATCH)]
        assert (reader.damaged(), await broker.damage()) == ({}, [])
    finally:
        await broker.close()
