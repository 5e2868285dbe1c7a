"""Records through running services: sent beforehand, timed by what stands in the log afterwards.

Nobody watches while it runs, so that watching takes nothing away: the broker's append times say
when each outcome came. Reading begins with the log line `task_started` of the first task.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import datetime
from typing import Any, NamedTuple

import msgspec

from schemas import ENTITIES
from tests.acceptance.kit import Buddy, Service
from tests.bench.figures import middle
from tests.bench.machine import cpu_seconds
from worker.brokers.connect import connect
from worker.brokers.contract import Broker, Outgoing, Partition, Reader
from worker.brokers.contract import Span as LogSpan
from worker.core.barrier import Progress
from worker.core.outbox import SOURCE_HEADER
from worker.settings import Settings
from worker.topics import Names, wanted

PARTITIONS = 4
RECORD_LIMIT = 1024 * 1024
GRACE_SECONDS = 0
"""None, so that the verdict on an orphan waits for the barrier and not for the clock."""

_PUBLISH = 2_000  # as `buddy send`
_QUIET_SECONDS = 0.3
_PATIENCE_SECONDS = 60.0


Settled = Callable[[], Awaitable[None]]


class Span(NamedTuple):
    """When the outcomes came, in seconds since 1970: 99 % of them, and the last.

    `parked` is how many of the records had to wait, `kept` how many of these got a copy in the log.
    """

    most: float
    last: float
    parked: int
    kept: int


class Times(NamedTuple):
    """One run: records a second up to 99 % of the outcomes and up to the last; CPU seconds.

    `parked` is the share of the records that had to wait, `kept` that of those with a copy.
    """

    to_most: float
    to_last: float
    parked: float
    kept: float
    cpu: dict[str, float]


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


async def create(broker: Broker, names: Names) -> None:
    """All topics of that prefix."""
    await broker.create(wanted(names, PARTITIONS, RECORD_LIMIT).values())


async def publish(broker: Broker, messages: Sequence[Outgoing]) -> float:
    """Send them as `buddy send` does; how many a second, without the first batch.

    That one connects, and on Kafka waits until the new topics take it.
    """
    await broker.publish(messages[:_PUBLISH])
    start = time.perf_counter()
    for first in range(_PUBLISH, len(messages), _PUBLISH):
        await broker.publish(messages[first : first + _PUBLISH])
    return max(0, len(messages) - _PUBLISH) / (time.perf_counter() - start)


class Run:
    """The time between the start of reading and the last outcome, seen from outside."""

    def __init__(self, names: Names, services: Sequence[Service], total: int) -> None:
        self._names = names
        self._services = services
        self._total = total
        self._before = [cpu_seconds(service.process.pid) for service in services]
        self._after = self._before
        outcomes = [names.accepted(entity) for entity in ENTITIES]
        outcomes += [names.rejected(entity) for entity in ENTITIES]
        self._outcomes = [Partition(name, n) for name in outcomes for n in range(PARTITIONS)]

    async def finish(self, broker: Broker, settled: Settled | None = None) -> Span:
        """Wait until every record has its outcome; when they came.

        With `settled` the broker is the embedded one, where each outcome takes one offset and
        nothing else does: the ends alone tell how many there are (compaction may take some away),
        and `settled` is awaited before anything is read. Raises RuntimeError when nothing more
        comes, or a record has two outcomes.
        """
        log = broker.reader()
        log.assign(dict.fromkeys(self._outcomes, 0))
        found: list[tuple[float, bytes]] = []
        try:
            async with self._progress(broker) as progress:
                complete = False
                while not complete:
                    spans = await self._quiet(broker, progress)
                    if settled is not None:
                        await settled()
                    while any(log.position(place) < span.end for place, span in spans.items()):
                        for message in await log.read(5_000, _QUIET_SECONDS):
                            source = dict(message.headers).get(SOURCE_HEADER, b"")
                            found.append((message.timestamp / 1000, source))
                    complete = settled is not None or len(found) >= self._total
        finally:
            await log.close()
        if len({source for _, source in found}) < len(found):
            raise RuntimeError("a record has two outcomes")
        times = sorted(moment for moment, _ in found)
        parked, kept = await self._parked(broker)
        return Span(times[int(0.99 * len(times)) - 1], times[-1], parked, kept)

    async def settle(self, broker: Broker) -> None:
        """Wait until as much has come as is to come, and it is quiet."""
        async with self._progress(broker) as progress:
            await self._quiet(broker, progress)

    async def _parked(self, broker: Broker) -> tuple[int, int]:
        """How many records were parked, and how many of them got a copy in the log.

        What was held stands in the progress of some commit, as long as compaction leaves it there;
        each copy leaves a tombstone, which compaction keeps.
        """
        topics = (self._names.parked, self._names.progress)
        places = [Partition(topic, n) for topic in topics for n in range(PARTITIONS)]
        spans = await broker.spans(places)
        reader = broker.reader()
        reader.assign(dict.fromkeys(places, 0))
        parked: set[tuple[str, int]] = set()
        kept = 0
        try:
            while any(reader.position(place) < span.end for place, span in spans.items()):
                for message in await reader.read(5_000, _QUIET_SECONDS):
                    if message.topic == self._names.parked:
                        entity, _, place = (message.key or b"").decode().split("/")
                        parked.add((f"{entity}/{message.partition}", int(place)))
                        kept += message.value is None
                        continue
                    held = msgspec.json.decode(message.value or b"{}", type=Progress).held
                    for entity, moments in held.items():
                        for offsets in moments.values():
                            parked.update((f"{entity}/{message.partition}", at) for at in offsets)
        finally:
            await reader.close()
        return len(parked), kept

    @asynccontextmanager
    async def _progress(self, broker: Broker) -> AsyncIterator[Reader]:
        reader = broker.reader()
        reader.assign({Partition(self._names.progress, n): 0 for n in range(PARTITIONS)})
        try:
            yield reader
        finally:
            await reader.close()

    async def _quiet(self, broker: Broker, progress: Reader) -> dict[Partition, LogSpan]:
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
                return spans

    def times(self, start: float, span: Span) -> Times:
        """As rates, since that start; `finish` must have returned."""
        used = zip(self._services, self._before, self._after, strict=True)
        return Times(
            self._total * 0.99 / (span.most - start),
            self._total / (span.last - start),
            span.parked / self._total,
            span.kept / self._total,
            {service.name: after - before for service, before, after in used},
        )


def waits(runs: Sequence[Times]) -> str:
    """How many records had to wait, for the note of a figure."""
    parked, kept = middle([run.parked for run in runs]), middle([run.kept for run in runs])
    return f"{parked:.0%} were parked, {kept:.0%} kept in the log"


async def started(service: Service) -> float:
    """When its first task was ready to read, in seconds since 1970."""
    await asyncio.to_thread(service.wait_for, "task_started")
    return moment(service.logged("task_started")[0])


def moment(event: dict[str, Any]) -> float:
    """When a line was logged, in seconds since 1970."""
    return datetime.fromisoformat(event["timestamp"]).timestamp()
