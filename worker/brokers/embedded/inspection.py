"""Finds, records and skips damage of an open embedded log."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Callable, Iterable

import structlog

from worker.brokers.embedded.damage import (
    Damage,
    Looked,
    known,
    look_at_file,
    look_for,
    look_through,
    mend_index,
    record,
    skip,
    skipped,
)
from worker.brokers.embedded.store import Connection, snapshot, transaction
from worker.brokers.embedded.topics import Catalogue
from worker.errors import BuddyError, UsageError
from worker.stream import Partition

_log = structlog.get_logger(__name__)


class Inspection:
    """The damage of a log, whichever process found it.

    With `looks`, it writes neither to the database nor log lines; the caller reports `known`.
    """

    def __init__(
        self,
        writing: Connection,
        reading: Connection,
        catalogue: Catalogue,
        to_write: Catalogue,
        *,
        looks: bool,
    ) -> None:
        self._writing = writing
        self._reading = reading
        self._catalogue = catalogue
        self._to_write = to_write
        self._looks = looks
        self._noted: dict[tuple[Partition, int], Damage] = {}
        self._recorded: set[tuple[Partition, int]] = set()
        """The damage in `_noted` that the log itself lists."""

    async def known(self) -> list[Damage]:
        """All damage found so far, by partition and offset. Cheap: does not scan the log.

        With `looks`, damage that only this process has found comes last. Damage that the log no
        longer lists is repaired: `record` records it afresh if it comes back.
        """
        recorded = frozenset(self._recorded)

        def work(connection: sqlite3.Connection) -> list[Damage]:
            with snapshot(connection):
                self._catalogue.refresh(connection)
                return known(connection, self._catalogue)

        found = await self._reading.run(work)
        there = {(each.partition, each.base) for each in found}
        for repaired in recorded - there:
            self._recorded.discard(repaired)
            self._noted.pop(repaired, None)
        if self._looks:
            found += [each for place, each in self._noted.items() if place not in there]
        return found

    async def skipped(self) -> dict[Partition, int]:
        """Per partition, the number of skipped offsets that have not expired. Cheap."""

        def work(connection: sqlite3.Connection) -> dict[Partition, int]:
            with snapshot(connection):
                self._catalogue.refresh(connection)
                return skipped(connection, self._catalogue)

        return await self._reading.run(work)

    async def record(self, found: Iterable[Damage], *, log: bool = True) -> None:
        """Record new damage for all processes; with `log`, also log each finding once."""
        for each in found:
            if (each.partition, each.base) in self._noted:
                continue
            self._noted[each.partition, each.base] = each
            if self._looks:
                continue
            if log:
                _log.error(
                    "log_damaged",
                    topic=each.partition.topic,
                    partition=each.partition.number,
                    offset=each.base,
                    next=each.next,
                    reason=each.reason,
                )
            with contextlib.suppress(BuddyError):  # a full disk, say: at least the log line is out
                await self._writing.run(self._remember, each)
                self._recorded.add((each.partition, each.base))

    async def verify(self, progress: Callable[[int], None]) -> Looked:
        """Scan the whole log while other processes continue, and record the damage.

        `progress` is called after each piece with the number of bytes scanned in it.
        """
        found = Looked()
        for partition in await self._reading.run(self._partitions, found):
            await self._scan(partition, found, progress)
        await self.record((each for each in found.damaged if not each.skipped), log=False)
        found.file += await self._reading.run_long(look_at_file)
        return found

    async def find(self, partition: Partition, offset: int | None) -> Damage:
        """The damage at `offset`, or else the first that is known or that a look finds.

        See `damage.look_for`. Raises `UsageError`, `MissingTopic`.
        """

        def work(connection: sqlite3.Connection) -> Damage:
            with snapshot(connection):
                self._catalogue.refresh(connection)
                return look_for(connection, self._catalogue, partition, offset)

        try:
            return await self._reading.run(work)
        except UsageError:
            if offset is not None:
                raise
        # A command that only reads may have met the damage: it records nothing.
        found = Looked()
        await self._scan(partition, found, lambda _size: None)
        await self.record((each for each in found.damaged if not each.skipped), log=False)
        return await self._reading.run(work)

    async def _scan(
        self, partition: Partition, found: Looked, progress: Callable[[int], None]
    ) -> None:
        position: int | None = 0
        while position is not None:
            looked = await self._reading.run(look_through, self._catalogue, partition, position)
            found.batches += looked.batches
            found.size += looked.size
            found.damaged += looked.damaged
            position = looked.position
            progress(looked.size)

    async def skip(self, found: Damage) -> bool:
        """Make every reader of every process skip the damage; return whether messages are lost.

        If only the index is damaged, rebuild the index; then no message is lost.
        """
        if await self._writing.run_long(mend_index, self._to_write, found):
            return False

        def work(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                self._to_write.refresh(connection)
                skip(connection, self._to_write, found)

        await self._writing.run(work)
        return True

    def _remember(self, connection: sqlite3.Connection, found: Damage) -> None:
        with transaction(connection):
            self._to_write.refresh(connection)
            record(connection, self._to_write, found)

    def _partitions(self, connection: sqlite3.Connection, found: Looked) -> list[Partition]:
        with snapshot(connection):
            self._catalogue.refresh(connection)
        found.file += [
            f"the entry of topic {name} is damaged" for name in self._catalogue.damaged()
        ]
        return [
            Partition(stored.topic.name, number)
            for stored in self._catalogue.every()
            for number in range(stored.topic.partitions)
        ]
