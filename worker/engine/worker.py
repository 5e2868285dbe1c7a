"""The worker: reads the inputs, lets its tasks judge the records, and commits their decisions.

Three activities run concurrently: one read of the inputs, the index updater, and the commit of
one round of all tasks (`judging`). Records that arrive during a commit belong to the next round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from itertools import groupby
from operator import attrgetter
from typing import Any, Final

import msgspec
import structlog

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.clock import Clock, StepWatch
from worker.core.pressure import Limits, crowded, overfull
from worker.core.round import Batch
from worker.core.task import INTERNAL_RECREATED, INTERNAL_SKIPPED
from worker.core.task_settings import TaskSettings
from worker.engine.backoff import Backoff
from worker.engine.elsewhere import Elsewhere, Waiting
from worker.engine.identities import Identities
from worker.engine.index_updater import INDEXED, IndexUpdater
from worker.engine.judging import Judging
from worker.engine.order import FOREVER, ReadingOrder
from worker.engine.reports import Reports, unheard
from worker.engine.startup import check_topics, message_limit
from worker.engine.tasks import TaskHandle, TaskManager, inputs, of_state
from worker.engine.verdicts import Frontiers
from worker.errors import (
    BrokerUnavailable,
    ConfigurationError,
    MissingTopic,
    StateLost,
    TopicRecreated,
)
from worker.index.store import IndexStore
from worker.stream import Message, Partition

BATCH: Final = 5_000
"""Messages per read, at most; the inbox limits of `_paused` derive from this number."""
_POLL_SECONDS: Final = 0.05
_READ_SECONDS: Final = 0.2
"""How long an idle worker waits for messages before it does its other work."""
_FULL: Final = 2_000
"""With this many messages waiting, a round starts while the previous commit is in flight."""

_log = structlog.get_logger(__name__)


class Worker:
    """Validates the records of the inputs. One instance per process."""

    def __init__(
        self,
        broker: Broker,
        rules: TaskSettings,
        index: IndexStore,
        clock: Clock,
        limits: Limits | None = None,
        reports: Reports | None = None,
    ) -> None:
        self._broker = broker
        self._rules = rules
        self._index = index
        self._clock = clock
        self._limits = limits or Limits()
        self._reports = reports or unheard(clock)
        self._reading: asyncio.Task[list[Message]] | None = None
        self._order = ReadingOrder(clock.steady)
        self._steps = StepWatch(clock)
        self._identities = Identities(broker, rules.names, clock.steady)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish the commits in flight and leave the group.

        Raises ConfigurationError or MissingTopic if the topics are wrong at the start,
        BrokerUnavailable if the broker is unreachable at the start, and StateError. Retries later
        outages with backoff. When a topic is deleted or re-created, or the index is damaged, the
        worker reopens the reader and the index, and restores all tasks.
        """
        await self._check_topics()
        damage = Backoff(self._clock.steady, longest=60.0)
        while not stop.is_set():
            try:
                await self._live(stop)
            except TopicRecreated as error:
                _log.warning("topics_changed", reason=str(error))
                await self._waited_out(self._check_topics, stop)
            except StateLost:  # the index logs the reason when it is reopened
                await _wait(stop, damage.failed())
        _log.info("worker_stopped")

    async def _check_topics(self) -> None:
        """Read the number of tasks, the message limit and the identities of the topics."""
        await self._identities.note()
        names, limit = self._rules.names, self._rules.record_limit
        tasks = await check_topics(self._broker, names, limit)
        limit = await message_limit(self._broker, names)
        self._rules = msgspec.structs.replace(
            self._rules,
            tasks=tasks,
            rejection_limit=limit,
            decision_bytes=self._limits.batch(tasks),
        )

    async def _live(self, stop: asyncio.Event) -> None:
        """Work on the current topics. Raises TopicRecreated when one is deleted or re-created."""
        self._ready = False
        self._reports.health.restoring()
        self._reader = self._broker.reader()
        self._updater = IndexUpdater(
            self._broker, self._rules.names, self._index, self._identities.of_topics(), self._clock
        )
        self._frontiers = Frontiers(self._broker, self._rules, self._updater, self._clock)
        self._elsewhere = Elsewhere(
            self._broker,
            self._rules.names,
            self._rules.tasks,
            self._updater.passed,
            self._clock.steady,
        )
        self._tasks = TaskManager(self._broker, self._rules, self._identities, self._clock)
        self._updater.on_step = self._reports.alive
        self._updater.on_outage = self._reports.followed
        self._updater.on_skipped = self._reports.accepted_skipped
        self._updater.on_expired = self._reports.accepted_expired
        self._tasks.on_holes = self._reports.holes
        self._tasks.on_progress_lost = self._reports.progress_lost
        self._tasks.on_restored = self._reports.metrics.restored
        self._tasks.on_not_started = self._reports.not_started
        self._updater.on_unreadable = self._tasks.on_unreadable = self._reports.unreadable
        self._judging = Judging(
            self._broker, self._rules, self._updater, self._identities, self._reports, self._clock
        )
        self._tasks.refused = self._judging.refusals.of
        self._judging.on_stuck = self._tasks.stuck
        self._tasks.before_release = lambda: self._judging.settled(wait=True)
        ended = asyncio.Event()
        if not await self._waited_out(self._updater.start, stop):
            return
        following = asyncio.create_task(self._updater.run(ended))
        try:
            # Tasks are taken over before the index is ready. The index may depend on this: taking
            # over from a dead worker ends the transaction that the worker left open.
            if await self._waited_out(self._tasks.join, stop):
                await self._rounds(stop, following)
            await self._judging.leave(self._tasks)
        finally:
            if self._reading is not None:
                await asyncio.wait({self._reading})
                self._reading = None
            self._judging.rest()
            await self._tasks.close()
            ended.set()
            await asyncio.wait({following})
            await self._reader.close()
            await self._updater.close()

    async def _waited_out(
        self, attempt: Callable[[], Awaitable[None]], stop: asyncio.Event
    ) -> bool:
        """Retry `attempt` with backoff until it succeeds; False if stopped first.

        Retries missing or wrong topics too: they were right when the worker started.
        """
        backoff = Backoff(self._clock.steady)
        while not stop.is_set():
            try:
                await attempt()
            except (BrokerUnavailable, ConfigurationError, MissingTopic) as error:
                wait = backoff.failed()
                self._reports.outage("start", error, wait)
                await _wait(stop, wait)
            else:
                self._reports.free("start", after=0)
                return True
        return False

    async def _rounds(self, stop: asyncio.Event, following: asyncio.Task[None]) -> None:
        backoff = Backoff(self._clock.steady)
        while not stop.is_set():
            if following.done():
                following.result()
            try:
                await self._round()
                backoff.succeeded()
                self._reports.free("broker")
            except (BrokerUnavailable, MissingTopic) as error:
                wait = backoff.failed()
                self._reports.outage("broker", error, wait)
                self._judging.rest()
                await self._judging.settled(wait=True)  # bounded by the committer's time limits
                await self._tasks.end_session("broker unavailable")
                await self._assign()
                self._reports.tasks(self._tasks)
                await _wait(stop, wait)

    # --- one round ----------------------------------------------------------------------------

    async def _round(self) -> None:
        if step := self._steps.step():
            self._reports.clock_stepped(step, self._tasks)
        if self._identities.due:
            await self._identities.check()
        state = [place for owned in self._tasks.running.values() for place in owned.gone]
        await self._identities.look_at_partitions(self._rules.tasks, state)
        if await self._tasks.update():
            await self._assign()
        running = self._tasks.running
        await self._reports.look_for_damage(self._broker)
        if not self._ready and not await self._becomes_ready():
            return
        await self._frontiers.advance([owned.task for owned in running.values()])
        for owned in running.values():
            self._note_state(owned)
        await self._read(running)
        await self._judge(running)
        self._reports.round(self._tasks, in_flight=self._judging.commit is not None)
        await self._reports.look(self._tasks, self._frontiers, self._updater)
        await self._reports.measure_lag(
            self._tasks, self._updater, self._broker, self._reader, self._rules
        )

    def _note_state(self, owned: TaskHandle) -> None:
        """Make a task rewrite its state if a state topic was re-created or lost records."""
        anew = self._identities.anew(owned.state)
        lost = self._identities.lost(owned.gone)
        if not anew and not lost:
            return
        owned.state |= anew
        owned.gone |= lost
        owned.task.write_again(of_state(owned.state, self._rules.names))
        for topic in anew:
            place = Partition(topic, owned.task.number)
            owned.gone[place] = 0
            self._identities.forget(place)
            owned.task.books.incident(INTERNAL_RECREATED)
            self._reports.state_recreated(place)
        for place, gone in lost.items():
            very = f"{place.topic} {owned.state.get(place.topic, '')}"
            if fresh := owned.task.books.found(INTERNAL_SKIPPED, very, gone):
                self._reports.state_lost(place, fresh)

    async def _becomes_ready(self) -> bool:
        """Wait briefly for the index; the worker reads and judges nothing before it is ready."""
        await _wait(self._updater.ready, _POLL_SECONDS)
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
        commit = self._judging.commit
        news = asyncio.create_task(self._updater.news.wait())
        try:
            awaited: set[asyncio.Future[Any]] = {self._reading, news}
            if commit is not None:
                awaited.add(commit)
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
        self._updater.news.clear()
        await self._judging.settled()
        if len(running) < self._rules.tasks:
            await self._take(wait=False)
            await self._elsewhere.look(running, self._waiting(running))
        # Must come last: when the batches are made, every message that the reader has passed must
        # be in an inbox.
        await self._take(wait=False)

    async def _judge(self, running: dict[int, TaskHandle]) -> None:
        """Start a round if there is work and the commit in flight allows it."""
        if self._judging.is_waiting:
            await self._judging.go_on(self._tasks)
            return
        waiting = self._waiting(running)
        if self._judging.commit and waiting.live:
            return
        quiet = self._judging.is_quiet
        limits = self._limits_of(running, waiting)
        batches = {}
        for number, owned in running.items():
            messages = owned.take(limits)
            positions = self._positions(owned)
            if messages or quiet or positions != owned.positions or self._has_work(owned):
                owned.positions = positions
                batches[number] = Batch(messages, positions, owned.until())
        learned = self._updater.learned()
        if batches or learned.users or learned.matches:
            await self._judging.round(self._tasks, batches, learned)

    async def _take(self, *, wait: bool) -> None:
        """Move the messages of a finished read into the inboxes; `wait` for a read in progress."""
        reading = self._reading
        if reading is None or not (wait or reading.done()):
            return
        self._reading = None
        messages = await reading
        for (_, number), some in groupby(messages, attrgetter("topic", "partition")):
            owned = self._tasks.running.get(number)
            if owned is not None:
                owned.put(list(some))
        self._reports.expired(self._reader.expired(), self._tasks, self._rules.names)
        self._reports.skipped(self._reader.skipped(), self._tasks, self._rules.names)
        self._reports.damaged(self._reader.damaged().keys(), self._tasks)

    async def _assign(self) -> None:
        """Assign the inputs of all running tasks: new ones at the task's offset, others unmoved."""
        # A failed read loses nothing: positions have not moved, so it is repeated.
        with suppress(BrokerUnavailable):
            await self._take(wait=True)
        wanted: dict[Partition, int] = {}
        for owned in self._tasks.running.values():
            if not owned.assigned:
                self._reports.missed(owned.missed, owned.task, self._rules)
            for partition, offset in inputs(owned.task, self._rules).items():
                wanted[partition] = self._reader.position(partition) if owned.assigned else offset
            owned.assigned = True
        self._reader.assign(wanted)

    def _has_work(self, owned: TaskHandle) -> bool:
        return bool(
            owned.task.restored
            or owned.task.writes_again
            or owned.task.can_give_up
            or owned.task.has_to_keep(self._clock.now())
        )

    def _positions(self, owned: TaskHandle) -> dict[str, int]:
        """The next offset to judge of each input: the head of its inbox, else the read position."""
        names, number = self._rules.names, owned.task.number
        return {
            name: messages[0].offset
            if messages
            else self._reader.position(Partition(names.input(name), number))
            for name, messages in owned.inbox.items()
        }

    def _waiting(self, running: Mapping[int, TaskHandle]) -> Waiting:
        heads: dict[str, int] = {}
        for owned in running.values():
            for entity in ENTITIES:
                if messages := owned.inbox[entity]:
                    first = messages[0].timestamp
                    heads[entity] = min(first, heads.get(entity, first))
        newest = max((t for o in running.values() for t in o.read_until.values()), default=0)
        many = sum(owned.waiting() for owned in running.values())
        return Waiting(heads, newest, live=many < _FULL)

    def _limits_of(self, running: Mapping[int, TaskHandle], waiting: Waiting) -> dict[str, int]:
        """The append time up to which records are judged now, by entity."""
        until = self._elsewhere.until({n: o.task for n, o in running.items()}, waiting)
        for owned in running.values():
            for entity in INDEXED:
                until[entity] = min(until[entity], self._read_until(owned, entity))
        return self._order.limits(until, waiting.heads)

    def _read_until(self, owned: TaskHandle, entity: str) -> int:
        """The append time up to which an input is read; `FOREVER` once its end is reached."""
        place = Partition(self._rules.names.inputs(entity), owned.task.number)
        if not self._reader.lag(place) and self._reader.position(place) >= owned.ends[entity]:
            return FOREVER
        return owned.read_until.get(entity, 0)

    # --- back-pressure ------------------------------------------------------------------------

    def _paused(self, running: dict[int, TaskHandle]) -> set[Partition]:
        """The inputs to pause: memory stays bounded, and no input waits for itself.

        `crowded` limits parked records, `overfull` the inboxes, in bytes and in messages.
        """
        paused: set[Partition] = set()
        tasks = self._rules.tasks
        records, room = self._limits.records // max(1, len(running)), self._limits.room(tasks)
        for number, owned in running.items():
            names = crowded(owned.task.parking, records, room)
            names |= overfull(owned.inbox_bytes, self._limits.batch(tasks))
            names |= overfull({n: len(messages) for n, messages in owned.inbox.items()}, 2 * BATCH)
            paused |= {Partition(self._rules.names.input(name), number) for name in names}
        return paused


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
