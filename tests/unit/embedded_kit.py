"""For tests of the embedded broker: a clock to be set, a broker that is open, what is in it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec

from worker.brokers.embedded.broker import EmbeddedBroker
from worker.brokers.embedded.seal import seal, seal_batch
from worker.brokers.embedded.store import FILE_NAME
from worker.clock import Clock
from worker.stream import Message, Partition

HOUR = 3_600_000
SCHEMA_1 = Path(__file__).with_name("embedded_format_1.sql")
SCHEMA_2 = Path(__file__).with_name("embedded_format_2.sql")


@contextlib.asynccontextmanager
async def opened(
    directory: Path, clock: Clock | None = None, boot: str | None = None
) -> AsyncIterator[EmbeddedBroker]:
    """A broker that is open; without a clock by the machine's, as other processes have it."""
    broker = EmbeddedBroker(directory, clock=clock, boot=boot)
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
    return table_of(messages, {})


def table_of(
    messages: list[Message], before: dict[bytes | None, bytes]
) -> dict[bytes | None, bytes]:
    """The table that a reader ends up with who had that table `before`."""
    table = dict(before)
    for message in messages:
        if message.value is None:
            table.pop(message.key, None)
        else:
            table[message.key] = message.value
    return table


def old_log(directory: Path, content: bytes = b"") -> None:
    """A log as release 0.1 wrote it: one message, and what compaction left around it."""
    content = content or msgspec.msgpack.encode([(0, 0, b"k", b"v", ())])
    with contextlib.closing(sqlite3.connect(directory / FILE_NAME)) as connection:
        connection.executescript(SCHEMA_1.read_text("utf-8"))
        connection.execute("INSERT INTO topics VALUES (1, 'log', 1, 1, 1, NULL, 1000, 9999)")
        connection.execute("INSERT INTO partitions VALUES (1, 1, 0, 0, 5, 1700, 0, 0, 0, 0)")
        connection.execute("INSERT INTO batches VALUES (1, 1, 3, 4, 1700, 1700, ?)", (content,))
        connection.execute("INSERT INTO group_offsets VALUES ('group', 1, 3)")
        connection.commit()


def log_of_format_2(directory: Path, *, compacted_to: int, crc: int = 0) -> None:
    """A log of format 2: a tombstone before a message; `crc` is added to the partition's own."""
    topic = (1, "log", 1, 1, 1, None, 1000, 9999, "an-identity")
    row = (1, 1, 0, 0, 5, 1700, compacted_to)
    content = msgspec.msgpack.encode([(0, 0, b"gone", None, ()), (1, 0, b"k", b"v", ())])
    place = (1, 0, 5, 1700, 1700)
    with contextlib.closing(sqlite3.connect(directory / FILE_NAME)) as connection:
        connection.executescript(SCHEMA_2.read_text("utf-8"))
        connection.execute(
            f"INSERT INTO topics VALUES ({'?, ' * 9}?)",  # noqa: S608 -- placeholders
            (*topic, seal(*topic)),
        )
        connection.execute(
            "INSERT INTO partitions VALUES (?, ?, ?, ?, ?, ?, ?, ?, 0, 0, 0)",
            (*row, seal(*row) + crc),
        )
        connection.execute(
            "INSERT INTO batches VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
            (*place, content, seal_batch(place, content)),
        )
        connection.commit()
