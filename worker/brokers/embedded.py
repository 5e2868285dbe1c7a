"""The embedded broker: a durable log in one directory of this machine's disk.

Any number of processes use the directory at once, no server runs. What a call returned from is on
the disk: it survives kill -9 and, as far as the disk keeps its word, loss of power. The limits:
the directory lies on a local disk (file locks over a network are not to be trusted), and one
process writes at a time. What outgrows that runs on Kafka.

`embedded_store` has the database file, `embedded_log` the topics and messages in it,
`embedded_upkeep` compaction and retention, `embedded_group` membership, `embedded_reader` reading.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import structlog

from worker.brokers import embedded_log as log
from worker.brokers.contract import GroupMember, Outgoing, Partition, Span, Topic
from worker.brokers.embedded_group import EmbeddedMember, Groups
from worker.brokers.embedded_reader import EmbeddedReader, Watch
from worker.brokers.embedded_store import Connection, transaction
from worker.brokers.embedded_upkeep import Upkeep
from worker.brokers.partitioner import Rotation
from worker.errors import BrokerUnavailable, BuddyError, ConfigurationError

UPKEEP_SECONDS = 5.0
"""A process that writes looks at most this often whether something wants compaction or expired."""

_TOPIC_NAME = re.compile(r"[A-Za-z0-9._-]{1,249}")  # what Kafka takes

_log = structlog.get_logger(__name__)


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


class EmbeddedBroker:
    """See `contract.Broker`. `clock` gives milliseconds, for append times, retention, sessions.

    One that only looks leaves nothing on the disk, and can do no more than ask and read.
    """

    def __init__(
        self,
        directory: Path,
        *,
        clock: Callable[[], int] = _milliseconds,
        session_seconds: float = 6.0,
        looks: bool = False,
    ) -> None:
        self._directory = directory
        self._looks = looks
        self._clock = clock
        self._writing = Connection(directory, writes=True)
        self._reading = Connection(directory, writes=False)
        self._groups = Groups(
            self._writing, self._reading, directory, clock, int(session_seconds * 1000)
        )
        self._catalogue = log.Catalogue()
        self._rotation = Rotation()
        self._watch = Watch(self._version)
        self._readers: set[EmbeddedReader] = set()
        self._upkeep: asyncio.Task[None] | None = None
        self._upkeep_due = time.monotonic() + UPKEEP_SECONDS

    async def open(self) -> None:
        """Open the log, and make its directory if the parent exists. Raises `StateError`.

        One that only looks makes nothing: `BrokerUnavailable` where there is no log.
        """
        try:
            if not self._looks:
                await self._writing.open()
            await self._reading.open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Leave the groups, end the waits, release the files; calling it again does nothing."""
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
        """See `contract.Broker.create`. Raises `ConfigurationError` for what Kafka refuses too."""
        wanted = list(topics)
        for topic in wanted:
            if not _TOPIC_NAME.fullmatch(topic.name) or topic.partitions < 1:
                raise ConfigurationError(
                    f"Topic {topic.name!r} with {topic.partitions} partitions cannot be made: use "
                    f"up to 249 of A-Z a-z 0-9 . _ - and at least one partition."
                )

        def work(connection: sqlite3.Connection) -> list[str]:
            with transaction(connection):
                return log.create(connection, wanted, self._clock())

        return await self._writing.run(work)

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """See `contract.Broker.topics`."""
        wanted = list(names)

        def work(connection: sqlite3.Connection) -> dict[str, Topic]:
            found = (self._catalogue.find(connection, name) for name in wanted)
            return {stored.topic.name: stored.topic for stored in found if stored is not None}

        return await self._reading.run(work)

    async def identities(self, names: Iterable[str]) -> dict[str, str]:
        """See `contract.Broker.identities`."""
        return dict.fromkeys(await self.topics(names), "1")

    async def spans(
        self, partitions: Iterable[Partition], *, uncommitted: bool = False
    ) -> dict[Partition, Span]:
        """See `contract.Broker.spans`; nothing here is ever in the log uncommitted.

        Retention alone moves a start: in a compacted topic it can be a gap, as in Kafka.
        """
        del uncommitted
        return await self._reading.run(log.spans, self._catalogue, list(partitions))

    async def committed(self, group: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """See `contract.Broker.committed`."""
        return await self._reading.run(log.committed, self._catalogue, group, list(partitions))

    async def publish(self, messages: Sequence[Outgoing]) -> list[tuple[int, int]]:
        """See `contract.Broker.publish`; here all of them are written, or none."""

        def work(connection: sqlite3.Connection) -> list[tuple[int, int]]:
            loads = log.arrange(connection, self._catalogue, self._rotation, messages)
            with transaction(connection):
                return log.append_all(connection, loads, self._clock(), len(messages))

        written = await self._writing.run(work)
        self._wrote()
        return written

    def reader(self) -> EmbeddedReader:
        """See `contract.Broker.reader`."""

        async def fetch(wanted: Sequence[tuple[Partition, int]], limit: int) -> list[log.Chunk]:
            return await self._reading.run(log.fetch, self._catalogue, wanted, limit)

        reader = EmbeddedReader(fetch, self._watch, self._readers.discard)
        self._readers.add(reader)
        return reader

    async def join(self, group: str, topic: str) -> EmbeddedMember:
        """See `contract.Broker.join`. Raises `MissingTopic`."""
        stored = await self._reading.run(self._catalogue.need, topic)
        return await self._groups.join(group, stored.topic)

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
            messages: Sequence[Outgoing], offsets: Mapping[Partition, int]
        ) -> list[int]:
            written = await self._writing.run(
                self._commit, _Right(name, epoch, group), messages, offsets
            )
            self._wrote()
            return [offset for _, offset in written]

        return EmbeddedCommitter(commit)

    async def maintain(self) -> None:
        """Expire and compact all that can be, now; nothing if another process is at it."""
        if self._upkeep is not None:
            await asyncio.wait({self._upkeep})
        await self._do(Upkeep(self._directory, self._clock, force=True))

    def _commit(
        self,
        connection: sqlite3.Connection,
        right: _Right,
        messages: Sequence[Outgoing],
        offsets: Mapping[Partition, int],
    ) -> list[tuple[int, int]]:
        loads = log.arrange(connection, self._catalogue, self._rotation, messages)
        with transaction(connection):
            log.check_fence(connection, right.name, right.epoch)
            written = log.append_all(connection, loads, self._clock(), len(messages))
            log.store_offsets(connection, self._catalogue, right.group, offsets)
        return written

    def _wrote(self) -> None:
        self._watch.grown()
        now = time.monotonic()
        if now >= self._upkeep_due and (self._upkeep is None or self._upkeep.done()):
            self._upkeep_due = now + UPKEEP_SECONDS
            self._upkeep = asyncio.create_task(self._keep_up())

    async def _keep_up(self) -> None:
        try:
            await self._do(Upkeep(self._directory, self._clock))
        except BuddyError as error:  # what was written stands; the next round tries again
            _log.warning("upkeep_failed", error=str(error))

    async def _do(self, upkeep: Upkeep) -> None:
        """All steps; between two of them, writes of this process that wait go first."""
        try:
            while await self._writing.run(upkeep.step):
                pass
        finally:
            with contextlib.suppress(BuddyError):
                await self._writing.run(upkeep.stop)

    async def _version(self) -> int:
        return await self._reading.run(_data_version)


class _Right(NamedTuple):
    """In whose name, by which take-over, and for which group a committer writes."""

    name: str
    epoch: int
    group: str


class EmbeddedCommitter:
    """See `contract.Committer`."""

    def __init__(
        self,
        commit: Callable[[Sequence[Outgoing], Mapping[Partition, int]], Awaitable[list[int]]],
    ) -> None:
        self._write = commit
        self._closed = False

    async def commit(
        self, messages: Sequence[Outgoing], offsets: Mapping[Partition, int]
    ) -> list[int]:
        """See `contract.Committer.commit`. Raises `MissingTopic` and `StateError` as well."""
        if self._closed:
            raise BrokerUnavailable("The committer is closed: start a new one.")
        return await self._write(messages, offsets)

    async def close(self) -> None:
        """Refuse further commits; there is nothing to release."""
        self._closed = True


def _data_version(connection: sqlite3.Connection) -> int:
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version
