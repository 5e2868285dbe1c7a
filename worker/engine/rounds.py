"""Rounds: one decision over the batches of all tasks, and one commit.

At most one commit is in flight. The next round is decided during that commit and relies on it. If
the commit fails, both rounds are discarded together with the tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, Final, NamedTuple

from worker.brokers.contract import Broker
from worker.clock import Clock
from worker.core.known import IndexDelta
from worker.core.recent import RecentRows, Written
from worker.core.round import Decision, Round, TaskBatch
from worker.core.task_settings import TaskSettings
from worker.engine.identities import Identities
from worker.engine.index_updater import INDEXED, IndexUpdater
from worker.engine.refusals import Refusals
from worker.engine.reports import WorkerReports
from worker.engine.session import Session
from worker.engine.task_handle import TaskHandle, reached
from worker.engine.tasks import TaskManager
from worker.errors import (
    BrokerUnavailable,
    BuddyError,
    DamagedLog,
    Fenced,
    MessageRefused,
    MissingTopic,
)
from worker.stream import Partition

_SYNC_PATIENCE: Final = 30.0
_HEARTBEAT_MS: Final = 5_000
_OFFSETS_MS: Final = 1_000
"""Interval of group offset commits, which cost a third of a small round.

Only external tools read them. A take-over reads the checkpoint, which is part of every round."""


class _Started(NamedTuple):
    """A round that has started: its session, its tasks and its start time."""

    round: Round
    session: Session
    tasks: Mapping[int, TaskHandle]
    delta: IndexDelta
    began: int


class Rounds:
    """Decides rounds and commits them."""

    def __init__(
        self,
        broker: Broker,
        settings: TaskSettings,
        updater: IndexUpdater,
        identities: Identities,
        reports: WorkerReports,
        clock: Clock,
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._updater = updater
        self._identities = identities
        self._checkpoints = identities.checkpoints
        self._reports = reports
        self._clock = clock
        self.refusals = Refusals(settings.names)
        self.on_stuck: Callable[[int], None] = lambda _number: None
        """Called with a task that cannot continue after a refusal; the others run without it."""
        self.commit: asyncio.Task[bool] | None = None
        """The commit in flight, or a finished one before `collect_commit`."""
        self._postponed: _Started | None = None
        """The round that waits until the index shows every committed row."""
        self._synchronising: asyncio.Task[None] | None = None
        self._topics = {entity: settings.names.accepted(entity) for entity in INDEXED}
        self._state = frozenset(settings.names.of_state())
        self._session: Session | None = None
        self._recent = RecentRows(updater.index)
        """The rows accepted in this session that the index does not show yet."""
        self._last_commit = 0
        """When the last commit began, on the steady clock."""
        self._last_offset_commit = 0
        """When group offsets were last committed, on the steady clock."""
        self._offsets_dirty = False
        """Whether a round was committed since without group offsets."""

    @property
    def heartbeat_due(self) -> bool:
        """Whether the worker must commit even if it has nothing to write.

        Only a commit shows that another owner, for example `reprocess`, has fenced this worker.
        The commit also brings the group offsets up to date.
        """
        now = self._clock.steady()
        dirty = self._offsets_dirty and now - self._last_offset_commit >= _OFFSETS_MS
        return dirty or now - self._last_commit >= _HEARTBEAT_MS

    @property
    def is_postponed(self) -> bool:
        """Whether a round waits for the index; no other round starts before `resume`."""
        return self._postponed is not None

    async def start(
        self, tasks: TaskManager, batches: Mapping[int, TaskBatch], delta: IndexDelta
    ) -> None:
        """Decide a round, wait for the previous commit, and start the commit of this round.

        If the round needs an index that shows all committed rows, the round waits for the index:
        call `resume` until it has been decided. Raises BrokerUnavailable, TopicRecreated,
        StateError.
        """
        if (session := tasks.session) is None or session.is_over:
            return  # its tasks are dropped, and read these messages again
        if session is not self._session:
            self._session, self._recent = session, RecentRows(self._updater.index)
        running = tasks.running.copy()
        core = Round({n: handle.task for n, handle in running.items()}, batches, self._recent)
        started = _Started(core, session, running, delta, self._clock.steady())
        async with self._updater.lock:
            now = self._clock.now()
            self._recent.followed(self._updater.followed())
            if core.needs_current_index(now):
                # In the background: the wait may end only when this worker takes over a task.
                self._synchronising = asyncio.create_task(self._synchronise())
                self._synchronising.add_done_callback(_retrieved)
                self._postponed = started
                return
            check = self._check()
            decision = core.decide(delta, now)
        await self._begin_commit(tasks, started, decision, check)

    async def resume(self, tasks: TaskManager) -> None:
        """Decide the postponed round once the index is up to date. Raises as `start` does."""
        started, synchronising = self._postponed, self._synchronising
        if started is None or synchronising is None or not synchronising.done():
            return
        self._postponed = self._synchronising = None
        synchronising.result()
        if not await self.collect_commit(wait=True) or started.session is not tasks.session:
            return  # its tasks are dropped, and read these messages again
        # Only tasks that ran throughout. A task that was given up belongs to another worker; the
        # index may lack rows of a task that was taken over since.
        running = tasks.running
        still = {n: handle for n, handle in started.tasks.items() if running.get(n) is handle}
        started.round.restrict(still.keys())
        check = self._check()
        async with self._updater.lock:
            self._recent.followed(self._updater.followed())
            now = self._clock.now()
            decision = started.round.decide(started.delta, now, synchronised=True)
        await self._begin_commit(tasks, started._replace(tasks=still), decision, check)

    def _check(self) -> asyncio.Task[None]:
        """Start a check of the topic identities; call after the batches have been read."""
        check = asyncio.create_task(self._identities.check())
        check.add_done_callback(_retrieved)  # a dropped round never awaits it
        return check

    async def _begin_commit(
        self, tasks: TaskManager, started: _Started, decision: Decision, check: asyncio.Task[None]
    ) -> None:
        if not await self.collect_commit(wait=True):
            return  # its tasks are dropped, and read these messages again
        tasks.succeeded()  # the commit before this one
        written = self._recent.take_round()
        offsets = self._due_offsets(started, decision)
        self.commit = asyncio.create_task(self._commit(started, decision, written, offsets, check))

    def _due_offsets(self, started: _Started, decision: Decision) -> dict[Partition, int] | None:
        """The group offsets of this decision; None if they are not due.

        A later round may move on before the commit begins. Group offsets beyond the checkpoint
        would mean that the checkpoint is not the last one: `Reading.behind`.
        """
        since = self._clock.steady() - self._last_offset_commit
        if decision.outputs and since < _OFFSETS_MS:
            return None
        offsets: dict[Partition, int] = {}
        for handle in started.tasks.values():
            offsets |= reached(handle.task, self._settings)
        return offsets

    def drop_postponed(self) -> None:
        """Drop the postponed round."""
        if self._synchronising is not None:
            self._synchronising.cancel()
        self._postponed = self._synchronising = None

    async def collect_commit(self, *, wait: bool = False) -> bool:
        """Collect the last commit: False if it failed. `wait` for a commit in flight.

        A failed commit ends its session. Raises TopicRecreated and StateError.
        """
        commit = self.commit
        if commit is None or not (wait or commit.done()):
            return True
        await asyncio.wait({commit})
        self.commit = None
        return commit.result()

    async def end_commit(self) -> None:
        """Wait until the commit in flight has ended, whatever became of it."""
        if self.commit is not None:
            await asyncio.wait({self.commit})
            _retrieved(self.commit)

    async def leave(self, tasks: TaskManager) -> None:
        """Persist the parked records in memory, give up all tasks and commit group offsets.

        Called at shutdown: the inputs may expire before another worker starts. If this fails, a
        later take-over reads the records again, unless they have expired.
        """
        with suppress(BuddyError):
            if not await self.collect_commit(wait=True) or (session := tasks.session) is None:
                return  # the last decision may be missing in the log
            offsets: dict[Partition, int] = {}
            for handle in tasks.running.values():
                offsets |= reached(handle.task, self._settings)
                while outputs := handle.task.flush_parked(self._clock.now()):
                    await self._identities.check()
                    await session.commit(outputs, {})
            if tasks.taken:
                await self._identities.check()
                await session.commit(tasks.tombstones(tasks.taken), offsets)

    async def _commit(
        self,
        started: _Started,
        decision: Decision,
        written: list[Written],
        offsets: dict[Partition, int] | None,
        check: asyncio.Task[None],
    ) -> bool:
        """Whether the tasks may continue. Raises TopicRecreated and StateError."""
        try:
            await asyncio.wait({check})
            check.result()
            if not decision.outputs and not self.heartbeat_due:
                return True
            self._last_commit = now = self._clock.steady()
            self._offsets_dirty = offsets is None
            if offsets is not None:
                self._last_offset_commit = now
            coordinates = await started.session.commit(decision.outputs, offsets or {})
        except MessageRefused as error:
            self._reports.not_committed(started.tasks, error)
            refusal = self.refusals.add(decision.outputs, error)
            self._reports.refused(refusal.task, refusal.why)
            if refusal.task is not None and refusal.why is not None:
                self.on_stuck(refusal.task)
            return False
        except (Fenced, BrokerUnavailable, MissingTopic, DamagedLog) as error:
            self._reports.not_committed(started.tasks, error)
            started.session.is_over = True
            if isinstance(error, (BrokerUnavailable, Fenced)):
                for number in started.tasks:
                    self._checkpoints.may_be_followed(number)
            return False
        for message, (partition, offset) in zip(decision.outputs, coordinates, strict=True):
            if message.topic in self._state and (handle := started.tasks.get(partition)):
                handle.note_written(message.topic, offset)
                if message.topic == self._settings.names.progress:
                    owners = handle.state_topics.get(self._settings.names.owners, "")
                    self._checkpoints.wrote(
                        partition, offset, message.value or b"", started.session.owner, owners
                    )
        self._recent.locate(written, coordinates, self._topics)
        self._reports.committed(decision.tallies, started.began)
        for number, tally in decision.tallies.items():
            self.refusals.forget(number, tally.isolated)
            self._reports.state_missed(started.tasks[number], self._settings.names)
        return True

    async def _synchronise(self) -> None:
        """Wait until the index shows every row committed so far, including this worker's rows.

        A transaction left open by a dead worker blocks this. Raises BrokerUnavailable after 30 s.
        """
        if self.commit is not None:
            await asyncio.wait({self.commit})
        spans = await self._broker.spans(self._updater.accepted, uncommitted=True)
        ends = {partition: span.end for partition, span in spans.items()}
        await self._updater.reach(ends, _SYNC_PATIENCE)


def _retrieved(task: asyncio.Task[Any]) -> None:
    """Mark the exception as retrieved, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
