"""Reading the accepted topics into the store: the one place that polls them.

Promises: what is applied is read again at most, never lost; the event loop is never held for long
(a batch is applied in a thread); an outage of the broker is waited out, a store that cannot be
written ends it (`StateError`). For a cut, partitions are held: the store is brought to exactly the
offset where each was to stop, and what has been read beyond waits in memory (a batch of each
partition at most).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec
import structlog

from schemas import ENTITIES
from worker.brokers.contract import Broker, Message, Partition, Reader
from worker.errors import BrokerUnavailable, MissingTopic, NoAnswer
from worker.index.freshness import Saved, reason_to_rebuild
from worker.sink.reports import Reports, unheard
from worker.sink.store import FORMAT, RowStore
from worker.topics import Names

Clock = Callable[[], int]
"""Milliseconds since 1970."""
Advance = Callable[[int, int], None]
"""Told of progress: done, of total."""

_BATCH: Final = 2000  # RocksDB holds the interpreter while it writes: a few milliseconds
_POLL_SECONDS: Final = 0.2
_NONE: Final = 1 << 63
"""A limit that no offset reaches."""
_CURRENT_EVERY_MS: Final = 30_000
_FIRST_PAUSE: Final = 0.2
_LAST_PAUSE: Final = 5.0

_log = structlog.get_logger(__name__)


class Counts(msgspec.Struct):
    """What was consumed since the start. `expired` messages were gone before they were read."""

    read: int = 0
    changed: int = 0
    deleted: int = 0
    repeats: int = 0
    unreadable: int = 0
    expired: int = 0


class Consumer:
    """Consumes the accepted topics of one prefix; `open`, then `run` in a task of its own."""

    def __init__(
        self,
        broker: Broker,
        store: RowStore,
        names: Names,
        clock: Clock,
        reports: Reports | None = None,
    ) -> None:
        self.counts = Counts()
        self._broker = broker
        self._store = store
        self._names = names
        self._topics = [names.accepted(entity) for entity in ENTITIES]
        self._clock = clock
        self._reader: Reader | None = None
        self._positions: dict[Partition, int] = {}
        self._limits: dict[Partition, int] = {}
        self._beyond: list[Message] = []
        self._moved = asyncio.Condition()
        self._awaited: tuple[int, dict[Partition, int]] | None = None
        self._looked_at = 0
        self._reports = reports or unheard(clock)

    async def open(self) -> None:
        """Begin where the store stands, or at the start where it cannot be trusted any more.

        Raises `MissingTopic`, `BrokerUnavailable`, `StateError`.
        """
        topics = await self._broker.topics(self._topics)
        for name in self._topics:
            if name not in topics:
                raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
        places = [
            Partition(name, number)
            for name in self._topics
            for number in range(topics[name].partitions)
        ]
        now = self._clock()
        spans = await self._broker.spans(places)
        ours = set(self._topics)
        held = {p: o for p, o in self._store.positions().items() if p.topic in ours}
        saved = Saved(FORMAT, self._store.last_current, held)
        reason = reason_to_rebuild(saved, topics, spans, now, version=FORMAT)
        if reason is not None:
            await asyncio.to_thread(self._store.wipe, reason)
            held = {}
        if self._store.rebuilt is not None:
            _log.warning("sink_store_rebuilt", reason=self._store.rebuilt)
        if not held:
            held = {place: spans[place].start for place in places}
            await asyncio.to_thread(self._store.apply, [], held)
            await asyncio.to_thread(self._store.stamp_current, now)
        self._positions = held
        self._reader = self._broker.reader()
        self._reader.assign(held)
        self._reports.health.restored()

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set, and finish the batch in hand. Raises `StateError`."""
        pause = _FIRST_PAUSE
        while not stop.is_set():
            try:
                await self._step()
                await self._keep_current()
                if self._reports.lag_is_due():
                    self._reports.lag(await self._ends(), self._positions)
                    self._reports.damage(await self._broker.damage())
                self._reports.alive()
            except BrokerUnavailable as error:
                self._reports.alive()  # an outage is waited out: a restart cures none
                _log.warning("sink_waits_for_broker", error=str(error), seconds=pause)
                await sleep(stop, pause)
                pause = min(2 * pause, _LAST_PAUSE)
            else:
                pause = _FIRST_PAUSE

    async def hold(
        self, entities: Iterable[str], patience: float = 60.0, advance: Advance | None = None
    ) -> dict[Partition, int]:
        """Bring these entities to their ends of now and stop there; the offsets, once reached.

        Open transactions count: their rows are waited for. `run` does the work, and goes on with
        other entities; `release` lets go. Raises `NoAnswer` after `patience` seconds without
        progress, and `BrokerUnavailable`; then release as well.
        """
        topics = {self._names.accepted(entity) for entity in entities}
        places = [place for place in self._positions if place.topic in topics]
        spans = await self._broker.spans(places, uncommitted=True)
        reader = self._opened()
        # What has been read meanwhile was committed, and may be in the store already.
        ends = {place: max(spans[place].end, reader.position(place)) for place in places}
        self._limits |= ends
        total = left = self._behind(ends)
        while left:
            if advance is not None:
                advance(total - left, total)
            try:
                async with asyncio.timeout(patience):
                    left = await self._less_behind(ends, left)
            except TimeoutError:
                raise NoAnswer(
                    f"the accepted topics could not be read to their ends: {left} messages are "
                    f"missing and none came for {patience:.0f} s"
                ) from None
        return ends

    def release(self) -> None:
        """Go on with everything that is held."""
        self._limits = {}

    async def close(self) -> None:
        """Stop reading; `run` must have ended."""
        if self._reader is not None:
            await self._reader.close()

    async def _step(self) -> None:
        reader = self._opened()
        paused = [p for p, limit in self._limits.items() if reader.position(p) >= limit]
        read = await reader.read(_BATCH, _POLL_SECONDS, paused)
        # Of each partition what was kept comes first. Limits may have come or gone meanwhile.
        messages, self._beyond = _parted(self._beyond + read, self._limits)
        limits = self._limits
        positions = {p: min(reader.position(p), limits.get(p, _NONE)) for p in self._positions}
        self._report_expired(reader)
        if messages or positions != self._positions:
            await self._apply(messages, positions)

    async def _apply(self, messages: list[Message], positions: dict[Partition, int]) -> None:
        applied = await asyncio.to_thread(self._store.apply, messages, positions)
        self._reports.applied(applied)
        counts = self.counts
        counts.read += len(messages)
        counts.changed += applied.changed
        counts.deleted += applied.deleted
        counts.repeats += applied.repeats
        counts.unreadable += len(applied.unreadable)
        if applied.unreadable:
            place, offset, reason = applied.unreadable[0]
            _log.error(
                "accepted_unreadable",
                count=len(applied.unreadable),
                topic=place.topic,
                partition=place.number,
                offset=offset,
                reason=reason,
            )
        async with self._moved:
            self._positions = positions
            self._moved.notify_all()

    def _report_expired(self, reader: Reader) -> None:
        for place, count in reader.expired().items():
            self.counts.expired += count
            self._reports.expired(count)
            _log.error("accepted_expired", topic=place.topic, partition=place.number, count=count)
        for place, count in reader.skipped().items():
            self._reports.expired(count)
            _log.error("accepted_skipped", topic=place.topic, partition=place.number, count=count)

    async def _keep_current(self) -> None:
        """Stamp the store when it has reached the ends of a moment ago."""
        if self._awaited is None and self._clock() - self._looked_at >= _CURRENT_EVERY_MS:
            self._looked_at = self._clock()
            self._awaited = self._looked_at, await self._ends()
        if self._awaited is not None and not self._behind(self._awaited[1]):
            await asyncio.to_thread(self._store.stamp_current, self._awaited[0])
            self._awaited = None

    async def _ends(self) -> dict[Partition, int]:
        spans = await self._broker.spans(self._positions)
        return {place: span.end for place, span in spans.items()}

    def _behind(self, ends: Mapping[Partition, int]) -> int:
        return sum(max(0, end - self._positions[place]) for place, end in ends.items())

    async def _less_behind(self, ends: Mapping[Partition, int], left: int) -> int:
        async with self._moved:
            await self._moved.wait_for(lambda: self._behind(ends) < left)
            return self._behind(ends)

    def _opened(self) -> Reader:
        if self._reader is None:
            raise RuntimeError("open the consumer before it runs")
        return self._reader


def _parted(
    messages: list[Message], limits: Mapping[Partition, int]
) -> tuple[list[Message], list[Message]]:
    """Those before the limits, and the rest; each in the order in which they came."""
    if not limits:
        return messages, []
    before: list[Message] = []
    beyond: list[Message] = []
    for message in messages:
        limit = limits.get(Partition(message.topic, message.partition), _NONE)
        (before if message.offset < limit else beyond).append(message)
    return before, beyond


async def sleep(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but no longer than until `stop`."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return
