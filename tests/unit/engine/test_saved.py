"""What a take-over reads of a task that another worker works on meanwhile."""

from __future__ import annotations

from pathlib import Path

from tests.unit.embedded_kit import opened
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.checkpoint import Checkpoint, write_checkpoint
from worker.core.topics import Names, wanted
from worker.engine.saved import read_progress_table
from worker.stream import ProducerRecord

NAMES = Names()
USERS = NAMES.input("users")


async def commit(broker: EmbeddedBroker, records: int, claimed: int) -> None:
    """So many users arrive, and a checkpoint says that so many are read."""
    identity = (await broker.identities([USERS]))[USERS]
    checkpoint = Checkpoint({"users": claimed}, {"users": claimed}, {"users": identity})
    await broker.publish([ProducerRecord(USERS, b"x", b"{}", partition=0)] * records)
    value = write_checkpoint(checkpoint)
    await broker.publish([ProducerRecord(NAMES.progress, b"0", value, partition=0)])


async def test_a_checkpoint_beyond_the_end_counts(tmp_path: Path) -> None:
    """The input has lost records since: see `Reading.compare_topics`."""
    async with opened(tmp_path) as broker:
        await broker.create([*wanted(NAMES, 1, 1024 * 1024).values()])
        await commit(broker, records=2, claimed=2)
        await commit(broker, records=0, claimed=9)
        table = await read_progress_table(broker, NAMES, 0)
    assert (table.unreadable, table.rows[b"0"].next) == ([], {"users": 9})
