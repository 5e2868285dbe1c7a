"""A sink on a broker, and what the tests of it say again and again."""

from __future__ import annotations

import asyncio
import csv
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from schemas import ENTITIES
from tests.contract import broker_kit
from tests.contract.helpers import PATIENCE, eventually
from tests.unit.rows_kit import event, match, milestone, user
from worker.brokers.contract import Broker
from worker.brokers.tables import read_table
from worker.clock import Clock, StepWatch
from worker.core.checkpoint import Checkpoint
from worker.core.topics import Names, wanted
from worker.exports.places.directory import DirectoryPlace
from worker.exports.places.place import ExportPlace
from worker.ops.health import Health
from worker.ops.metrics import Metrics
from worker.sink.export_settings import ExportSettings
from worker.sink.reports import SinkReports
from worker.sink.requests import Announcement, ExportRequest, decode_announcement, encode_request
from worker.sink.retention import Keep
from worker.sink.schedule import Schedule
from worker.sink.service import serve
from worker.sink.store.consume import Consumer
from worker.sink.store.row_store import RowStore
from worker.stream import Partition, ProducerRecord

PARTITIONS = 2
embedded_only = pytest.mark.parametrize("kind", ["embedded"])
"""For what no broker has a part in."""


class Sink:
    """A sink with directories of its own on a broker whose topics are made for it."""

    def __init__(
        self, broker: Broker, names: Names, directory: Path, clock: broker_kit.Clock
    ) -> None:
        self.broker, self.names, self.clock = broker, names, clock
        self.clocks = Clock(lambda: self.clock.now + self.stepped, self.clock)
        self.store = directory / "store"
        self.exports = directory / "exports"
        self.reader = broker.reader()
        self.reader.assign({Partition(names.exports, 0): 0})
        self.stepped = 0
        """By so much (ms) the wall clock has been set; the steady one knows nothing of it."""
        self.patience = 5.0
        self.schedules: tuple[Schedule, ...] = ()
        self.keep = Keep()
        self.metrics = Metrics()
        self.health = Health(self.metrics, self.clocks.steady).part("sink")
        self.place: ExportPlace = DirectoryPlace(self.exports)

    def reasons(self) -> list[str]:
        """Why it is not ready."""
        return self.health.reasons(self.clocks.steady())

    def let_time_pass(self) -> None:
        """The steady clock runs by itself from now on; call before `running`."""
        self.clocks = Clock(wall=self.clocks.wall)
        self.health = Health(self.metrics, self.clocks.steady).part("sink")

    @asynccontextmanager
    async def running(self, broker: Broker | None = None) -> AsyncIterator[asyncio.Event]:
        """Serve for as long as the block lasts; a failure of the sink is raised at its end."""
        stop = asyncio.Event()
        settings = ExportSettings(
            self.place, patience=self.patience, schedules=self.schedules, keep=self.keep
        )
        served = asyncio.create_task(
            serve(
                broker or self.broker,
                self.names.prefix,
                self.store,
                settings,
                stop,
                clock=self.clocks,
                reports=SinkReports(
                    self.metrics, self.health, self.clocks.steady, StepWatch(self.clocks)
                ),
            )
        )
        try:
            yield stop
        finally:
            stop.set()
            async with asyncio.timeout(PATIENCE):
                await served

    async def accept(self, entity: str, *rows: tuple[bytes | None, bytes | None]) -> None:
        topic = self.names.accepted(entity)
        await self.broker.publish([ProducerRecord(topic, key, value) for key, value in rows])

    async def send(self, entity: str, count: int, partition: int = 0) -> None:
        """Put records into an input, to be judged by `judge`."""
        topic = self.names.input(entity)
        await self.broker.publish([ProducerRecord(topic, None, b"{}", partition=partition)] * count)

    async def judge(
        self, task: int, judged: Mapping[str, int], read: Mapping[str, int] | None = None
    ) -> None:
        """Say what a worker says of its task after it has judged so far."""
        progress = Checkpoint(dict(read or judged), dict(judged))
        value = msgspec.json.encode(progress)
        topic = self.names.progress
        await self.broker.publish([ProducerRecord(topic, b"%d" % task, value, partition=task)])

    async def ends(self, topics: str) -> dict[str, dict[int, int]]:
        """The ends of all topics that `topics` ("accepted", "inputs") makes, by entity."""
        name = getattr(self.names, topics)
        spans = await self.broker.spans(
            Partition(name(entity), q) for entity in ENTITIES for q in range(PARTITIONS)
        )
        return {
            entity: {q: spans[Partition(name(entity), q)].end for q in range(PARTITIONS)}
            for entity in ENTITIES
        }

    async def ask(self, value: bytes | ExportRequest, key: bytes | None = None) -> None:
        if isinstance(value, ExportRequest):
            key, value = encode_request(value)
        await self.broker.publish([ProducerRecord(self.names.export_requests, key, value)])

    async def answer(self, status: str | None = None) -> Announcement:
        """The next announcement, of that status if one is named."""
        async with asyncio.timeout(PATIENCE):
            while True:
                for message in await self.reader.read(1, 1.0):
                    said = decode_announcement(message.value)
                    assert said is not None
                    assert message.key == said.id.encode()
                    if status in (None, said.status):
                        return said

    async def announced(self, status: str | None = "finished") -> list[Announcement]:
        """All announcements so far, of that status if one is named."""
        place = Partition(self.names.exports, 0)
        end = (await self.broker.spans([place]))[place].end
        reader = self.broker.reader()
        reader.assign({place: 0})
        found = []
        while reader.position(place) < end:
            found += [decode_announcement(m.value) for m in await reader.read(1000, 1.0)]
        await reader.close()
        return [said for said in found if said is not None and status in (None, said.status)]

    async def export_request(self, request_id: str, **options: Any) -> None:
        await self.ask(ExportRequest(request_id, **options))

    async def export(self, request_id: str, **options: Any) -> Announcement:
        await self.export_request(request_id, **options)
        said = await self.answer("finished")
        assert said.request_id == request_id
        return said

    def directories(self) -> list[str]:
        """The finished exports; what is hidden is none."""
        return [path.name for path in self.exports.glob("[!.]*")]


async def a_sink(broker: Broker, names: Names, directory: Path, clock: broker_kit.Clock) -> Sink:
    """A sink whose topics have been made."""
    await broker.create(wanted(names, PARTITIONS, 1024 * 1024).values())
    return Sink(broker, names, directory, clock)


async def fill(sink: Sink) -> None:
    await sink.accept("users", *(user(n) for n in range(1, 6)))
    await sink.accept("users", user(1, first_name="Renamed"), (user(5)[0], None))
    await sink.accept("users", (user(2)[0], b"nonsense"), (b"?", b"{}"))
    await sink.accept("matches", match(10, 1, 2), match(11, 1, 5))
    await sink.accept("events", event(20, 10), event(21, 11), event(22, 99, "2023-05-05T00:00:00Z"))
    await sink.accept("milestones", milestone(1, 1), milestone(2, 5))


def csv_rows(directory: Path, entity: str) -> list[dict[str, str]]:
    (path,) = directory.glob(f"buddy_export_*/{entity}.csv")
    lines = [x for x in path.read_text().splitlines() if not x.startswith("#")]
    return list(csv.DictReader(lines))


@asynccontextmanager
async def consuming(sink: Sink) -> AsyncIterator[tuple[Consumer, RowStore]]:
    store = RowStore(sink.store, sink.names)
    consumer = Consumer(sink.broker, store, sink.names, sink.clocks)
    await consumer.open()
    stop = asyncio.Event()
    running = asyncio.create_task(consumer.run(stop))
    try:
        yield consumer, store
    finally:
        stop.set()
        await running
        await consumer.close()
        store.close()


async def begun(sink: Sink) -> None:
    """Wait until a sink is active: it has noted its schedules."""
    place = Partition(sink.names.schedules, 0)
    schedules = {schedule.name.encode() for schedule in sink.schedules}

    async def ask() -> bool:
        return schedules <= set(await read_table(sink.broker, place))

    await eventually(ask, bool)


def holds(expected: str) -> Callable[[list[str]], bool]:
    """Whether one of the reasons begins like that."""
    return lambda reasons: any(reason.startswith(expected) for reason in reasons)
