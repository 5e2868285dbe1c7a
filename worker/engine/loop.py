"""The loop of a worker: read the inputs, let the tasks judge the records, commit their decisions.

Three activities run concurrently: one read of the inputs, the index updater, and the commit of
one round of all tasks (`rounds`). Records that arrive during a commit belong to the next round.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import structlog

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.clock import Clock
from worker.core.pressure import Limits, crowded, loads, overfull, total
from worker.core.round import TaskBatch
from worker.core.task_settings import TaskSettings
from worker.engine.elsewhere import Backlog, Elsewhere
from worker.engine.frontiers import Frontiers
from worker.engine.identities import Identities
from worker.engine.index_updater import INDEXED, IndexUpdater
from worker.engine.lost_state import check_state
from worker.engine.order import FOREVER, ReadingOrder
from worker.engine.reports import WorkerReports
from worker.engine.rounds import Rounds
from worker.engine.task_handle import TaskHandle, inputs
from worker.engine.task_restorer import TaskRestorer
from worker.engine.tasks import TaskManager
from worker.errors import (
    WAITED_OUT,
    BrokerUnavailable,
    DamagedLog,
    MissingTopic,
    TopicRecreated,
)
from worker.index.store import IndexStore
from worker.stream import Message, Partition
from worker.waiting import Backoff, wait

BATCH: Final = 5_000
"""Messages per read, at most; the inbox limits of `_paused` derive from this number."""
_POLL_SECONDS: Final = 0.05
_READ_SECONDS: Final = 0.2
"""How long an idle worker waits for messages before it does its other work."""
_FULL: Final = 2_000
"""With this many messages waiting, a round starts while the previous commit is in flight."""

_log = structlog.get_logger(__name__)


class WorkLoop:
    """Works on topics with these identities, until one of them is deleted, recreated or truncated.

    Creates its collaborators, and connects their reports.
    """

    def __init__(
        self,
        broker: Broker,
        settings: TaskSettings,
        index: IndexStore,
        identities: Identities,
        limits: Limits,
        reports: WorkerReports,
        clock: Clock,
    ) -> None:
        names = settings.names
        self._broker = broker
        self._settings = settings
        self._identities = identities
        self._limits = limits
        self._reports = reports
        self._clock = clock
        self._ready = False
        self._reading: asyncio.Task[list[Message]] | None = None
        self._order = ReadingOrder(clock.steady)
        self._reader = broker.reader()
        self._updater = IndexUpdater(
            broker, names, index, identities.of_topics(), clock, identities.checkpoints
        )
        self._frontiers = Frontiers(broker, settings, self._updater, clock)
        self._elsewhere = Elsewhere(
            broker, names, settings.tasks, self._updater.passed, clock.steady
        )
        restorer = TaskRestorer(broker, settings, identities, clock)
        self._tasks = TaskManager(broker, settings, restorer, clock)
        self._rounds = Rounds(broker, settings, self._updater, identities, reports, clock)
        _connect(self._updater, restorer, self._tasks, self._rounds, reports)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set. Then give up the tasks, and leave the group.

        Raises TopicRecreated when a topic is deleted or recreated, or an input has lost records
        that were read, and StateError. Retries outages with backoff.
        """
        ended = asyncio.Event()
        if not await retried(self._updater.start, stop, self._reports, self._clock):
            return
        self._identities.remember(self._updater.progress_before)
        following = asyncio.create_task(self._updater.run(ended))
        try:
            # Tasks are taken over before the index is ready. The index may depend on this: taking
            # over from a dead worker ends the transaction that the worker left open.
            if await retried(self._tasks.join, stop, self._reports, self._clock):
                await self._work(stop, following)
            await self._rounds.leave(self._tasks)
        finally:
            if self._reading is not None:
                await asyncio.wait({self._reading})
                self._reading = None
            self._rounds.drop_postponed()
            await self._rounds.end_commit()
            await self._tasks.close()
            ended.set()
            await asyncio.wait({following})
            await self._reader.close()
            await self._updater.close()

    async def _work(self, stop: asyncio.Event, following: asyncio.Task[None]) -> None:
        backoff = Backoff(self._clock.steady)
        while not stop.is_set():
            if following.done():
                following.result()
            try:
                await self._cycle()
                if self._tasks.running or not self._tasks.assigned:
                    backoff.succeeded()
                    self._reports.free("broker")
                else:  # no input is read yet
                    backoff.untried()
            except (BrokerUnavailable, DamagedLog, MissingTopic) as error:
                pause = backoff.failed()
                self._reports.outage("broker", error, pause)
                self._rounds.drop_postponed()
                # The wait is bounded by the committer's time limits.
                await self._rounds.collect_commit(wait=True)
                await self._tasks.end_session("broker unavailable")
                await self._assign()
                self._reports.tasks(self._tasks)
                await wait(stop, pause)

    # --- one round ----------------------------------------------------------------------------

    async def _cycle(self) -> None:
        self._reports.watch_clock(self._tasks)
        if self._identities.due:
            await self._identities.check()
        handles = self._tasks.running.values()
        written = {p: h.written.get(p, 0) for h in handles for p in h.lost_offsets}
        await self._identities.check_partitions(self._settings.tasks, written)
        if await self._tasks.update():
            await self._assign()
        running = self._tasks.running
        await self._reports.look_for_damage(self._broker)
        if not self._ready and not await self._becomes_ready():
            return
        await self._frontiers.advance([handle.task for handle in running.values()])
        for handle in running.values():
            await check_state(handle, self._identities, self._settings.names, self._reports)
        await self._read(running)
        await self._start_round(running)
        self._reports.round(self._tasks, in_flight=self._rounds.commit is not None)
        await self._reports.measure(self._tasks, self._frontiers, self._updater)
        await self._reports.measure_lag(
            self._tasks, self._updater, self._broker, self._reader, self._settings
        )

    async def _becomes_ready(self) -> bool:
        """Wait briefly for the index; the worker reads and judges nothing before it is ready."""
        await wait(self._updater.ready, _POLL_SECONDS)
        self._ready = self._updater.ready.is_set()
        if self._ready:
            self._reports.health.restored()
            _log.info("worker_ready")
        return self._ready

    async def _read(self, running: dict[int, TaskHandle]) -> None:
        """Collect messages; wait briefly for a read, a finished commit or index news."""
        if self._reading is None:
            reading = self._reader.read(BATCH, _READ_SECONDS, self._paused(running))
            self._reading = asyncio.create_task(reading)
        commit = self._rounds.commit
        news = asyncio.create_task(self._updater.news.wait())
        try:
            awaited: set[asyncio.Future[Any]] = {self._reading, news}
            if commit is not None:
                awaited.add(commit)
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
        self._updater.news.clear()
        await self._rounds.collect_commit()
        if len(running) < self._settings.tasks:
            await self._take(finish=False)
            await self._elsewhere.refresh(running, self._backlog(running))
        # Must come last: when the batches are made, every message that the reader has passed must
        # be in an inbox.
        await self._take(finish=False)

    async def _start_round(self, running: dict[int, TaskHandle]) -> None:
        """Start a round if there is work and the commit in flight allows it."""
        self._look_for_truncation()
        if self._rounds.is_postponed:
            await self._rounds.resume(self._tasks)
            return
        backlog = self._backlog(running)
        if self._rounds.commit and backlog.live:
            return
        heartbeat = self._rounds.heartbeat_due
        limits = self._time_limits(running, backlog)
        batches = {}
        for number, handle in running.items():
            messages = handle.take(limits)
            positions = self._positions(handle)
            if messages or heartbeat or positions != handle.positions or self._has_work(handle):
                handle.positions = positions
                batches[number] = TaskBatch(messages, positions, handle.taken_until())
        delta = self._updater.take_delta()
        if batches or delta.users or delta.matches:
            await self._rounds.start(self._tasks, batches, delta)

    async def _take(self, *, finish: bool) -> None:
        """Move the messages of a finished read into the inboxes. `finish` waits for the read."""
        reading = self._reading
        if reading is None or not (finish or reading.done()):
            return
        self._reading = None
        messages = await reading
        self._look_for_truncation()
        expired = self._reader.expired()
        await self._look_for_copies(expired)
        for (_, number), some in groupby(messages, attrgetter("topic", "partition")):
            handle = self._tasks.running.get(number)
            if handle is not None:
                handle.put(list(some), self._clock.wall())
        self._reports.expired(expired, self._tasks, self._settings.names)
        self._reports.skipped(self._reader.skipped(), self._tasks, self._settings.names)
        self._reports.damaged(self._reader.damaged(), self._tasks)

    def _look_for_truncation(self) -> None:
        """Raise TopicRecreated if an input ended before its position: nothing of it counts.

        The reader has gone on at the start, also in a read that is still under way. Call before
        its messages, or its positions, are used. The take-over that follows tells what is lost.
        Without identities a topic that was recreated cannot be told from a truncated one: then
        reading goes on.
        """
        identities = self._identities.of_topics()
        for topic, number in self._reader.truncated():
            if identities.get(topic):
                raise TopicRecreated(
                    f"partition {number} of topic {topic} ended before the position"
                )

    async def _look_for_copies(self, expired: Iterable[Partition]) -> None:
        """Raise TopicRecreated if a record has expired that was to be read, and that has a copy.

        The take-over that follows restores the record from its copy: `restoring.will_be_read`.
        """
        for place in expired:
            handle = self._tasks.running.get(place.number)
            name = self._settings.names.entity_of(place.topic)
            if handle is None or not handle.has_unneeded(name):
                continue
            with suppress(BrokerUnavailable, MissingTopic):  # the messages just read count more
                start = (await self._broker.spans([place]))[place].start
                if handle.has_unneeded(name, start):
                    raise TopicRecreated(
                        f"partition {place.number} of topic {place.topic} has lost records before"
                        " they were read; they are judged by their copies"
                    )

    async def _assign(self) -> None:
        """Assign the inputs of all running tasks: new ones at the task's offset, others unmoved."""
        # A failed read loses nothing: positions have not moved, so it is repeated.
        with suppress(BrokerUnavailable):
            await self._take(finish=True)
        wanted: dict[Partition, int] = {}
        for handle in self._tasks.running.values():
            if not handle.assigned:
                self._reports.missed(handle.missed, handle.task, self._settings)
            for partition, offset in inputs(handle.task, self._settings).items():
                wanted[partition] = self._reader.position(partition) if handle.assigned else offset
            handle.assigned = True
        self._reader.assign(wanted)

    def _has_work(self, handle: TaskHandle) -> bool:
        return bool(
            handle.task.awaits_first_round
            or handle.task.writes_again
            or handle.task.can_proceed
            or handle.task.has_to_persist(self._clock.now())
            or handle.task.has_to_ask_again(self._clock.now())
        )

    def _positions(self, handle: TaskHandle) -> dict[str, int]:
        """The next offset to judge of each input: the head of its inbox, else the read position."""
        names, number = self._settings.names, handle.task.number
        return {
            name: messages[0].offset
            if messages
            else self._reader.position(Partition(names.input(name), number))
            for name, messages in handle.inbox.items()
        }

    def _backlog(self, running: Mapping[int, TaskHandle]) -> Backlog:
        heads: dict[str, int] = {}
        for handle in running.values():
            for entity in ENTITIES:
                if times := handle.times[entity]:
                    heads[entity] = min(times[0], heads.get(entity, times[0]))
        newest = max(
            (t for handle in running.values() for t in handle.read_until.values()), default=0
        )
        many = sum(handle.waiting() for handle in running.values())
        return Backlog(heads, newest, live=many < _FULL)

    def _time_limits(self, running: Mapping[int, TaskHandle], backlog: Backlog) -> dict[str, int]:
        """The append time up to which records are judged now, by entity."""
        tasks = {number: handle.task for number, handle in running.items()}
        watermarks = self._elsewhere.watermarks(tasks, backlog)
        for handle in running.values():
            for entity in INDEXED:
                watermarks[entity] = min(watermarks[entity], self._read_until(handle, entity))
        return self._order.limits(watermarks, backlog.heads)

    def _read_until(self, handle: TaskHandle, entity: str) -> int:
        """The append time up to which an input is read; `FOREVER` once its end is reached."""
        reader = self._reader
        partition = Partition(self._settings.names.input(entity), handle.task.number)
        if not reader.lag(partition) and reader.position(partition) >= handle.ends[entity]:
            return FOREVER
        return handle.read_until.get(entity, 0)

    # --- back-pressure ------------------------------------------------------------------------

    def _paused(self, running: dict[int, TaskHandle]) -> set[Partition]:
        """The inputs to pause: memory stays bounded, and no input waits for itself.

        `crowded` limits parked records, `overfull` the inboxes, in bytes and in messages. A task
        may exceed its share by a record, but all tasks of the worker together may not.
        """
        if not running:
            return set()
        paused: set[Partition] = set()
        limits, tasks, many = self._limits, self._settings.tasks, len(running)
        parked = {number: loads(handle.task.parking) for number, handle in running.items()}
        inboxes = Counter[str]()
        for handle in running.values():
            inboxes.update({name: handle.inbox_bytes[name] for name in ENTITIES})
        everywhere = crowded(total(parked.values()), limits.records, limits.room(tasks, many))
        everywhere |= overfull(inboxes, limits.batch(tasks, many))
        for number, handle in running.items():
            names = everywhere | crowded(parked[number], limits.records // many, limits.room(tasks))
            names |= overfull(handle.inbox_bytes, limits.batch(tasks))
            names |= overfull({n: len(messages) for n, messages in handle.inbox.items()}, 2 * BATCH)
            paused |= {Partition(self._settings.names.input(name), number) for name in names}
        return paused


async def retried(
    attempt: Callable[[], Awaitable[None]],
    stop: asyncio.Event,
    reports: WorkerReports,
    clock: Clock,
) -> bool:
    """Retry `attempt` with backoff until it succeeds; False if stopped first.

    Retries missing or wrong topics too: they were right when the worker started. Waits for a
    damaged entry of the log until it is skipped.
    """
    backoff = Backoff(clock.steady)
    while not stop.is_set():
        try:
            await attempt()
        except WAITED_OUT as error:
            pause = backoff.failed()
            reports.outage("start", error, pause)
            await wait(stop, pause)
        else:
            reports.free("start", after=0)
            return True
    return False


def _connect(
    updater: IndexUpdater,
    restorer: TaskRestorer,
    tasks: TaskManager,
    rounds: Rounds,
    reports: WorkerReports,
) -> None:
    """Have the collaborators tell the reports, and each other, what happens."""
    updater.on_step = reports.alive
    updater.on_outage = reports.followed
    updater.on_skipped = reports.accepted_skipped
    updater.on_expired = reports.accepted_expired
    updater.on_truncated = reports.accepted_truncated
    updater.on_unreadable = restorer.on_unreadable = reports.unreadable
    restorer.on_holes = reports.holes
    restorer.on_progress_lost = reports.progress_lost
    restorer.progress_truncated = updater.progress_truncated
    tasks.on_restored = reports.metrics.restored
    tasks.on_not_started = reports.not_started
    restorer.commit_refusals = rounds.refusals.of
    tasks.before_giving_up = lambda: rounds.collect_commit(wait=True)
    rounds.on_stuck = tasks.stuck
