"""The embedded broker: a durable log in one directory on a local disk.

Any number of processes use the directory at once, without a server. A write is on disk once its
call returns: it survives kill -9 and, if the disk honours flushes, a loss of power.

There are two limits. The directory must be on a local disk, because file locks over a network are
unreliable. One process writes at a time. Larger installations use Kafka.

`store` opens the database file, `format` defines its tables, `topics` and `log` read and write
them. `seal`, `batches`, `damage` and `inspection` find damage, after `disk` has asked the disk.
`clock` computes log time. `upkeep` does retention and compaction, `hindrance` reports what blocks
upkeep. `group` assigns partitions to processes, `reader` reads.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import structlog

from worker.brokers.embedded import log
from worker.brokers.embedded.clock import LogClock, LogTime, boot_id, machine_clock
from worker.brokers.embedded.group import EmbeddedMember, Groups
from worker.brokers.embedded.hindrance import Hindrances, full_disk
from worker.brokers.embedded.inspection import Inspection
from worker.brokers.embedded.reader import EmbeddedReader, LogWatch
from worker.brokers.embedded.store import Connection, snapshot, transaction
from worker.brokers.embedded.topics import Catalogue, Stored, create
from worker.brokers.embedded.upkeep import LogUpkeep
from worker.brokers.partitioner import Rotation
from worker.clock import Clock
from worker.errors import BrokerUnavailable, BuddyError, ConfigurationError, MissingTopic
from worker.stream import GroupMember, OffsetRange, Partition, ProducerRecord, Topic

UPKEEP_SECONDS = 5.0
"""A process that writes or calls `hindrance` starts a round of upkeep at most this often."""

_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")  # the names that Kafka accepts

_log = structlog.get_logger(__name__)


class EmbeddedBroker:
    """Implements `contract.Broker`. With `looks`, it only reads and leaves nothing on the disk.

    `clock` determines append times, retention and sessions. All processes that use the directory
    must share its steady clock during one `boot` of the machine. Tests pass both.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Clock | None = None,
        boot: str | None = None,
        session_seconds: float = 6.0,
        looks: bool = False,
    ) -> None:
        clock = clock or machine_clock()
        self._directory = directory
        self._looks = looks
        self._time = LogClock(clock, boot or boot_id())
        self._writing = Connection(directory, writes=True)
        self._reading = Connection(directory, writes=False)
        self._groups = Groups(
            self._writing, self._reading, directory, clock.steady, int(session_seconds * 1000)
        )
        self._catalogue = Catalogue()
        """The topics as the reading connection sees them; the writing connection may be ahead."""
        self._to_write = Catalogue()
        self.inspection = Inspection(
            self._writing, self._reading, self._catalogue, self._to_write, looks=looks
        )
        """Finds, records and skips damage."""
        self._rotation = Rotation()
        self._watch = LogWatch(self._version)
        self._readers: set[EmbeddedReader] = set()
        self._hindrances = Hindrances(clock.steady)
        self._upkeep: asyncio.Task[None] | None = None
        self._upkeep_due = time.monotonic() + UPKEEP_SECONDS

    async def open(self) -> None:
        """Open the log; create its directory if the parent exists. Raises `StateError`.

        With `looks`, create nothing and raise `BrokerUnavailable` if there is no log.
        """
        try:
            if not self._looks:
                await self._writing.open()
            await self._reading.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Leave the groups, end pending reads and release the files. Idempotent."""
        await self._groups.close()
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.wait({self._upkeep})
        for reader in tuple(self._readers):
            await reader.close()
        await self._watch.close()
        await self._reading.close()
        await self._writing.close()

    async def create(self, topics: Iterable[Topic]) -> list[str]:
        """See `contract.Broker.create`. Raises `ConfigurationError` for topics Kafka refuses."""
        wanted = list(topics)
        for topic in wanted:
            if not _TOPIC_NAME.fullmatch(topic.name) or topic.partitions < 1:
                raise ConfigurationError(
                    f"Topic {topic.name!r} with {topic.partitions} partitions cannot be made: use "
                    f"up to 249 of A-Z a-z 0-9 . _ - and at least one partition."
                )

        def work(connection: sqlite3.Connection) -> list[str]:
            with transaction(connection):
                return create(connection, self._to_write, wanted, self._time.read(connection).now)

        return await self._writing.run(work)

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """See `contract.Broker.topics`."""
        return {name: stored.topic for name, stored in (await self._find(names)).items()}

    async def identities(self, names: Iterable[str]) -> dict[str, str]:
        """See `contract.Broker.identities`."""
        return {name: stored.identity for name, stored in (await self._find(names)).items()}

    async def damage(self) -> list[str]:
        """See `contract.Broker.damage`."""
        return [each.line() for each in await self.inspection.known() if not each.skipped]

    def hindrance(self) -> str | None:
        """See `contract.Broker.hindrance`. With `looks`, only whether the disk is full."""
        if self._looks:
            return full_disk(self._directory)
        self._tend()
        return self._hindrances.line()

    async def skipped(self) -> dict[Partition, int]:
        """See `contract.Broker.skipped`."""
        return await self.inspection.skipped()

    async def spans(
        self, partitions: Iterable[Partition], *, uncommitted: bool = False
    ) -> dict[Partition, OffsetRange]:
        """See `contract.Broker.spans`; this log never holds uncommitted messages.

        Only retention moves a start. In a compacted topic, the start may be a gap, as in Kafka.
        """
        del uncommitted
        return await self._reading.run(log.spans, self._catalogue, list(partitions))

    async def committed(self, group: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """See `contract.Broker.committed`."""
        return await self._reading.run(log.committed, self._catalogue, group, list(partitions))

    async def publish(self, messages: Sequence[ProducerRecord]) -> list[tuple[int, int]]:
        """See `contract.Broker.publish`; one call writes all of its messages or none.

        Raises `ClockRefused` if the wall clock has been ahead of log time ever since the broker
        was opened. A broker that has joined a group is exempt: a clock must not stop a service.
        """
        written = await self._writing.run(self._write, messages)
        self._wrote()
        return written

    def reader(self, *, uncommitted: bool = False) -> EmbeddedReader:
        """See `contract.Broker.reader`; this log never holds uncommitted messages."""
        del uncommitted

        async def fetch(
            wanted: Sequence[tuple[Partition, int]], limit: int, share: int
        ) -> list[log.Chunk]:
            try:
                chunks = await self._reading.run(log.fetch, self._catalogue, wanted, limit, share)
            except MissingTopic as error:  # deleted while in use: the topic may come back
                raise BrokerUnavailable(str(error)) from error
            await self.inspection.record(
                chunk.damage for chunk in chunks if chunk.damage is not None
            )
            return chunks

        reader = EmbeddedReader(fetch, self._watch, self._readers.discard)
        self._readers.add(reader)
        return reader

    async def join(self, group: str, topic: str) -> EmbeddedMember:
        """See `contract.Broker.join`. Raises `MissingTopic`."""
        return await self._groups.join(group, topic)

    async def members(self, group: str) -> list[GroupMember]:
        """See `contract.Broker.members`."""
        return await self._groups.members(group)

    async def committer(self, name: str, group: str) -> EmbeddedCommitter:
        """See `contract.Broker.committer`."""

        def work(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                return log.take_over(connection, name)

        epoch = await self._writing.run(work)

        async def commit(
            messages: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
        ) -> list[tuple[int, int]]:
            written = await self._writing.run(
                self._write, messages, _Right(name, epoch, group), offsets
            )
            self._wrote()
            return written

        def leave(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                log.give_up(connection, name, epoch)

        return EmbeddedCommitter(commit, lambda: self._writing.run(leave))

    async def maintain(self) -> None:
        """Run retention and compaction now, in full; do nothing if another process runs them."""
        if self._upkeep is not None:
            await asyncio.wait({self._upkeep})
        await self._do(LogUpkeep(self._directory, self._time, self._hindrances, force=True))

    async def accept_clock(self) -> LogTime:
        """Trust this machine's wall clock from now on; return the previous log time."""

        def work(connection: sqlite3.Connection) -> LogTime:
            with transaction(connection):
                return self._time.accept(connection)

        return await self._writing.run(work)

    async def _find(self, names: Iterable[str]) -> dict[str, Stored]:
        wanted = list(names)

        def work(connection: sqlite3.Connection) -> dict[str, Stored]:
            with snapshot(connection):
                self._catalogue.refresh(connection)
                found = {name: self._catalogue.find(name) for name in wanted}
                return {name: stored for name, stored in found.items() if stored is not None}

        return await self._reading.run(work)

    def _write(
        self,
        connection: sqlite3.Connection,
        messages: Sequence[ProducerRecord],
        right: _Right | None = None,
        offsets: Mapping[Partition, int] = MappingProxyType({}),
    ) -> list[tuple[int, int]]:
        while True:
            try:
                loads = log.arrange(self._to_write, self._rotation, messages)
            except MissingTopic:
                if self._to_write.refresh(connection):
                    continue
                raise
            with transaction(connection):
                if self._to_write.refresh(connection):
                    continue  # the topics changed: place the messages again
                time = self._time.read(connection)
                if right is None and not self._groups.joined:
                    self._time.check(time)  # a service continues; a mere sender can wait
                if right is not None:
                    log.check_fence(connection, right.name, right.epoch)
                self._time.report(time)
                written = log.append_all(connection, loads, time.now, len(messages))
                if right is not None:
                    log.store_offsets(connection, self._to_write, right.group, offsets)
                return written

    def _wrote(self) -> None:
        self._watch.grown()
        self._tend()

    def _tend(self) -> None:
        now = time.monotonic()
        if now >= self._upkeep_due and (self._upkeep is None or self._upkeep.done()):
            self._upkeep_due = now + UPKEEP_SECONDS
            self._upkeep = asyncio.create_task(self._keep_up())

    async def _keep_up(self) -> None:
        try:
            await self._do(LogUpkeep(self._directory, self._time, self._hindrances))
        except BuddyError as error:  # the finished steps stand; the next round tries again
            _log.warning("upkeep_failed", error=str(error))
            self._hindrances.failed(str(error))
        else:
            self._hindrances.succeeded()

    async def _do(self, upkeep: LogUpkeep) -> None:
        """Run all steps; this process's waiting writes run between two steps."""
        try:
            while await self._writing.run(upkeep.step):
                pass
        finally:
            with contextlib.suppress(BuddyError):
                await self._writing.run(upkeep.stop)
            await self.inspection.record(upkeep.damaged)

    async def _version(self) -> int:
        return await self._reading.run(_data_version)


class _Right(NamedTuple):
    """The name and epoch of a committer, and the group whose offsets it commits."""

    name: str
    epoch: int
    group: str


class EmbeddedCommitter:
    """Implements `contract.Committer`."""

    def __init__(
        self,
        commit: Callable[
            [Sequence[ProducerRecord], Mapping[Partition, int]], Awaitable[list[tuple[int, int]]]
        ],
        leave: Callable[[], Awaitable[None]],
    ) -> None:
        self._write = commit
        self._leave = leave
        self._closed = False

    async def commit(
        self, messages: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
    ) -> list[tuple[int, int]]:
        """See `contract.Committer.commit`. Also raises `MissingTopic` and `StateError`."""
        if self._closed:
            raise BrokerUnavailable("The committer is closed: start a new one.")
        return await self._write(messages, offsets)

    async def close(self) -> None:
        """Refuse further commits, and forget the name. A log that is away may keep it."""
        if not self._closed:
            self._closed = True
            with contextlib.suppress(BuddyError):
                await self._leave()


def _data_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version
