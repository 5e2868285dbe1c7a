"""The tasks of this worker: take over, give up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from typing import Final

import structlog

from worker.brokers.contract import Broker, Member
from worker.clock import Clock
from worker.core.ownership import owner_record, owner_tombstone
from worker.core.task_settings import TaskSettings
from worker.engine.session import Session, group_of
from worker.engine.takeover import fence_earlier
from worker.engine.task_handle import TaskHandle
from worker.engine.task_restorer import TaskRestorer
from worker.errors import BuddyError
from worker.stream import ProducerRecord
from worker.waiting import Backoff

_ASK_SECONDS: Final = 0.05
"""Interval of assignment requests, which read files on the embedded broker."""
_STUCK_SECONDS: Final = 60.0
"""The longest backoff of a stuck task: each retry costs the other tasks a session."""

_log = structlog.get_logger(__name__)


class TaskManager:
    """Runs the tasks that the group assigns to this worker, once they are restored.

    A take-over commits its owner record, then fences the earlier owners, then reads the state.
    This order makes the state complete: see docs/exactly-once.md, "Fence, then read".
    """

    def __init__(
        self, broker: Broker, settings: TaskSettings, restorer: TaskRestorer, clock: Clock
    ) -> None:
        self.running: dict[int, TaskHandle] = {}
        self.assigned: frozenset[int] = frozenset()
        self.session: Session | None = None
        """The session that the tasks write with; None while there is none."""
        self._broker = broker
        self._settings = settings
        self._group = group_of(settings.names)
        self._restorer = restorer
        self._member: Member | None = None
        self._ask_at = 0.0
        """When to request the assignment again, in the loop's time."""
        self._take_overs: dict[int, asyncio.Task[TaskHandle]] = {}
        self._registered: asyncio.Task[list[tuple[int, int]]] | None = None
        """The last commit of owner records."""
        self.taken: set[int] = set()
        """The tasks this session has taken over and not given up, restored or not."""
        self._sessions: set[str] = set()
        """The owner names that this process has used."""
        self._pause = Backoff(clock.steady)
        self._stuck: dict[int, Backoff] = {}
        self._clock = clock
        self._backoffs: dict[int, Backoff] = {}
        self.before_giving_up: Callable[[], Awaitable[object]] = _nothing
        """Awaited before a task is given up: its decisions are then committed or lost."""
        self.on_restored: Callable[[float], None] = lambda _seconds: None
        """Called with the duration of each take-over, in seconds."""
        self.on_not_started: Callable[[int, BuddyError], None] = lambda _number, _error: None
        """Called with a task whose take-over failed, and the error."""

    @property
    def missing_topics(self) -> Sequence[str]:
        """The topics of the tasks' state that are missing."""
        return self._restorer.missing_topics

    async def join(self) -> None:
        """Become a member of the group."""
        self._member = await self._broker.join(self._group, self._settings.names.input("users"))

    async def update(self) -> bool:
        """Take over newly assigned tasks, give up revoked tasks; whether `running` changed.

        Raises BrokerUnavailable.
        """
        assert self._member is not None
        now = asyncio.get_running_loop().time()
        if now >= self._ask_at:
            self._ask_at = now + _ASK_SECONDS
            self.assigned = await self._member.assignment()
        changed = False
        if self.session is not None and self.session.is_over:
            changed = bool(self.running)
            await self.end_session("a commit failed")
        gone = self.taken - self.assigned
        if gone:
            changed |= not gone.isdisjoint(self.running)
            await self._revoke(sorted(gone))
        fresh = [
            number
            for number in sorted(self.assigned - self.running.keys() - self._take_overs.keys())
            if self._may_start(number)
        ]
        if fresh and self._pause.ready():
            await self._take_over(fresh)
        for number in [n for n, start in self._take_overs.items() if start.done()]:
            changed |= self._finish_take_over(number)
        return changed

    def succeeded(self) -> None:
        """Record a successful commit, which resets the backoffs of take-overs after a while."""
        self._pause.succeeded()
        for number in self.running:
            self._backoff(number).succeeded()
            if number in self._stuck:
                self._stuck[number].succeeded()

    def stuck(self, number: int) -> None:
        """Back off a task whose output the broker refuses; the others continue."""
        longest = _STUCK_SECONDS
        self._stuck.setdefault(number, Backoff(self._clock.steady, longest=longest)).failed()

    async def end_session(self, why: str) -> None:
        """Drop every task and end the session; commits stay, and tasks can be taken over again."""
        if self.session is not None and self.session.is_over:
            self._report_unwritten()
        for number in list(self._take_overs):
            await self._cancel(number)
        for number in self.running:
            _log.info("task_dropped", task=number, why=why)
        self.running.clear()
        self.taken.clear()
        if self.session is not None:
            if self.session.is_over:
                self._pause.failed()
            await self.session.close()
            self.session = None

    def tombstones(self, numbers: Iterable[int]) -> list[ProducerRecord]:
        """The tombstones that give up these tasks: this worker writes nothing more for them."""
        assert self.session is not None
        return [
            owner_tombstone(self._settings.names, number, self.session.owner) for number in numbers
        ]

    async def close(self) -> None:
        """Drop every task and leave the group, so that other workers take over at once."""
        await self.end_session("shutdown")
        if self._member is not None:
            await self._member.close()

    def _backoff(self, number: int) -> Backoff:
        return self._backoffs.setdefault(number, Backoff(self._clock.steady))

    def _may_start(self, number: int) -> bool:
        stuck = self._stuck.get(number)
        return self._backoff(number).ready() and (stuck is None or stuck.ready())

    # --- taking over --------------------------------------------------------------------------

    async def _revoke(self, numbers: Sequence[int]) -> None:
        """Give up tasks that the group has assigned to another worker.

        The next owner trusts a tombstone as soon as it is in the log, even uncommitted. So the
        tombstone is a transaction of its own, after all others.
        """
        await self.before_giving_up()
        for number in numbers:
            if number in self._take_overs:
                await self._cancel(number)
            elif self.running.pop(number, None) is not None:
                _log.info("task_dropped", task=number, why="revoked")
            self._restorer.given_up(number)
        self.taken.difference_update(numbers)
        if self.session is not None:
            with suppress(BuddyError):  # then the next owner fences this session
                await self.session.commit(self.tombstones(numbers), {})

    async def _take_over(self, numbers: Sequence[int]) -> None:
        """Start the take-over of these tasks, with one commit for all."""
        session = self.session
        if session is None:
            session = Session(self._broker, self._settings.names)
            await session.open()
            self._sessions.add(session.owner)
            self.session = session
        names, owner = self._settings.names, session.owner
        registration = session.commit(
            [owner_record(names, number, owner) for number in numbers], {}
        )
        registered = asyncio.create_task(registration)
        registered.add_done_callback(_retrieved)
        self._registered = registered
        self.taken.update(numbers)
        for index, number in enumerate(numbers):
            start = self._run_take_over(number, owner, registered, index)
            self._take_overs[number] = asyncio.create_task(start)

    def _finish_take_over(self, number: int) -> bool:
        start = self._take_overs.pop(number)
        try:
            self.running[number] = start.result()
        except BuddyError as error:
            self._backoff(number).failed()
            self.on_not_started(number, error)
            return False
        return True

    def _report_unwritten(self) -> None:
        """Report the tasks whose owner records could not be committed."""
        if self._registered is None or not self._registered.done() or self._registered.cancelled():
            return
        error = self._registered.exception()
        if isinstance(error, BuddyError):
            for number in self._take_overs:
                self.on_not_started(number, error)

    async def _cancel(self, number: int) -> None:
        start = self._take_overs.pop(number)
        start.cancel()
        with suppress(asyncio.CancelledError, BuddyError):
            await start

    async def _run_take_over(
        self, number: int, owner: str, registered: asyncio.Task[list[tuple[int, int]]], index: int
    ) -> TaskHandle:
        """Take a task over; `registered[index]` locates its owner record in the log."""
        began = time.monotonic()
        _, offset = (await asyncio.shield(registered))[index]
        others = self._sessions - {owner}
        names = self._settings.names
        earlier = await fence_earlier(self._broker, names, number, owner, offset, others)
        handle = await self._restorer.restore(number, earlier)
        handle.task.owner = owner
        handle.note_written(names.owners, offset)
        handle.task.strike_out(earlier.owners)
        self.on_restored(time.monotonic() - began)
        task = handle.task
        _log.info("task_started", task=number, parked=len(task.parking), next=task.reading.next)
        return handle


async def _nothing() -> None:
    """Do nothing."""


def _retrieved(task: asyncio.Task[list[tuple[int, int]]]) -> None:
    """Mark the exception as retrieved, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()
