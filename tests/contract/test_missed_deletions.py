"""Deletions that the embedded log has dropped before a stopped index, store or desk had read them.

A clock that is ahead makes compaction drop them early. By their own clocks, the readers were away
for a minute only.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

import worker.clock
from tests.contract.broker_kit import Clock
from tests.contract.desk_kit import Desk
from tests.contract.helpers import PATIENCE
from tests.contract.sink_kit import Sink, consuming
from tests.unit.embedded_kit import HOUR, opened
from tests.unit.rows_kit import user
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.keys import id_bytes
from worker.core.topics import Names, wanted
from worker.core.violations import Code
from worker.engine.index_updater import IndexUpdater
from worker.engine.last_checkpoints import LastCheckpoints
from worker.index.store import IndexStore
from worker.stream import Partition, ProducerRecord

NAMES = Names("m")
DAY = 24 * HOUR
DELETED, LEFT = user(1), user(2)
Read = Callable[[EmbeddedBroker], Awaitable[bool]]
"""Reads to the end and stops; whether the deleted user is still known."""


class Site:
    """A log whose machine starts anew for each block."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.clock = Clock()
        self.clocks = worker.clock.Clock(self.clock.wall, self.clock.steady)
        self._boots = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[EmbeddedBroker]:
        self._boots += 1
        async with opened(self.directory / "log", self.clocks, f"boot {self._boots}") as broker:
            yield broker

    async def drop_deletions(self) -> None:
        """Compact while the clock is ten days ahead; then it is set right."""
        async with self.running() as broker:
            await broker.maintain()
        self.clock.now += 10 * DAY
        async with self.running() as broker:
            await broker.maintain()
            self.clock.now += HOUR
            await broker.maintain()
            users = Partition(NAMES.accepted("users"), 0)
            assert (await broker.spans([users]))[users].tombstones_from
        self.clock.now -= 10 * DAY

    async def index(self, broker: EmbeddedBroker) -> bool:
        index = IndexStore(self.directory / "index")
        identities = await broker.identities([NAMES.accepted("users"), NAMES.accepted("matches")])
        updater = IndexUpdater(broker, NAMES, index, identities, self.clocks, LastCheckpoints())
        await updater.start()
        stop = asyncio.Event()
        async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as tasks:
            tasks.create_task(updater.run(stop))
            await updater.ready.wait()
            stop.set()
        known = index.user(id_bytes(DELETED[0].decode()))
        await updater.close()
        return known

    async def store(self, broker: EmbeddedBroker) -> bool:
        sink = Sink(broker, NAMES, self.directory, self.clock)
        async with consuming(sink) as (consumer, store):
            await consumer.hold(["users"])
            return store.counts()["users"] > 1

    async def desk(self, broker: EmbeddedBroker) -> bool:
        records, open_ = await Desk(broker, NAMES, self.directory / "desk").look()
        assert records == 1
        return bool(open_)


@pytest.mark.parametrize("what", ["index", "store", "desk"])
@pytest.mark.parametrize("reads", ["before", "after", "anew"])
async def test_who_missed_a_deletion_reads_again(tmp_path: Path, what: str, reads: str) -> None:
    """Who stopped `after` the deletion, or begins `anew`, has missed nothing."""
    site = Site(tmp_path)
    read: Read = getattr(site, what)
    accepted = NAMES.accepted("users")
    async with site.running() as broker:
        await broker.create(wanted(NAMES, 1, 1024 * 1024).values())
        messages = Desk(broker, NAMES, tmp_path / "desk")
        await messages.publish(
            messages.rejection("users", DELETED[0].decode(), Code.INVALID_ENUM, "role")
        )
        await broker.publish([ProducerRecord(accepted, *LEFT)])
        if what != "desk":  # there the deletion settles the rejection
            await broker.publish([ProducerRecord(accepted, *DELETED)])
        if reads != "anew":
            assert await read(broker)
        gone = messages.row("users", DELETED[0].decode(), None)
        # The log ends with a message that stays, by which it is recognised.
        await broker.publish([gone, ProducerRecord(accepted, *LEFT)])
        if reads == "after":
            assert not await read(broker)
    await site.drop_deletions()
    async with site.running() as broker:
        with capture_logs() as logs:
            for _ in range(2):
                # An empty desk has no deletion to miss: the rejection is open to it for ever.
                assert await read(broker) == (what == "desk" and reads != "after")
    events = {"index": "state_rebuild", "store": "sink_store_rebuilt", "desk": "desk_rebuilt"}
    reasons = [log["reason"] for log in logs if log["event"] == events[what]]
    if reads in {"after", "anew"}:
        assert reasons == []
    else:
        (reason,) = reasons
        assert f"partition 0 of topic {accepted} has lost deletions before offset" in reason
