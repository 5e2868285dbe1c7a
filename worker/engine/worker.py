"""The worker: it reads, has tasks judge, commits what they decide, until it is told to stop.

Three things go on side by side: one read of the inputs, the follower, and the work on one batch
of each task (`judging`). What has come meanwhile is the task's next batch, so that a slow
transaction holds up its own task only.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final

import msgspec
import structlog

from worker.brokers.contract import Broker, Message, Partition
from worker.clock import Clock, StepWatch
from worker.core.outbox import Rules
from worker.core.pressure import Limits, crowded
from worker.core.task import INPUTS
from worker.engine.backoff import Backoff
from worker.engine.follower import INDEXED, Follower
from worker.engine.identities import Identities
from worker.engine.judging import Batch, Judging
from worker.engine.order import BATCH, ReadingOrder
from worker.engine.reports import Reports, unheard
from worker.engine.startup import check_topics, message_limit
from worker.engine.tasks import Owned, Tasks, inputs, of_state
from worker.engine.verdicts import Barriers
from worker.errors import (
    BrokerUnavailable,
    ConfigurationError,
    MissingTopic,
    StateLost,
    TopicRecreated,
)
from worker.index.store import IndexStore

_POLL_SECONDS: Final = 0.05

_log = structlog.get_logger(__name__)


class Worker:
    """Validates what arrives on the inputs. One object a process; `run` until stopped."""

    def __init__(
        self,
        broker: Broker,
        rules: Rules,
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
        self._order = ReadingOrder(rules.names, clock)
        self._steps = StepWatch(clock)
        self._identities = Identities(broker, rules.names, clock.steady)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set; then finish the commits in hand and leave.

        Raises ConfigurationError if the topics are not as the rest relies on, StateError, and
        BrokerUnavailable if the broker cannot be reached at all. Later outages are waited out, and
        so are topics that are deleted and created anew: then it begins again, with all of it. So it
        does where the index turns out to be damaged.
        """
        await self._check_topics()
        damage = Backoff(self._clock.steady, longest=60.0)
        while not stop.is_set():
            try:
                await self._live(stop)
            except TopicRecreated as error:
                _log.warning("topics_changed", reason=str(error))
                await self._waited_out(self._check_topics, stop)
            except StateLost:  # the index says why, when it is opened again
                await _wait(stop, damage.failed())
        _log.info("worker_stopped")

    async def _check_topics(self) -> None:
        """Learn how many tasks there are, what they may write, and which topics these are."""
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
        """Work on the topics as they are. Raises TopicRecreated when they are no longer."""
        self._ready = False
        self._reports.health.restoring()
        self._reader = self._broker.reader()
        self._follower = Follower(
            self._broker, self._rules.names, self._index, self._identities.of_topics(), self._clock
        )
        self._barriers = Barriers(self._broker, self._rules, self._follower, self._clock)
        self._tasks = Tasks(self._broker, self._rules, self._identities, self._clock)
        self._follower.on_step = self._reports.alive
        self._follower.on_outage = self._reports.followed
        self._follower.on_skipped = self._reports.accepted_skipped
        self._follower.on_expired = self._reports.accepted_expired
        self._tasks.on_holes = self._reports.holes
        self._tasks.on_progress_lost = self._reports.progress_lost
        self._tasks.on_restored = self._reports.metrics.restored
        self._tasks.on_not_started = self._reports.not_started
        self._follower.on_unreadable = self._tasks.on_unreadable = self._reports.unreadable
        self._judging = Judging(
            self._broker, self._rules, self._follower, self._identities, self._reports, self._clock
        )
        self._tasks.refused = self._judging.refusals.of
        ended = asyncio.Event()
        if not await self._waited_out(self._follower.start, stop):
            return
        following = asyncio.create_task(self._follower.run(ended))
        try:
            # Tasks are taken over before the index is ready: that may depend on it, since taking
            # over from a dead worker ends the transaction that it has left open.
            if await self._waited_out(self._tasks.join, stop):
                await self._rounds(stop, following)
            await asyncio.gather(*map(self._judging.leave, self._tasks.running.values()))
        finally:
            if self._reading is not None:
                await asyncio.wait({self._reading})
                self._reading = None
            await self._tasks.close()
            ended.set()
            await asyncio.wait({following})
            await self._reader.close()
            await self._follower.close()

    async def _waited_out(
        self, attempt: Callable[[], Awaitable[None]], stop: asyncio.Event
    ) -> bool:
        """Whether it has succeeded; outages are waited out, until told to stop.

        So are topics that are not as they should be: this is asked again only where they were.
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
                await self._tasks.drop_all("broker unavailable")
                await self._assign()
                self._reports.tasks(self._tasks)
                await _wait(stop, wait)

    # --- one round ----------------------------------------------------------------------------

    async def _round(self) -> None:
        if step := self._steps.step():
            self._reports.clock_stepped(step, self._tasks)
        if self._identities.due:
            await self._identities.check()
        await self._identities.look_at_partitions(self._rules.tasks)
        if await self._tasks.update():
            await self._assign()
        running = self._tasks.running
        await self._reports.look_for_damage(self._broker)
        if not self._ready and not await self._becomes_ready():
            return
        await self._barriers.tend([owned.task for owned in running.values()])
        learned = self._follower.learned()
        for owned in running.values():
            owned.learned.users.extend(learned.users)
            owned.learned.matches.extend(learned.matches)
            self._note_state(owned)
        await self._read(running)
        free = [owned for owned in running.values() if owned.work is None]
        batches = [(owned, self._batch(owned)) for owned in free if self._has_work(owned)]
        self._judging.begin(batches)
        self._reports.round(self._tasks)
        await self._reports.look(self._tasks, self._barriers, self._follower)
        await self._reports.measure_lag(
            self._tasks, self._follower, self._broker, self._reader, self._rules
        )

    def _note_state(self, owned: Owned) -> None:
        """Have a task write its state again where a topic that holds it was created anew."""
        anew = self._identities.anew(owned.state)
        if not anew or owned.work is not None:
            return
        owned.state |= anew
        owned.task.write_again(len(anew), of_state(owned.state, self._rules.names))
        for topic in anew:
            self._reports.state_recreated(Partition(topic, owned.task.number))

    async def _becomes_ready(self) -> bool:
        """Wait a little for the index; nothing is read or judged before it is ready."""
        await _wait(self._follower.ready, _POLL_SECONDS)
        self._ready = self._follower.ready.is_set()
        if self._ready:
            self._reports.health.restored()
            _log.info("worker_ready")
        return self._ready

    async def _read(self, running: dict[int, Owned]) -> None:
        """Take what has come; wait a little for messages, finished work or news."""
        if self._reading is None:
            reading = self._reader.read(BATCH, _POLL_SECONDS, self._paused(running))
            self._reading = asyncio.create_task(reading)
        work = {owned.work for owned in running.values() if owned.work is not None}
        news = asyncio.create_task(self._follower.news.wait())
        try:
            await asyncio.wait({self._reading, news, *work}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            news.cancel()
        self._follower.news.clear()
        for number, owned in list(running.items()):
            if owned.work is not None and owned.work.done():
                goes_on = owned.work.result()
                owned.work = None
                if goes_on:
                    self._tasks.succeeded(number)
                    self._reports.parked_lost(owned, self._rules.names)
                else:
                    await self._tasks.drop(number, "commit failed")
                    self._tasks.failed(number)
                    await self._assign()
        await self._take(wait=False)

    async def _take(self, *, wait: bool) -> None:
        """Sort what the read in hand has brought into the tasks' inboxes, if it is done."""
        reading = self._reading
        if reading is None or not (wait or reading.done()):
            return
        self._reading = None
        messages = await reading
        self._order.note(messages)
        for message in messages:
            owned = self._tasks.running.get(message.partition)
            if owned is not None:
                owned.take(message)
        self._reports.expired(self._reader.expired(), self._tasks, self._rules.names)
        self._reports.skipped(self._reader.skipped(), self._tasks, self._rules.names)
        self._reports.damaged(self._reader.damaged().keys(), self._tasks)

    async def _assign(self) -> None:
        """Read the inputs of the running tasks: each from where it stands, or from where it is."""
        # What a failed read would have brought is read again: positions have not moved.
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

    def _batch(self, owned: Owned) -> Batch:
        """Everything that has been read for a task, and where that ends."""
        messages = owned.empty()
        owned.positions = self._positions(owned)
        return Batch(messages, owned.positions)

    def _has_work(self, owned: Owned) -> bool:
        return bool(
            owned.inbox
            or owned.learned.users
            or owned.learned.matches
            or owned.task.restored
            or owned.task.writes_again
            or owned.task.can_give_up
            or owned.task.has_to_keep(self._clock.now())
            or owned.positions != self._positions(owned)
            or self._judging.is_quiet(owned)
        )

    def _positions(self, owned: Owned) -> dict[str, int]:
        names, number = self._rules.names, owned.task.number
        return {
            name: self._reader.position(Partition(names.input(name), number)) for name in INPUTS
        }

    def _behind(self, running: Mapping[int, Owned]) -> set[str]:
        """Of which entities not all has been read that was there when a task was taken over."""
        return {
            entity
            for number, owned in running.items()
            for entity in INDEXED
            if self._reader.position(Partition(self._rules.names.inputs(entity), number))
            < owned.ends[entity]
        }

    # --- back-pressure ------------------------------------------------------------------------

    def _paused(self, running: dict[int, Owned]) -> set[Partition]:
        """The inputs not to be read now: memory is bounded, and nothing waits for itself.

        See `crowded` for what is parked. A task that is at work takes one batch meanwhile.
        """
        paused: set[Partition] = set()
        later = self._order.later(
            self._behind(running),
            users_waiting=any(owned.task.parking.count("users") for owned in running.values()),
        )
        tasks = self._rules.tasks
        records, room = self._limits.records // max(1, len(running)), self._limits.room(tasks)
        for number, owned in running.items():
            names = set(later) | crowded(owned.task.parking, records, room)
            if len(owned.inbox) >= BATCH or owned.inbox_bytes >= self._limits.batch(tasks):
                names = set(INPUTS)
            paused |= {Partition(self._rules.names.input(name), number) for name in names}
        return paused


async def _wait(event: asyncio.Event, seconds: float) -> None:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        pass
