"""A log on Kafka with a wrong byte: that partition stands still and is told, no other does."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.contract.helpers import numbered, take
from tests.kafka_server import KafkaServer
from worker.brokers.kafka import reader as kafka_reader
from worker.brokers.kafka import stalls as kafka_stalls
from worker.cli.connect_broker import connect
from worker.cli.settings import Settings
from worker.stream import Partition, Topic

pytestmark = pytest.mark.kafka

HERE, THERE = Partition("t", 0), Partition("t", 1)
BATCH = 4


def _flip(log: Path, at: int, mask: int = 0x7F) -> None:
    with log.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ mask]))


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
        _flip(log, at)
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
        _flip(log, at)  # as if another broker had sent it a copy
        assert [m.offset for m in await take(reader, 2 * BATCH)] == [*range(BATCH, 3 * BATCH)]
        assert (reader.damaged(), await broker.damage()) == ({}, [])
    finally:
        await broker.close()


@pytest.mark.parametrize("byte", [0, 4, 7])
@pytest.mark.parametrize("mask", [0x04, 0x80])
async def test_a_batch_with_a_wrong_first_offset_is_told(
    kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch, byte: int, mask: int
) -> None:
    """The checksum does not cover it. Each batch is read from the start, and from itself."""
    monkeypatch.setattr(kafka_reader, "_TRY_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(kafka_stalls, "STALL_SECONDS", 1.0)
    name = f"first{byte}-{mask}"
    here = Partition(name, 0)
    broker = connect(Settings(broker=f"kafka://{kafka_server.address}"), {})
    await broker.open()
    try:
        await broker.create([Topic(name, 1, retention_ms=86_400_000)])
        for first in range(1_000, 1_000 + 3 * BATCH, BATCH):
            await broker.publish(numbered(name, range(first, first + BATCH)))
        (log,) = kafka_server.logs(name, 0)
        at = 0
        for number in range(3):
            _flip(log, at + byte, mask)
            for position in sorted({0, number * BATCH}):
                reader = broker.reader()
                reader.assign({here: position})
                found = []
                async with asyncio.timeout(30):
                    while not reader.damaged():
                        found += await reader.read(100, 0.2)
                right = [*range(1_000 + position, 1_000 + number * BATCH)]
                assert [int(message.value or b"") for message in found] == right
                assert [message.offset + 1_000 for message in found] == right
                await reader.close()
            _flip(log, at + byte, mask)
            at += 12 + int.from_bytes(log.read_bytes()[at + 8 : at + 12])
        reader = broker.reader()
        reader.assign({here: 0})
        assert [m.offset for m in await take(reader, 3 * BATCH)] == [*range(3 * BATCH)]
    finally:
        await broker.close()


@pytest.mark.parametrize("length", [5, 1 << 30])  # an error of the broker, and no error at all
async def test_a_partition_of_which_a_broker_gives_nothing_is_told(
    kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(kafka_stalls, "STALL_SECONDS", 1.0)
    name = f"stalls{length}"
    here = Partition(name, 0)
    broker = connect(Settings(broker=f"kafka://{kafka_server.address}"), {})
    await broker.open()
    try:
        await broker.create([Topic(name, 2, retention_ms=86_400_000)])
        for first in range(1_000, 1_000 + 2 * BATCH, BATCH):
            await broker.publish(numbered(name, range(first, first + BATCH), 0))
        (log,) = kafka_server.logs(name, 0)
        second = 12 + int.from_bytes(log.read_bytes()[8:12])
        right = _set_length(log, second, length)
        reader = broker.reader()
        reader.assign({here: BATCH, Partition(name, 1): 0})
        with capture_logs() as logs:
            for number in range(30):  # others go on
                await broker.publish(numbered(name, range(number, number + 1), 1))
                assert [m.partition for m in await take(reader, 1)] == [1]
                await asyncio.sleep(0.1)
        assert [(e["topic"], e["offset"]) for e in logs if e["event"] == "log_damaged"] == [
            (name, BATCH)
        ]
        (line,) = await broker.damage()
        assert line.startswith(f"{name}/0 cannot be read from offset {BATCH} on")
        _set_length(log, second, right)
        assert [m.offset for m in await take(reader, BATCH)] == [*range(BATCH, 2 * BATCH)]
        await reader.read(1, 0.1)
        assert (reader.damaged(), await broker.damage()) == ({}, [])
    finally:
        await broker.close()


async def test_such_a_partition_is_told_while_all_others_are_idle(
    kafka_server: KafkaServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker answers for the others, so it is not unavailable."""
    monkeypatch.setattr(kafka_reader, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(kafka_stalls, "STALL_SECONDS", 4.0)
    here = Partition("idle", 0)
    broker = connect(Settings(broker=f"kafka://{kafka_server.address}"), {})
    await broker.open()
    try:
        await broker.create([Topic("idle", 2, retention_ms=86_400_000)])
        await broker.publish(numbered("idle", range(BATCH), 0))
        (log,) = kafka_server.logs("idle", 0)
        _set_length(log, 0, 5)  # each fetch is answered with an error
        reader = broker.reader()
        reader.assign({here: 0, Partition("idle", 1): 0})
        with capture_logs() as logs:
            async with asyncio.timeout(30):
                while not reader.damaged():
                    assert await reader.read(1, 0.5) == []
        assert [e["topic"] for e in logs if e["event"] == "log_damaged"] == ["idle"]
        assert list(reader.damaged()) == [here]
    finally:
        await broker.close()


def _set_length(log: Path, at: int, length: int) -> int:
    """Have the batch that begins there say that it is so long; what it said."""
    with log.open("r+b") as file:
        file.seek(at + 8)
        before = int.from_bytes(file.read(4))
        file.seek(at + 8)
        file.write(length.to_bytes(4))
    return before
