"""Rounds: one decision over the batches of all tasks, and one commit.

At most one commit is in flight. The next round is decided during that commit and relies on it. If
the commit fails, both rounds are discarded together with the tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

from worker.brokers.contract import Broker
from worker.clock import Clock
from worker.core.known import IndexDelta
from worker.core.recent import RecentRows, Written
from worker.core.round import Batch, Decision, decide, needs_synchronised
from worker.core.task import Task
from worker.core.task_settings import TaskSettings
from worker.engine.identities import Identities
from worker.engine.index_updater import INDEXED, IndexUpdater
from worker.engine.refusals import Refusals
from worker.engine.reports import Reports
from worker.engine.session import Session
from worker.engine.tasks import TaskHandle, TaskManager, reached
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
_QUIET_MS: Final = 5_000
_TELL_MS: Final = 1_000
"""Interval of group offset commits, which cost a third of a small round.

Only external tools read them. A take-over reads the checkpoint, which is part of every round."""


class _Waiting:
    """A round that has started but is not decided: its tasks, batches and start time."""

    def __init__(
        self,
        session: Session,
        owned: Mapping[int, TaskHandle],
        batches: Mapping[int, Batch],
        learned: IndexDelta,
        began: int,
    ) -> None:
        self.session = session
        self.owned = owned
        self.batches = batches
        self.learned = learned
        self.began = began
        self.synchronising: asyncio.Task[None] | None = None

    @property
    def tasks(self) -> dict[int, Task]:
        return {number: owned.task for number, owned in self.owned.items()}


class Judging:
    """Decides rounds and commits them."""

    def __init__(
        self,
        broker: Broker,
        rules: TaskSettings,
        updater: IndexUpdater,
        identities: Identities,
        reports: Reports,
        clock: Clock,
    ) -> None:
        self._broker = broker
        self._rules = rules
        self._updater = updater
        self._identities = identities
        self._reports = reports
        self._clock = clock
        self.refusals = Refusals(rules.names)
        self.on_stuck: Callable[[int], None] = lambda _number: None
        """Called with a task that cannot continue after a refusal; the others run without it."""
        self.commit: asyncio.Task[bool] | None = None
        """The commit in flight, or a finished commit that `settled` has not collected yet."""
        self._waiting: _Waiting | None = None
        self._topics = {entity: rules.names.accepted(entity) for entity in INDEXED}
        self._session: Session | None = None
        self._recent = RecentRows(updater.index)
        """The rows accepted in this session that the index does not show yet."""
        self._touched = 0
        """When the last commit began, on the steady clock."""
        self._told = 0
        """When group offsets were last committed, on the steady clock."""
        self._untold = False
        """Whether a round was committed since without group offsets."""

    @property
    def is_quiet(self) -> bool:
        """Whether an idle worker commits although it has nothing to write.

        Only a commit shows that a task was taken over, for example by `reprocess`. The commit
        also brings the group offsets up to date.
        """
        now = self._clock.steady()
        return now - self._touched >= _QUIET_MS or (self._untold and now - self._told >= _TELL_MS)

    @property
    def is_waiting(self) -> bool:
        """Whether a round waits for the index; no other round starts before `go_on`."""
        return self._waiting is not None

    async def round(
        self, tasks: TaskManager, batches: Mapping[int, Batch], learned: IndexDelta
    ) -> None:
        """Decide a round, wait for the previous commit, and start the commit of this round.

        If the round needs an index that shows all committed rows, the round waits for the index:
        call `go_on` until it has been decided. Raises BrokerUnavailable, TopicRecreated,
        StateError.
        """
        if (session := tasks.session) is None or session.is_over:
            return
        if session is not self._session:
            self._session, self._recent = session, RecentRows(self._updater.index)
        waiting = _Waiting(session, tasks.running.copy(), batches, learned, self._clock.steady())
        async with self._updater.lock:
            now = self._clock.now()
            self._recent.followed(self._updater.followed())
            if needs_synchronised(waiting.tasks, batches, self._recent, now):
                # In the background: the wait may end only when this worker takes over a task.
                waiting.synchronising = asyncio.create_task(self._synchronise())
                waiting.synchronising.add_done_callback(_looked_at)
                self._waiting = waiting
                return
            check = self._check()
            decision = decide(waiting.tasks, batches, learned, self._recent, now)
        await self._begin_commit(tasks, waiting, decision, check)

    async def go_on(self, tasks: TaskManager) -> None:
        """Decide the waiting round once the index is up to date. Raises as `round` does."""
        waiting = self._waiting
        if waiting is None or waiting.synchronising is None or not waiting.synchronising.done():
            return
        self._waiting = None
        waiting.synchronising.result()
        if not await self.settled(wait=True) or waiting.session is not tasks.session:
            return
        # Only tasks that ran throughout. A released task belongs to another worker; the index may
        # lack rows of a task that was taken over since.
        running = tasks.running
        waiting.owned = {n: o for n, o in waiting.owned.items() if running.get(n) is o}
        batches = {n: batch for n, batch in waiting.batches.items() if n in waiting.owned}
        check = self._check()
        async with self._updater.lock:
            self._recent.followed(self._updater.followed())
            decision = decide(
                waiting.tasks,
                batches,
                waiting.learned,
                self._recent,
                self._clock.now(),
                synchronised=True,
            )
        await self._begin_commit(tasks, waiting, decision, check)

    def _check(self) -> asyncio.Task[None]:
        """Start a check of the topic identities; call after the batches have been read."""
        check = asyncio.create_task(self._identities.check())
        check.add_done_callback(_looked_at)  # a dropped round never awaits it
        return check

    async def _begin_commit(
        self, tasks: TaskManager, waiting: _Waiting, decision: Decision, check: asyncio.Task[None]
    ) -> None:
        if not await self.settled(wait=True):
            return
        tasks.succeeded()
        written = self._recent.take_round()
        self.commit = asyncio.create_task(
            self._commit(waiting.session, waiting.owned, decision, written, check, waiting.began)
        )

    def rest(self) -> None:
        """Drop the waiting round."""
        if self._waiting is not None and self._waiting.synchronising is not None:
            self._waiting.synchronising.cancel()
        self._waiting = None

    async def settled(self, *, wait: bool = False) -> bool:
        """False if the last commit failed, else True; `wait` for a commit in flight.

        A failed commit ends its session. Raises TopicRecreated and StateError.
        """
        commit = self.commit
        if commit is None or not (wait or commit.done()):
            return True
        await asyncio.wait({commit})
        self.commit = None
        return commit.result()

    async def leave(self, tasks: TaskManager) -> None:
        """Persist the parked records in memory, release all tasks and commit group offsets.

        Called at shutdown: the inputs may expire before another worker starts. If this fails, a
        later take-over reads the records again, unless they have expired.
        """
        with suppress(BuddyError):
            if not await self.settled(wait=True) or (session := tasks.session) is None:
                return  # the last decision may be missing in the log
            offsets: dict[Partition, int] = {}
            for owned in tasks.running.values():
                offsets |= reached(owned.task, self._rules)
                while outputs := owned.task.flush_parked(self._clock.now()):
                    await self._identities.check()
                    await session.commit(outputs, {})
            if tasks.held:
                await self._identities.check()
                await session.commit(tasks.release(tasks.held), offsets)

    async def _commit(
        self,
        session: Session,
        tasks: Mapping[int, TaskHandle],
        decision: Decision,
        written: list[Written],
        check: asyncio.Task[None],
        began: int,
    ) -> bool:
        """Whether the tasks may continue. Raises TopicRecreated and StateError."""
        try:
            await asyncio.wait({check})
            check.result()
            if not decision.outputs and not self.is_quiet:
                return True
            self._touched = now = self._clock.steady()
            tells = not decision.outputs or now - self._told >= _TELL_MS
            self._untold = not tells
            offsets: dict[Partition, int] = {}
            if tells:
                self._told = now
                for owned in tasks.values():
                    offsets |= reached(owned.task, self._rules)
            places = await session.commit(decision.outputs, offsets)
        except MessageRefused as error:
            self._reports.not_committed(tasks, error)
            refusal = self.refusals.note(decision.outputs, error)
            self._reports.refused(refusal.task, refusal.why)
            if refusal.task is not None and refusal.why is not None:
                self.on_stuck(refusal.task)
            return False
        except (Fenced, BrokerUnavailable, MissingTopic, DamagedLog) as error:
            self._reports.not_committed(tasks, error)
            session.is_over = True
            return False
        self._recent.place(written, places, self._topics)
        self._reports.committed(decision.tallies, began)
        for number, tally in decision.tallies.items():
            self.refusals.settled(number, tally.isolated)
            self._reports.parked_lost(tasks[number], self._rules.names)
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


def _looked_at(task: asyncio.Task[None]) -> None:
    """Mark the exception as retrieved, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
