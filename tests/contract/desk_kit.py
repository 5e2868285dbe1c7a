"""A desk on a broker of the contract suites, and the messages that it reads."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from worker.brokers.contract import Broker
from worker.core.decode import Invalid
from worker.core.outbox import ACCEPTED_AT_HEADER, SOURCE_HEADER
from worker.core.rejection import reject, timestamp
from worker.core.topics import Names
from worker.core.violations import Code, Violation
from worker.desk import queries
from worker.desk.follow import bring_up_to_date
from worker.desk.queries import Filter
from worker.desk.store import RejectionStore
from worker.stream import Message, Partition, ProducerRecord

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
        """A row or deletion of the next offset of input partition 0."""
        self._offset += 1
        headers = (
            (SOURCE_HEADER, f"{self.names.input(entity)}/0/{self._offset}".encode()),
            (ACCEPTED_AT_HEADER, timestamp(NOW - 1_000).encode()),
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
