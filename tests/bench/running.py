"""Records through running services: sent beforehand, timed by what stands in the log afterwards.

Nobody watches while it runs, so that watching takes nothing away: the broker's append times say
when each outcome came. Reading begins with the log line `task_started` of the first task.
"""

from __future__ import annotations

import asyncio
import time
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from itertools import islice
from typing import Any, NamedTuple

from schemas import ENTITIES
from tests.acceptance.kit import Buddy, Service
from tests.bench.figures import Cost
from tests.bench.machine import cpu_seconds
from worker.brokers.contract import Broker, Reader
from worker.cli.connect_broker import connect
from worker.cli.settings import Settings
from worker.core.outbox import SOURCE_HEADER
from worker.core.topics import Names, wanted
from worker.stream import OffsetRange, Partition, ProducerRecord

PARTITIONS = 4
RECORD_LIMIT = 1024 * 1024
GRACE_SECONDS = 0
"""None, so that the verdict on an orphan waits for the frontier and not for the clock."""

_PUBLISH = 2_000  # as `buddy send`
_QUIET_SECONDS = 0.3
_PATIENCE_SECONDS = 60.0


Settled = Callable[[], Awaitable[None]]


class Span(NamedTuple):
    """When the outcomes came, in seconds since 1970: 99 % of them, and the last."""

    most: float
    last: float


class Times(NamedTuple):
    """One run: records a second up to 99 % of the outcomes; what it took up to the last.

    `cpu` are the CPU seconds by the services' names, used in the `watched` seconds: from the making
    of the `Run` until everything was quiet.
    """

    to_most: float
    cost: Cost
    cpu: dict[str, float]
    watched: float


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[Broker]:
    """The broker, for as long as it is needed."""
    broker = connect(Settings(broker=url), {})
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


@contextmanager
def ended(buddy: Buddy) -> Iterator[Buddy]:
    """Whatever happens, its services do not stay."""
    try:
        yield buddy
    finally:
        buddy.stop_all()


async def create(broker: Broker, names: Names, partitions: int = PARTITIONS) -> None:
    """All topics of that prefix."""
    await broker.create(wanted(names, partitions, RECORD_LIMIT).values())


async def publish(broker: Broker, messages: Iterable[ProducerRecord]) -> tuple[int, float]:
    """Send them as `buddy send` does: how many, and how many a second without the first batch.

    That one connects, and on Kafka waits until the new topics take it.
    """
    rest = iter(messages)
    sent = first = len(await broker.publish(list(islice(rest, _PUBLISH))))
    start = time.perf_counter()
    while batch := list(islice(rest, _PUBLISH)):
        sent += len(await broker.publish(batch))
    return sent, (sent - first) / (time.perf_counter() - start)


async def publish_at_once(broker: Broker, messages: Sequence[ProducerRecord]) -> float:
    """Send them in one transaction: services that run see all or nothing; when that was.

    So a backlog comes to services that have settled, and their start does not count.
    """
    committer = await broker.committer("bench-sender", "bench")
    try:
        await committer.commit(messages, {})
        return time.time()
    finally:
        await committer.close()


class Run:
    """The time between the start of reading and the last outcome, seen from outside."""

    def __init__(
        self,
        names: Names,
        services: Sequence[Service],
        total: int,
        partitions: int = PARTITIONS,
    ) -> None:
        self._progress_places = [Partition(names.progress, n) for n in range(partitions)]
        self._services = services
        self._total = total
        self._before = [cpu_seconds(service.process.pid) for service in services]
        self._after = self._before
        self._began = self._ended = time.monotonic()
        outcomes = [names.accepted(entity) for entity in ENTITIES]
        outcomes += [names.rejected(entity) for entity in ENTITIES]
        self._outcomes = [Partition(name, n) for name in outcomes for n in range(partitions)]

    async def finish(self, broker: Broker, settled: Settled | None = None) -> Span:
        """Wait until every record has its outcome; when they came.

        With `settled` the broker is the embedded one, where each outcome takes one offset and
        nothing else does: the ends alone tell how many there are (compaction may take some away),
        and `settled` is awaited before anything is read. Raises RuntimeError when nothing more
        comes, or a record has two outcomes.
        """
        log = broker.reader()
        log.assign(dict.fromkeys(self._outcomes, 0))
        times = array("d")
        sources: set[bytes] = set()
        try:
            async with self._progress(broker) as progress:
                complete = False
                while not complete:
                    spans = await self._quiet(broker, progress)
                    if settled is not None:
                        await settled()
                    while any(log.position(place) < span.end for place, span in spans.items()):
                        for message in await log.read(5_000, _QUIET_SECONDS):
                            times.append(message.timestamp / 1000)
                            sources.add(dict(message.headers).get(SOURCE_HEADER, b""))
                    complete = settled is not None or len(times) >= self._total
        finally:
            await log.close()
        if len(sources) < len(times):
            raise RuntimeError("a record has two outcomes")
        ordered = sorted(times)
        return Span(ordered[int(0.99 * len(ordered)) - 1], ordered[-1])

    async def settle(self, broker: Broker) -> None:
        """Wait until as much has come as is to come, and it is quiet."""
        async with self._progress(broker) as progress:
            await self._quiet(broker, progress)

    @asynccontextmanager
    async def _progress(self, broker: Broker) -> AsyncIterator[Reader]:
        reader = broker.reader()
        reader.assign(dict.fromkeys(self._progress_places, 0))
        try:
            yield reader
        finally:
            await reader.close()

    async def _quiet(self, broker: Broker, progress: Reader) -> dict[Partition, OffsetRange]:
        """Wait for a moment in which nothing is committed and the ends are far enough.

        Each commit writes progress: while it does, the outcomes are left alone. On Kafka the ends
        count transaction markers too, so this may come a little early.
        """
        quiet = 0.0
        while True:
            if await progress.read(5_000, _QUIET_SECONDS):
                quiet = 0.0
                continue
            quiet += _QUIET_SECONDS
            spans = await broker.spans(self._outcomes)
            ends = sum(span.end for span in spans.values())
            for service in self._services:
                if service.process.poll() is not None:
                    raise RuntimeError(f"{service.name} has ended:\n{service}")
            if quiet >= _PATIENCE_SECONDS:
                raise RuntimeError(f"{self._total} records, and only {ends} outcomes have come")
            if ends >= self._total:
                self._after = [cpu_seconds(service.process.pid) for service in self._services]
                self._ended = time.monotonic()
                return spans

    def times(self, start: float, span: Span) -> Times:
        """What it took since that start; `finish` must have returned."""
        cpu: dict[str, float] = {}
        for service, before, after in zip(self._services, self._before, self._after, strict=True):
            cpu[service.name] = cpu.get(service.name, 0.0) + after - before
        return Times(
            self._total * 0.99 / (span.most - start),
            Cost(self._total, span.last - start, sum(cpu.values())),
            cpu,
            self._ended - self._began,
        )


async def started(service: Service) -> float:
    """When its first task was ready to read, in seconds since 1970."""
    await asyncio.to_thread(service.wait_for, "task_started")
    return moment(service.logged("task_started")[0])


def moment(event: dict[str, Any]) -> float:
    """When a line was logged, in seconds since 1970."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()
