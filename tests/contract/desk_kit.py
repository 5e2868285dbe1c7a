"""A desk on a broker of the contract suites, and the messages that it reads."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.contract.broker_kit import unique
from worker.brokers.contract import Broker
from worker.clock import Clock
from worker.core.decode import Invalid
from worker.core.outbox import ACCEPTED_AT_HEADER, SOURCE_HEADER
from worker.core.rejection import reject, timestamp
from worker.core.topics import Names, wanted
from worker.core.violations import Code, Violation
from worker.desk import queries
from worker.desk.follow import bring_up_to_date
from worker.desk.queries import Filter
from worker.desk.reports import DeskReports
from worker.desk.service import DeskService
from worker.desk.store import RejectionStore
from worker.ops.health import Health, ServiceHealth
from worker.ops.metrics import Metrics
from worker.stream import Message, Partition, ProducerRecord

DEADLINE = 30.0
CLOCK = Clock()
OPEN = "buddy_incident_open"
PARTITIONS = 2
NOW = 1_764_547_200_000


class Desk:
    """A desk on a broker whose topics are made for it; it opens its store anew for each look."""

    def __init__(self, broker: Broker, names: Names, directory: Path) -> None:
        self.broker, self.names, self.directory = broker, names, directory
        self.garbage: list[tuple[Partition, int]] = []
        self.missed: list[str] = []
        self._offset = 0

    def rejection(self, entity: str, key: str, code: Code, field: str, **record: str) -> Any:
        """A rejection as a worker writes it; each is of the next offset of input partition 0."""
        self._offset += 1
        found = Violation(code, field, "why", "error")
        text = ",".join(f'"{name}":"{value}"' for name, value in record.items())
        source = Message(
            self.names.input(entity), 0, self._offset, NOW, None, b"{%s}" % text.encode(), ()
        )
        value, _ = reject(entity, source, Invalid(key.encode(), (found,)), NOW, 1 << 20)
        return ProducerRecord(self.names.rejected(entity), key.encode(), value)

    def row(self, entity: str, key: str, value: bytes | None = b"{}") -> ProducerRecord:
        """A row or deletion of the next offset of input partition 0, in the round of all others."""
        self._offset += 1
        headers = (
            (SOURCE_HEADER, f"{self.names.input(entity)}/0/{self._offset}".encode()),
            (ACCEPTED_AT_HEADER, timestamp(NOW).encode()),
        )
        return ProducerRecord(self.names.accepted(entity), key.encode(), value, headers)

    async def publish(self, *records: ProducerRecord) -> None:
        await self.broker.publish(records)

    async def look(
        self, ask: Callable[[RejectionStore], Any] | None = None, *, whole: bool = False
    ) -> Any:
        """Bring the store up to date; what `ask` makes of it, or else records and open ones."""
        store = RejectionStore(self.directory, self.names)
        try:
            await bring_up_to_date(
                self.broker,
                store,
                lambda partition, offset: self.garbage.append((partition, offset)),
                lambda done, total: None,
                self.missed.append,
                whole=whole,
            )
            found = queries.summary(store, Filter())
            return (found.records, found.open) if ask is None else ask(store)
        finally:
            store.close()


class MovedClock(Clock):
    """The clock of the machine, but `ahead` on both clocks, and wrong on the wall clock alone."""

    def __init__(self, wrong: int = 0) -> None:
        self.ahead, self.wrong = 0, wrong
        super().__init__(
            lambda: CLOCK.wall() + self.ahead + self.wrong, lambda: CLOCK.steady() + self.ahead
        )


class Reports(DeskReports):
    """Reports that a test can wait for."""

    def __init__(self, *, tells_steps: bool = True) -> None:
        self.metrics = Metrics()
        self.part: ServiceHealth = Health(self.metrics, CLOCK.steady).part("desk")
        super().__init__(self.metrics, self.part, CLOCK, tells_steps=tells_steps)
        self.passed = asyncio.Condition()
        self.passes = self.waited = 0

    def caught_up(self, replayed: int, rebuilt: int, identity: str) -> None:
        super().caught_up(replayed, rebuilt, identity)
        self.passes += 1
        self._notify()

    def waits(self, what: str, error: Exception, seconds: float) -> None:
        super().waits(what, error, seconds)
        self.waited += 1
        self._notify()

    def _notify(self) -> None:
        async def notify() -> None:
            async with self.passed:
                self.passed.notify_all()

        self.task = asyncio.ensure_future(notify())

    async def until(
        self,
        *,
        passes: int = 0,
        waited: int = 0,
        waits_for: Callable[[], bool] = lambda: True,
    ) -> None:
        """Wait for so many passes and failures in all, and for that condition."""
        async with asyncio.timeout(DEADLINE), self.passed:
            await self.passed.wait_for(
                lambda: self.passes >= passes and self.waited >= waited and waits_for()
            )

    def value(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        return self.metrics.registry.get_sample_value(name, dict(labels or {})) or 0.0

    def reasons(self) -> list[str]:
        return self.part.reasons(CLOCK.steady())


async def new_desk(broker: Broker, directory: Path) -> Desk:
    """A desk of topics of its own."""
    names = Names(unique("desk"))
    await broker.create(wanted(names, PARTITIONS, 1024 * 1024).values())
    return Desk(broker, names, directory / "desk")


@asynccontextmanager
async def served(desk: Desk, reports: Reports, **options: Any) -> AsyncIterator[asyncio.Event]:
    """The service, until the end of the block."""
    stop = asyncio.Event()
    clock = options.pop("clock", CLOCK)
    made = DeskService(desk.broker, desk.names, desk.directory, reports, clock, **options)
    service = asyncio.create_task(made.run(stop))
    try:
        yield stop
    finally:
        stop.set()
        async with asyncio.timeout(DEADLINE):
            await service
