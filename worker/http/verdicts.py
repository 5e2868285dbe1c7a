"""Waits for the verdicts of records that were just sent, by following the public topics.

A watch begins before its records are sent, so no verdict can come too early to be seen. A verdict
names its record by the coordinate alone, and an input that is created anew uses coordinates again.
So verdicts count only if the input is still the same once they have been read.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Final, Literal, NamedTuple

import msgspec
import structlog

from worker.brokers.contract import Broker, Reader
from worker.clock import Clock
from worker.core.outbox import SOURCE_HEADER, WARNINGS_HEADER
from worker.core.topics import Names
from worker.errors import BuddyError
from worker.stream import Message, Partition
from worker.waiting import Backoff

_READ: Final = 5_000
_POLL_SECONDS: Final = 0.25
_LINGER: Final = 20
"""Polls without a watch after which following ends."""
MOST_BYTES: Final = 4 * 1024 * 1024
"""The bytes of violations that one request lists: a record may have very many."""

_log = structlog.get_logger(__name__)


class Verdict(msgspec.Struct, frozen=True, omit_defaults=True):
    """The verdict of one record. `violations` as in its rejection; `warnings` are their codes.

    `violations` is None if the record is accepted, or if there is no room for them.
    """

    verdict: Literal["accepted", "rejected"]
    violations: msgspec.Raw | None = None
    warnings: tuple[str, ...] = ()


class _Rejected(msgspec.Struct):
    violations: msgspec.Raw


_rejected = msgspec.json.Decoder(_Rejected)


class SentBefore(NamedTuple):
    """Records that were sent before a watch begins, and where topics ended before they were."""

    identity: str | None
    """Of the input that they were sent to."""
    since: Mapping[Partition, int]
    coordinates: Collection[str]


class VerdictWatch:
    """The verdicts of the records of one request: `expect` what was sent, then `wait`."""

    def __init__(
        self, reader: _TopicReader, identity: str | None, *, reads_back: bool = False
    ) -> None:
        """`identity` is that of the input before anything was sent.

        `reads_back`: the records may have been judged again since. The last rejection counts, and
        not if the record has been accepted: its row is there.
        """
        self.found: dict[str, Verdict] = {}
        """By the coordinate of the record."""
        self.is_lost = False
        """Whether the input is not the one any more that the records may have been sent to."""
        self._room = MOST_BYTES
        self._reader = reader
        self._identity = identity
        self._open: set[str] = set()
        self._reads_back = reads_back
        """Until `caught_up`."""
        self._early: dict[str, Message] = {}
        self._is_sending = False
        self._done = asyncio.Event()

    @asynccontextmanager
    async def sending(self) -> AsyncIterator[None]:
        """Meanwhile, keep the verdicts of all records: some may be of records being sent."""
        self._is_sending = True
        try:
            yield
        finally:
            self._is_sending = False
            self._early.clear()

    def expect(self, coordinates: Iterable[str]) -> None:
        """Expect verdicts of these records. Call this within `sending`."""
        self._open.update(coordinates)
        for coordinate in self._open & self._early.keys():
            self._take(coordinate, self._early[coordinate])

    async def wait(self, seconds: float) -> None:
        """Wait until all verdicts are there, but not longer than this.

        `found` is empty if the input was created anew, or if the broker cannot tell. Until the
        watch has `caught_up`, a record that is rejected in it may have been accepted later.
        """
        if self._open:
            self._done.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await self._done.wait()
        try:
            self.is_lost = await self._reader.input_identity() != self._identity
        except BuddyError as error:
            _log.warning("verdicts_not_read", error=str(error))
            self.found.clear()
        if self.is_lost:
            self.found.clear()

    @property
    def is_final(self) -> bool:
        """Whether no record that is rejected in `found` may have been accepted since."""
        return not self._reads_back

    def caught_up(self) -> None:
        """All verdicts that there were when the watch began have been seen."""
        self._reads_back = False
        self._open -= self.found.keys()
        if not self._open:
            self._done.set()

    def see(self, coordinate: str, message: Message) -> None:
        """Look at a verdict of any record."""
        if coordinate in self._open:
            self._take(coordinate, message)
        elif self._is_sending:
            self._early[coordinate] = message

    def _take(self, coordinate: str, message: Message) -> None:
        verdict = self._reader.verdict_in(message)
        if verdict is not None:
            self._room += _size(self.found.get(coordinate))
            if _size(verdict) > self._room:
                verdict = Verdict(verdict.verdict)
            self._room -= _size(verdict)
            self.found[coordinate] = verdict
            if not self._reads_back or verdict.verdict == "accepted":
                self._open.discard(coordinate)
            if not self._open:
                self._done.set()


def _size(verdict: Verdict | None) -> int:
    return 0 if verdict is None or verdict.violations is None else len(bytes(verdict.violations))


class VerdictWatches:
    """Follows the verdicts of entities for the requests that wait for some."""

    def __init__(self, broker: Broker, names: Names) -> None:
        self._broker = broker
        self._names = names
        self._readers: dict[str, _TopicReader] = {}

    @asynccontextmanager
    async def watch(
        self, entity: str, earlier: SentBefore | None = None
    ) -> AsyncIterator[VerdictWatch]:
        """A watch that begins now, or with `earlier` records: then these are expected.

        Raises MissingTopic, BrokerUnavailable.
        """
        if earlier is not None:
            reader = _TopicReader(self._broker, self._names, entity, earlier.since)
        else:
            reader = self._shared(entity)
        identity = await reader.input_identity() if earlier is None else earlier.identity
        watch = VerdictWatch(reader, identity, reads_back=earlier is not None)
        watch.expect(() if earlier is None else earlier.coordinates)
        reader.watches.add(watch)
        try:
            await reader.started()
            yield watch
        finally:
            reader.watches.discard(watch)
            if earlier is not None:
                await reader.close()

    def _shared(self, entity: str) -> _TopicReader:
        reader = self._readers.get(entity)
        if reader is None or reader.has_ended:
            reader = self._readers[entity] = _TopicReader(self._broker, self._names, entity, {})
        return reader

    async def close(self) -> None:
        """Stop following. Requests must have ended."""
        for reader in self._readers.values():
            await reader.close()


class _TopicReader:
    """Reads the accepted and rejected topic of one entity, as long as somebody watches.

    It begins at the offsets `since`, or at the end of a partition that is not there.
    """

    def __init__(
        self, broker: Broker, names: Names, entity: str, since: Mapping[Partition, int]
    ) -> None:
        self._since = since
        self.watches: set[VerdictWatch] = set()
        self.has_ended = False
        self._broker = broker
        self._input = names.input(entity)
        self._topics = (names.accepted(entity), names.rejected(entity))
        self._rejected_topic = names.rejected(entity)
        self._ends: Mapping[Partition, int] = {}
        """Where the topics ended at the start, until it has read up to there."""
        self._opening: asyncio.Task[Reader] | None = None
        self._running: asyncio.Task[None] | None = None

    async def started(self) -> None:
        """Wait until it reads from the ends that the topics had at the first call, or later."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        try:
            reader = await asyncio.shield(self._opening)
        except Exception:
            self.has_ended = True
            raise
        if self._running is None:
            self._running = asyncio.create_task(self._run(reader))

    async def input_identity(self) -> str | None:
        """The identity of the input; None if it is missing. Raises BrokerUnavailable."""
        return (await self._broker.identities([self._input])).get(self._input)

    def verdict_in(self, message: Message) -> Verdict | None:
        """The verdict in a message; None if no worker wrote it."""
        try:
            if message.topic == self._rejected_topic:
                return Verdict("rejected", _rejected.decode(message.value or b"").violations.copy())
            warnings = dict(message.headers).get(WARNINGS_HEADER, b"").decode()
        except (ValueError, msgspec.MsgspecError, RecursionError):
            return None
        return Verdict("accepted", warnings=tuple(warnings.split(",")) if warnings else ())

    async def close(self) -> None:
        self.has_ended = True
        for task in (self._opening, self._running):
            if task is not None:
                await asyncio.wait({task})

    async def _open(self) -> Reader:
        topics = await self._broker.topics(self._topics)
        spans = await self._broker.spans(
            Partition(name, number)
            for name in self._topics
            for number in range(topics[name].partitions if name in topics else 1)
        )
        reader = self._broker.reader()
        reader.assign({p: self._since.get(p, span.end) for p, span in spans.items()})
        self._ends = {p: span.end for p, span in spans.items()}
        return reader

    async def _run(self, reader: Reader) -> None:
        idle = 0
        backoff = Backoff(Clock().steady)
        try:
            while not self.has_ended:
                idle = 0 if self.watches else idle + 1
                if idle >= _LINGER:
                    break
                try:
                    for message in await reader.read(_READ, _POLL_SECONDS):
                        self._see(message)
                    self._look_whether_caught_up(reader)
                    backoff.succeeded()
                except BuddyError as error:  # whoever waits gets no verdict in time
                    _log.warning("verdicts_not_read", error=str(error))
                    await asyncio.sleep(backoff.failed())
        finally:
            self.has_ended = True
            await reader.close()

    def _look_whether_caught_up(self, reader: Reader) -> None:
        # Behind damaged rejections there may be later ones, but nothing that makes a row.
        passed = {p for p in reader.damaged() if p.topic == self._rejected_topic}
        if self._ends and all(
            reader.position(p) >= end or p in passed for p, end in self._ends.items()
        ):
            self._ends = {}
            for watch in self.watches:
                watch.caught_up()

    def _see(self, message: Message) -> None:
        if self.watches:
            source = dict(message.headers).get(SOURCE_HEADER)
            if source is not None:
                coordinate = source.decode(errors="replace")
                for watch in self.watches:
                    watch.see(coordinate, message)
