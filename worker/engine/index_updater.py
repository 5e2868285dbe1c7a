"""Feeds the index from the accepted topics; follows the checkpoints of all workers' tasks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from worker.brokers.contract import Broker
from worker.clock import Clock
from worker.core.internal import read_reached
from worker.core.known import IndexDelta
from worker.core.topics import Names
from worker.engine.last_checkpoints import LastCheckpoints
from worker.errors import (
    BrokerUnavailable,
    BuddyError,
    DamagedLog,
    MissingTopic,
    TopicRecreated,
)
from worker.index.freshness import (
    lost_ends,
    missed_deletions,
    outside_the_log,
    reason_to_rebuild,
    tombstones_of,
)
from worker.index.resuming import another_log, went_back
from worker.index.store import VERSION, IndexStore
from worker.stream import Message, OffsetRange, Partition, Topic
from worker.waiting import Backoff

INDEXED: Final = ("users", "matches")
_BATCH: Final = 5_000
_POLL_SECONDS: Final = 0.5
_STEP_SECONDS: Final = 0.2
_REPORT_SECONDS: Final = 10.0

_log = structlog.get_logger(__name__)


class IndexUpdater:
    """Reads the commits of all workers; the only writer of the index.

    `judged` has, by input partition, the offset below which all records are judged, by any
    worker. It is as recent as the checkpoints read so far. Hold `lock` while reading `index`:
    another thread applies rows to it. `news` is set whenever a position has moved. `checkpoints`
    remembers the last checkpoint of each task.
    """

    def __init__(
        self,
        broker: Broker,
        names: Names,
        index: IndexStore,
        identities: Mapping[str, str],
        clock: Clock,
        checkpoints: LastCheckpoints,
    ) -> None:
        self.index = index
        self.lock = asyncio.Lock()
        self.news = asyncio.Event()
        self.ready = asyncio.Event()
        self.on_step: Callable[[], None] = lambda: None
        """Called after each step of restoring."""
        self.on_outage: Callable[[BuddyError | None], None] = lambda _error: None
        """Called with the reason of an outage, and with None after each successful read."""
        self.on_skipped: Callable[[Partition, int], None] = lambda _place, _count: None
        """Called with the number of damaged offsets skipped by order of an operator."""
        self.on_expired: Callable[[Partition, int], None] = lambda _place, _count: None
        """Called with the number of offsets removed before the index read them."""
        self.on_truncated: Callable[[Partition, int], None] = lambda _place, _count: None
        """Called with the number of offsets that the index had read and that are gone."""
        self.on_unreadable: Callable[[Partition, Sequence[int]], None] = lambda _place, _at: None
        """Called with the offsets of messages that are not valid checkpoints."""
        self.judged: dict[Partition, int] = {}
        self.passed: dict[Partition, tuple[int, int]] = {}
        """By input partition of users and matches: the offset, and the append time, up to which all
        records are judged or parked. As recent as the checkpoints read so far."""
        self.truncations = 0
        """How often inputs have lost their last records: offsets that were noted before are void.

        As recent as the checkpoints read so far: the owner of the input says so."""
        self.accepted: list[Partition] = []
        """The partitions that feed the index."""
        self.progress: list[Partition] = []
        self.progress_truncated: set[Partition] = set()
        """Partitions of the progress topic that had lost their last messages at the start."""
        self._followed: dict[Partition, int] = {}
        self._earlier: dict[Partition, int] = {}
        """By input partition: see `Reached.earlier`."""
        self._was_away = False
        self.progress_before: Mapping[str, str] = {}
        """The identity that the index knew of the progress topic, by topic name."""
        self._progress_identity: Mapping[str, str] = {}
        """The identity of the progress topic at the start, by topic name."""
        self._broker = broker
        self._names = names
        self._identities = identities
        self._clock = clock
        self._checkpoints = checkpoints
        self._reader = broker.reader()
        self._delta = IndexDelta([], [])
        self._entities = {names.accepted(entity): entity for entity in INDEXED}

    async def start(self) -> None:
        """Open the index, and empty it if it cannot be trusted.

        Raises StateError, MissingTopic and BrokerUnavailable. The index is closed after an
        exception, so a caller may retry.
        """
        names = [self._names.accepted(entity) for entity in INDEXED]
        wanted = [*names, self._names.progress]
        topics = await self._broker.topics(wanted)
        for name in wanted:
            if name not in topics:  # deleted since the worker checked them
                raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
        self.accepted = [Partition(n, q) for n in names for q in range(topics[n].partitions)]
        self.progress = [
            Partition(self._names.progress, q)
            for q in range(topics[self._names.progress].partitions)
        ]
        spans = await self._broker.spans([*self.accepted, *self.progress])
        self._progress_identity = await self._broker.identities([self._names.progress])
        # Open transactions included: the marker of the last commit may still be on its way.
        whole = await self._broker.spans(self.progress, uncommitted=True)
        identity = self._progress_identity.get(self._names.progress, "")
        self._checkpoints.starts(identity, {p.number: span.end for p, span in whole.items()})
        await asyncio.to_thread(self.index.open)  # in a thread: a checksum reads the whole file
        try:
            await self._resume({name: topics[name] for name in names}, spans)
        except BaseException:
            await asyncio.to_thread(self.index.close)
            raise

    async def _resume(
        self, topics: Mapping[str, Topic], spans: Mapping[Partition, OffsetRange]
    ) -> None:
        """Resume at the positions of the index, or from the start if it cannot be trusted."""
        saved, now = self.index.saved(), self._clock.wall()
        self.progress_before = {p.topic: one.identity for p, one in saved.beside.items()}
        saved = saved.now(spans, self._progress_identity)
        reason = reason_to_rebuild(
            saved, topics, spans, now, version=VERSION, identities=self._identities
        ) or await another_log(self._broker, saved, spans, self.on_step, self._note_other)
        if reason is not None:
            for partition, count in lost_ends(saved, self._identities, spans).items():
                self.on_truncated(partition, count)
            self.index.clear(reason)
        self.index.note_tombstones(tombstones_of({p: spans[p] for p in self.accepted}))
        positions = self.index.positions()
        if not positions:
            self.index.stamp(self._clock.wall())
            for partition in self.accepted:
                if spans[partition].start:  # rows may be missing: see `OffsetRange`
                    self.on_expired(partition, spans[partition].start)
        self._followed = {p: positions.get(p, spans[p].start) for p in self.accepted}
        self._followed |= {p: spans[p].start for p in self.progress}
        self._reader.assign(self._followed)

    def _note_other(self, partition: Partition) -> None:
        if partition in self.progress:
            self.progress_truncated.add(partition)

    async def run(self, stop: asyncio.Event) -> None:
        """Follow the topics until `stop` is set; retry outages and damage with backoff.

        Sets `ready` once it has read up to the ends that the topics had at the start. Raises
        StateError. Raises TopicRecreated if the log is no longer the log that fed the index. It
        checks this after every outage, and when a log ends before a position.
        """
        backoff = Backoff(self._clock.steady)
        while not stop.is_set():
            try:
                if self._was_away:
                    await self._compare()
                    self._was_away = False
                if self.ready.is_set():
                    await self._follow(_POLL_SECONDS)
                else:
                    await self._bootstrap(stop)
                backoff.succeeded()
                self.on_outage(None)
            except (BrokerUnavailable, DamagedLog) as error:
                self._was_away = True
                self.on_outage(error)
                wait = backoff.failed()
                _log.warning("index_not_followed", error=str(error), retry_in=round(wait, 1))
                await asyncio.sleep(wait)

    async def reach(self, until: Mapping[Partition, int], patience: float) -> None:
        """Wait until `run` has read up to these offsets.

        Raises BrokerUnavailable after `patience` seconds.
        """
        try:
            async with asyncio.timeout(patience):
                while self._missing(until):
                    self.news.clear()
                    await self.news.wait()
        except TimeoutError:
            raise BrokerUnavailable(
                f"the accepted topics have given nothing for {patience:.0f} s though "
                f"{self._missing(until)} messages are to come: a transaction has been left open"
            ) from None

    def followed(self) -> dict[Partition, int]:
        """The next offset to read of each partition of the accepted topics."""
        return {p: self._followed[p] for p in self.accepted}

    def take_delta(self) -> IndexDelta:
        """The ids that became known since the last call."""
        delta, self._delta = self._delta, IndexDelta([], [])
        return delta

    async def close(self) -> None:
        """Close the index; `run` must have ended."""
        await self._reader.close()
        await asyncio.to_thread(self.index.close)

    async def _compare(self) -> None:
        """Raise TopicRecreated if the log is not the log from before the outage."""
        try:
            now = await self._broker.identities([self._names.progress])
            # If the progress topic was re-created or deleted, the tasks write it again.
            same = self.progress if now and now == self._progress_identity else []
            spans = await self._broker.spans([*self.accepted, *same])
        except MissingTopic as error:
            raise TopicRecreated(str(error)) from None
        self._checkpoints.identity = now.get(self._names.progress, self._checkpoints.identity)
        async with self.lock:
            saved = self.index.saved().now(spans, now)
        reason = (
            outside_the_log(saved, spans)
            or missed_deletions(saved, spans)
            or await another_log(self._broker, saved, spans)
        )
        if reason is not None:
            raise TopicRecreated(reason)

    async def _bootstrap(self, stop: asyncio.Event) -> None:
        """Read up to the current ends, open transactions included, without a time limit.

        A transaction of a dead worker ends only when another worker takes over its tasks.
        """
        spans = await self._broker.spans([*self.accepted, *self.progress], uncommitted=True)
        until = {partition: span.end for partition, span in spans.items()}
        _log.info("index_restoring", missing=self._missing(until))
        quiet = 0.0
        while self._missing(until) and not stop.is_set():
            quiet = 0.0 if await self._follow(_STEP_SECONDS) else quiet + _STEP_SECONDS
            self.on_step()
            if quiet >= _REPORT_SECONDS:
                quiet = 0.0
                self._report_waiting(until)
        if not self._missing(until):
            _log.info("index_ready", **self.index.counts())
            self.ready.set()

    def _report_waiting(self, until: Mapping[Partition, int]) -> None:
        """Report what gives nothing, although it has messages. Damage is reported elsewhere."""
        damaged = self._reader.damaged()
        waiting = [p for p, end in until.items() if self._followed[p] < end and p not in damaged]
        if not waiting:
            return
        place = waiting[0]
        offset = self._followed[place]
        _log.warning(
            "index_waiting",
            missing=self._missing(until),
            topic=place.topic,
            partition=place.number,
            offset=offset,
        )
        why = (
            f"{place.topic}/{place.number} gives nothing from offset {offset} on: a transaction is"
            " open there, or the partition has no leader"
        )
        self.on_outage(BrokerUnavailable(why))

    async def _follow(self, timeout: float) -> bool:
        messages = await self._reader.read(_BATCH, timeout)
        for partition, count in self._reader.skipped().items():
            if partition.topic in self._entities:  # the task reports holes in its progress, once
                self.on_skipped(partition, count)
        for partition, count in self._reader.expired().items():
            if partition.topic in self._entities:
                self.on_expired(partition, count)
        followed = {p: self._reader.position(p) for p in self._followed}
        anew = went_back(messages, followed, self.followed())
        if anew is not None:
            raise TopicRecreated(
                f"partition {anew.number} of topic {anew.topic} ended before position "
                f"{self._followed[anew]}"
            )
        read = {p: self._followed[p] for p in self.progress}
        if went_back(messages, followed, read) is not None:
            self._was_away = True  # an older log or a new topic: the comparison tells which
            self._checkpoints.went_back()
        rows = [message for message in messages if message.topic in self._entities]
        checkpoints = [message for message in messages if message.topic == self._names.progress]
        if checkpoints:
            identity = self._progress_identity.get(self._names.progress, "")
            async with self.lock:
                self.index.beside(checkpoints, identity, self._clock.wall())
        if rows:
            positions = {p: followed[p] for p in self.accepted}
            identities = {n: self._identities[n] for n in self._entities if n in self._identities}
            async with self.lock:
                delta = await asyncio.to_thread(self.index.apply, rows, positions, identities)
            self._delta.users.extend(delta.users)
            self._delta.matches.extend(delta.matches)
        elif not messages:
            async with self.lock:
                self.index.stamp(self._clock.wall())
        # Rows first: a record that `judged` covers must have its row in the index.
        moved = followed != self._followed
        self._followed = followed
        self._take_checkpoints(checkpoints)
        if moved:
            self.news.set()
        return bool(messages)

    def _take_checkpoints(self, messages: Sequence[Message]) -> None:
        unreadable: dict[Partition, list[int]] = {}
        for message in messages:
            if message.value is None:
                continue
            number = message.partition
            reached = read_reached(message.key or b"", message.value, number)
            if reached is None:
                partition = Partition(message.topic, number)
                unreadable.setdefault(partition, []).append(message.offset)
                continue
            self._checkpoints.read(number, message.offset, message.value)
            for entity, offset in reached.judged.items():
                topic = self._names.input(entity)
                identity = self._identities.get(topic)
                # Offsets of a deleted topic mean nothing in a new topic of the same name. Until
                # the task starts on the new topic, its parked records may still be unjudged.
                same = reached.topics.get(entity, identity) == identity
                partition = Partition(topic, number)
                self.judged[partition] = offset if same else -1
                if entity in INDEXED and same:
                    passed = (reached.next.get(entity, 0), reached.watermarks.get(entity, 0))
                    self.passed[partition] = passed
                    earlier = reached.earlier.get(entity, 0)
                    self.truncations += earlier > self._earlier.get(partition, earlier)
                    self._earlier[partition] = earlier
        for partition, offsets in unreadable.items():
            self.on_unreadable(partition, offsets)

    def _missing(self, until: Mapping[Partition, int]) -> int:
        return sum(max(0, end - self._followed[p]) for p, end in until.items())
