"""Finding, remembering and skipping damage of an embedded log that is open."""

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
    note,
    skip,
    skipped,
)
from worker.brokers.embedded.store import Connection, snapshot, transaction
from worker.brokers.embedded.topics import Catalogue
from worker.errors import BuddyError
from worker.stream import Partition

_log = structlog.get_logger(__name__)


class Inspection:
    """What is damaged in a log, by whichever process it was found.

    One that only `looks` writes nothing, neither into the log nor into log lines: whoever looks
    says what is `known`.
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

    async def known(self) -> list[Damage]:
        """All that was found so far, in the order of the log. Cheap: nothing is looked through."""

        def work(connection: sqlite3.Connection) -> list[Damage]:
            with snapshot(connection):
                self._catalogue.refresh(connection)
                return known(connection, self._catalogue)

        found = await self._reading.run(work)
        if self._looks:
            there = {(each.partition, each.base) for each in found}
            found += [each for place, each in self._noted.items() if place not in there]
        return found

    async def skipped(self) -> dict[Partition, int]:
        """How many offsets of each partition were skipped, and are still in the log. Cheap."""

        def work(connection: sqlite3.Connection) -> dict[Partition, int]:
            with snapshot(connection):
                self._catalogue.refresh(connection)
                return skipped(connection, self._catalogue)

        return await self._reading.run(work)

    async def note(self, found: Iterable[Damage], *, tell: bool = True) -> None:
        """Remember it for all processes, and tell it in one log line; each once."""
        for each in found:
            if (each.partition, each.base) in self._noted:
                continue
            self._noted[each.partition, each.base] = each
            if self._looks:
                continue
            if tell:
                _log.error(
                    "log_damaged",
                    topic=each.partition.topic,
                    partition=each.partition.number,
                    offset=each.base,
                    next=each.next,
                    reason=each.reason,
                )
            with contextlib.suppress(BuddyError):  # a disk that is full: it has been told at least
                await self._writing.run(self._remember, each)

    async def verify(self, progress: Callable[[int], None]) -> Looked:
        """Look through the whole log while others go on; what is damaged is remembered.

        `progress` is told of the bytes that were looked through, piece by piece.
        """
        found = Looked()
        for partition in await self._reading.run(self._partitions, found):
            position: int | None = 0
            while position is not None:
                looked = await self._reading.run(look_through, self._catalogue, partition, position)
                found.batches += looked.batches
                found.size += looked.size
                found.damaged += looked.damaged
                position = looked.position
                progress(looked.size)
        await self.note((each for each in found.damaged if not each.skipped), tell=False)
        found.file += await self._reading.run_long(look_at_file)
        return found

    async def find(self, partition: Partition, offset: int | None) -> Damage:
        """The damage at that offset, or the first known. Raises `UsageError`, `MissingTopic`."""

        def work(connection: sqlite3.Connection) -> Damage:
            with snapshot(connection):
                self._catalogue.refresh(connection)
                return look_for(connection, self._catalogue, partition, offset)

        return await self._reading.run(work)

    async def skip(self, found: Damage) -> bool:
        """Have every reader of every process go on behind it; whether anything is lost.

        Nothing is if the index alone was damaged, which is made again then.
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
            note(connection, self._to_write, found)

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
