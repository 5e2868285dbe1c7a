"""Reads the accepted topics into the store. No other part of the sink polls them.

Promises:

* A message may be read again, but is never lost.
* The event loop is never blocked for long: batches are applied in a thread.
* An outage of the broker is waited out.
* A store that is damaged, or was made from another log than the current one, is wiped and refilled.
* A store that cannot be written ends the consumer (`StateError`).

For a cut, the consumer holds partitions: it brings the store to the exact offset where each is to
stop. Messages read beyond that offset wait in memory, at most one batch of each partition.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import Final

import msgspec
import structlog

from schemas import ENTITIES
from worker.brokers.contract import Broker, Reader
from worker.brokers.sound import sound_spans
from worker.clock import Clock
from worker.core.topics import Names
from worker.errors import WAITED_OUT, MissingTopic, NoAnswer, StateLost
from worker.index.freshness import (
    created_anew,
    is_another,
    lost_ends,
    missed_deletions,
    other_topics,
    outside_the_log,
    reason_to_rebuild,
    tombstones_of,
    topics_anew,
)
from worker.index.resuming import another_log, went_back
from worker.sink.reports import SinkReports, unheard
from worker.sink.store.opening import FORMAT
from worker.sink.store.row_store import RowStore
from worker.sink.store.standstill import standstill
from worker.stream import Message, Partition
from worker.waiting import Backoff, Interval, wait

Advance = Callable[[int, int], None]
"""Called with progress: done, total."""

_BATCH: Final = 2000  # RocksDB holds the GIL for each write: a few milliseconds
_POLL_SECONDS: Final = 0.2
_NONE: Final = 1 << 63
"""A limit that no offset reaches."""
_CURRENT_EVERY_MS: Final = 30_000
_MEASURE_EVERY_MS: Final = 5_000
"""How often to measure the lag, which costs requests to the broker."""
_LOOK_EVERY_MS: Final = 5_000
"""How often to check that the topics are still those that the store was made from."""
_SILENT_MS: Final = 20_000
"""How long no message may arrive while there are messages to read."""
_BROKER, _ACCEPTED, _STORE = "broker", "accepted topics", "store"
"""The parts of its work in which the consumer can be hindered."""

_log = structlog.get_logger(__name__)


class ConsumedCounts(msgspec.Struct):
    """Messages consumed since the start. `expired` ones were gone before they were read."""

    read: int = 0
    changed: int = 0
    deleted: int = 0
    repeats: int = 0
    foreign: int = 0
    expired: int = 0


class Consumer:
    """Consumes the accepted topics of one prefix. Call `open`, then `run` in a task of its own."""

    def __init__(
        self,
        broker: Broker,
        store: RowStore,
        names: Names,
        clock: Clock,
        reports: SinkReports | None = None,
    ) -> None:
        self.counts = ConsumedCounts()
        self._broker = broker
        self._store = store
        self._names = names
        self._topics = [names.accepted(entity) for entity in ENTITIES]
        self._clock = clock
        self._steady = steady = clock.steady
        self._reader: Reader | None = None
        self._positions: dict[Partition, int] = {}
        self._identities: dict[str, str] = {}
        self._others = (
            *(names.export_requests, names.exports, names.schedules, names.replays),
            *map(names.rejected, ENTITIES),
        )
        """Besides the accepted topics: those whose loss it tells."""
        self._limits: dict[Partition, int] = {}
        self._beyond: list[Message] = []
        self._moved = asyncio.Condition()
        self._awaited: tuple[int, dict[Partition, int]] | None = None
        self._current_at = -_CURRENT_EVERY_MS
        self._measuring = Interval(steady, _MEASURE_EVERY_MS)
        self._looked_at = steady()
        self._came_at = steady()
        self._holding = False
        self._was_away = False
        self._wiped: str | None = None
        """Why the store was wiped during a hold."""
        self._reports = reports or unheard(steady)

    async def open(self) -> None:
        """Begin at the store's positions, or at the start if the store can no longer be trusted.

        Raises `MissingTopic`, `BrokerUnavailable`, `StateError`; after `DamagedLog`, call it again.
        """
        self._reader = self._reader or self._broker.reader()
        await self._begin(self._store.damaged)
        self._reports.health.restored()

    async def run(self, stop: asyncio.Event) -> None:
        """Consume until `stop` is set, and finish the batch in hand. Raises `StateError`."""
        outage = Backoff(self._steady)
        damage = Backoff(self._steady, first=1.0, longest=60.0)
        while not stop.is_set():
            try:
                lost = self._store.damaged or await self._compare_log()
                if lost is not None:
                    self._reports.hindered(_STORE, lost)
                    await self._begin(lost)
                await self._step()
                if await self._keep_current():
                    damage.succeeded()
                    self._reports.free(_STORE, after=0)
                if self._measuring.begin_if_over():
                    await self._measure_lag()
                    self._reports.damage(await self._broker.damage())
                    self._reports.log_upkeep(self._broker.hindrance())
                    self._reports.skips(await self._broker.skipped())
                outage.succeeded()
                self._reports.free(_BROKER)
            except WAITED_OUT as error:
                self._was_away = True
                seconds = outage.failed()
                self._reports.hindered(_BROKER, str(error))
                _log.warning("sink_waits_for_broker", error=str(error), seconds=round(seconds, 1))
                await wait(stop, seconds)
            except StateLost:  # from now on `damaged` says so
                await wait(stop, damage.failed())
            self._reports.watch_clock()
            self._reports.alive()  # also in an outage: a restart does not cure it

    async def hold(
        self, entities: Iterable[str], patience: float = 60.0, advance: Advance | None = None
    ) -> dict[Partition, int]:
        """Bring these entities to their current ends and stop there; return the offsets reached.

        The ends include open transactions: `hold` waits for their rows. `run` does the work, and
        goes on with the other entities. `release` ends the hold; call it after an exception too.
        Raises `NoAnswer` after `patience` seconds without progress, `StateLost` if the store is
        wiped, and `BrokerUnavailable`.
        """
        self._holding = True
        self.check_held()
        topics = {self._names.accepted(entity) for entity in entities}
        partitions = [partition for partition in self._positions if partition.topic in topics]
        spans = await self._broker.spans(partitions, uncommitted=True)
        self.check_held()
        reader = self._opened()
        # Messages read in the meantime were committed, and may be in the store already.
        ends = {
            partition: max(spans[partition].end, reader.position(partition))
            for partition in partitions
        }
        self._limits |= ends
        total = left = self._behind(ends)
        while left:
            if advance is not None:
                advance(total - left, total)
            try:
                async with asyncio.timeout(patience):
                    left = await self._less_behind(ends, left)
            except TimeoutError:
                missing = {p: n for p in ends if (n := self._behind({p: ends[p]}))}
                why = standstill(missing, reader.damaged())
                raise NoAnswer(
                    "the accepted topics could not be read to their ends, and none came for"
                    f" {patience:.0f} s: {why}"
                ) from None
        return ends

    def check_held(self) -> None:
        """Raise `StateLost` if the store was wiped since the first `hold`, or must be wiped."""
        lost = self._wiped or self._store.damaged
        if lost is not None:
            raise StateLost(f"the store is read again, begin anew: {lost}")

    def release(self) -> None:
        """End all holds and go on."""
        self._limits = {}
        self._holding = False
        self._wiped = None

    async def close(self) -> None:
        """Stop reading; `run` must have ended."""
        self._reports.flush()
        if self._reader is not None:
            await self._reader.close()

    async def _begin(self, lost: str | None) -> None:
        """Assign the store's positions; first wipe a store that is `lost` or must be rebuilt."""
        # Identities come first: a topic that is recreated after this has another one.
        identities = await self._look_at_topics()
        topics = await self._broker.topics(self._topics)
        for name in self._topics:
            if name not in topics or name not in identities:
                raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
        partitions = [
            Partition(name, number)
            for name in self._topics
            for number in range(topics[name].partitions)
        ]
        now = self._clock.wall()
        spans = await self._broker.spans(partitions)
        saved = self._store.saved()
        reason = (
            lost
            or reason_to_rebuild(saved, topics, spans, now, version=FORMAT, identities=identities)
            or await another_log(self._broker, saved, spans, self._reports.alive)
        )
        held = dict(saved.positions)
        if reason is not None:
            for name in topics_anew(saved.identities, identities):
                self._reports.recreated(name)
            for partition, count in lost_ends(saved, identities, spans).items():
                self._reports.truncated(partition, count)
            await asyncio.to_thread(self._store.wipe, reason)
            held = {}
        await asyncio.to_thread(self._store.note_tombstones, tombstones_of(spans))
        self._reports.rebuilt(self._store.times_wiped)
        if not held:
            held = {partition: spans[partition].start for partition in partitions}
            await asyncio.to_thread(self._store.apply, [], held, identities)
            await asyncio.to_thread(self._store.mark_current, now)
            for partition, start in held.items():
                if start:  # the removed messages may include rows: see `OffsetRange`
                    self._expired(partition, start)
        async with self._moved:
            if self._holding:
                self._wiped = reason
            self._limits, self._beyond, self._awaited = {}, [], None
            self._current_at = self._steady() - _CURRENT_EVERY_MS
            self._positions, self._identities = held, identities
            self._moved.notify_all()
        self._opened().assign(held)

    async def _look_at_topics(self) -> dict[str, str]:
        """The identities of the accepted topics; reports which other topics were recreated."""
        identities = await self._broker.identities([*self._topics, *self._others])
        others = {name: identities.pop(name) for name in self._others if name in identities}
        for name, identity in others.items():
            if is_another(self._store.topics.get(name), identity):
                self._reports.recreated(name)
        await asyncio.to_thread(self._store.note_topics, others)
        return identities

    async def _compare_log(self) -> str | None:
        """Returns why the log is no longer the one that the store was made from; None if it is.

        Messages before the position are compared after every outage, and after the log ended
        before the position.
        """
        lost = await self._compare_topics()
        if lost is not None or not self._was_away:
            return lost
        saved = self._store.saved()
        spans = await self._broker.spans(saved.positions)
        lost = (
            outside_the_log(saved, spans)
            or missed_deletions(saved, spans)
            or await another_log(self._broker, saved, spans, self._reports.alive)
        )
        self._was_away = False
        return lost

    async def _compare_topics(self) -> str | None:
        """Returns why a topic is no longer the one that the store was made from; asks every 5 s."""
        if self._steady() - self._looked_at < _LOOK_EVERY_MS:
            return None
        identities = await self._look_at_topics()
        topics = await self._broker.topics(self._topics)
        for name in self._topics:
            if name not in topics or name not in identities:
                raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
        self._looked_at = self._steady()
        saved = self._store.saved()
        return created_anew(self._identities, identities) or other_topics(saved, topics)

    async def _step(self) -> None:
        reader = self._opened()
        paused = [p for p, limit in self._limits.items() if reader.position(p) >= limit]
        read = await reader.read(_BATCH, _POLL_SECONDS, paused)
        reached = {p: reader.position(p) for p in self._positions}
        anew = went_back(read, reached, self._positions)
        if anew is not None:
            position = self._positions[anew]
            _log.warning(
                "accepted_ended_early", topic=anew.topic, partition=anew.number, position=position
            )
            self._was_away = True
            reader.assign(self._positions)
            return
        # Retained messages come first in each partition. Limits may have changed during the read.
        messages, self._beyond = _parted(self._beyond + read, self._limits)
        limits = self._limits
        positions = {p: min(offset, limits.get(p, _NONE)) for p, offset in reached.items()}
        self._report_expired(reader)
        if messages or positions != self._positions:
            await self._apply(messages, positions)

    async def _apply(self, messages: list[Message], positions: dict[Partition, int]) -> None:
        applied = await asyncio.to_thread(self._store.apply, messages, positions, self._identities)
        self._came_at = self._steady()
        self._reports.applied(applied)
        counts = self.counts
        counts.read += len(messages)
        counts.changed += applied.changed
        counts.deleted += applied.deleted
        counts.repeats += applied.repeats
        counts.foreign += len(applied.refused)
        async with self._moved:
            self._positions = positions
            self._moved.notify_all()

    def _report_expired(self, reader: Reader) -> None:
        for partition, count in reader.expired().items():
            self._expired(partition, count)
        for partition, count in reader.skipped().items():
            self._reports.expired(count)
            _log.error(
                "accepted_skipped", topic=partition.topic, partition=partition.number, count=count
            )

    def _expired(self, partition: Partition, count: int) -> None:
        self.counts.expired += count
        self._reports.expired(count)
        _log.error(
            "accepted_expired", topic=partition.topic, partition=partition.number, count=count
        )

    async def _keep_current(self) -> bool:
        """Stamp the store as current once it reaches the ends noted before; True if stamped."""
        if self._awaited is None and self._steady() - self._current_at >= _CURRENT_EVERY_MS:
            self._current_at = self._steady()
            self._awaited = self._clock.wall(), await self._ends()
        if self._awaited is None or self._behind(self._awaited[1]):
            return False
        if self._awaited[1].keys() != self._positions.keys():  # one cannot be read
            self._awaited = None
            return False
        await asyncio.to_thread(self._store.mark_current, self._awaited[0])
        self._awaited = None
        return True

    async def _measure_lag(self) -> None:
        """Report the store's lag, and whether there are messages to read but none arrive."""
        ends = await self._ends()
        self._reports.lag(ends, self._positions)
        # Requests and answers behind an open transaction reach nobody either.
        others = await self._broker.topics((self._names.export_requests, self._names.exports))
        watched = [*ends]
        watched += [Partition(t.name, n) for t in others.values() for n in range(t.partitions)]
        stable = await sound_spans(self._broker, watched)
        spans = await sound_spans(self._broker, watched, uncommitted=True)
        self._reports.open_transactions(
            {p: (stable[p].end, span.end) for p, span in spans.items() if p in stable}
        )
        silent = (self._steady() - self._came_at) // 1000
        if self._limits or not (behind := self._behind(ends)):
            self._came_at = self._steady()
            self._reports.free(_ACCEPTED, after=0)
        elif silent >= _SILENT_MS // 1000:
            reason = f"{behind} messages are to be read, and none has come for {silent} s"
            self._reports.hindered(_ACCEPTED, reason)
        else:
            self._reports.free(_ACCEPTED, after=0)

    async def _ends(self) -> dict[Partition, int]:
        """Without a partition whose entry is damaged."""
        spans = await sound_spans(self._broker, self._positions)
        return {partition: span.end for partition, span in spans.items()}

    def _behind(self, ends: Mapping[Partition, int]) -> int:
        return sum(
            max(0, end - self._positions.get(partition, 0)) for partition, end in ends.items()
        )

    async def _less_behind(self, ends: Mapping[Partition, int], left: int) -> int:
        async with self._moved:
            await self._moved.wait_for(lambda: self._wiped or self._behind(ends) < left)
        self.check_held()
        return self._behind(ends)

    def _opened(self) -> Reader:
        if self._reader is None:
            raise RuntimeError("open the consumer before it runs")
        return self._reader


def _parted(
    messages: list[Message], limits: Mapping[Partition, int]
) -> tuple[list[Message], list[Message]]:
    """Split messages into those before the limits and the rest; both keep their order."""
    if not limits:
        return messages, []
    before: list[Message] = []
    beyond: list[Message] = []
    for message in messages:
        limit = limits.get(Partition(message.topic, message.partition), _NONE)
        (before if message.offset < limit else beyond).append(message)
    return before, beyond
