"""The tasks that this worker owns: taken over, restored, given up."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import structlog

from worker.brokers.contract import Broker, Committer, Member, Message, Partition
from worker.clock import Clock
from worker.core.books import Books
from worker.core.outbox import Rules
from worker.core.pressure import weight
from worker.core.reading import Missed
from worker.core.task import (
    GRANTED,
    INPUTS,
    INTERNAL_SKIPPED,
    PARKED,
    PROGRESS,
    PROGRESS_LOST,
    UNREADABLE_INTERNAL,
    Task,
)
from worker.engine.backoff import Backoff
from worker.engine.identities import Identities
from worker.engine.saved import read_saved
from worker.errors import BuddyError
from worker.index.contract import Learned
from worker.topics import Names

GROUP: Final = "worker"


_log = structlog.get_logger(__name__)


class Owned:
    """One task of this worker: its committer, what it has still to judge, what it is at."""

    def __init__(self, task: Task, committer: Committer, ends: Mapping[str, int]) -> None:
        self.task = task
        self.committer = committer
        self.ends = ends
        """Where each of its inputs ended when it was taken over."""
        self.inbox: list[Message] = []
        self.inbox_bytes = 0
        self.learned = Learned([], [])
        self.positions: dict[str, int] = {}
        """Where what it has judged, or is judging, ends."""
        self.work: asyncio.Task[bool] | None = None
        self.touched = 0
        """When it last began to commit, on the steady clock."""
        self.told = 0
        """When it last told the group where it reads, on the steady clock."""
        self.untold = False
        """Whether it has read on since."""
        self.missed = Missed()
        """What had happened to its inputs when it was taken over."""
        self.assigned = False
        """Whether its inputs are being read."""
        self.state: dict[str, str] = {}
        """The identities of the topics that its state was read from, or written to since."""

    def take(self, message: Message) -> None:
        """Put a message into the inbox."""
        self.inbox.append(message)
        self.inbox_bytes += weight(message)

    def empty(self) -> list[Message]:
        """All that is in the inbox; it is empty then."""
        messages, self.inbox, self.inbox_bytes = self.inbox, [], 0
        return messages


class Tasks:
    """Which tasks run here: those that the group assigns, once they are restored.

    Taking over starts with the committer, which fences whoever had the task before; only then is
    its state read, so it is complete.
    """

    def __init__(self, broker: Broker, rules: Rules, identities: Identities, clock: Clock) -> None:
        self.running: dict[int, Owned] = {}
        self.assigned: frozenset[int] = frozenset()
        self._broker = broker
        self._rules = rules
        self._group = f"{rules.names.prefix}-{GROUP}"
        self._identities = identities
        self._worker = f"{socket.gethostname()}/{os.getpid()}"
        """How the books name this process."""
        self._member: Member | None = None
        self._starting: dict[int, asyncio.Task[Owned]] = {}
        self._clock = clock
        self._backoffs: dict[int, Backoff] = {}
        self.on_restored: Callable[[float], None] = lambda _seconds: None
        """Told how long each take-over took, in seconds."""
        self.on_not_started: Callable[[int, BuddyError], None] = lambda _number, _error: None
        """Told which task could not be taken over, and why."""
        self.refused: Callable[[int], Mapping[tuple[str, int], int]] = lambda _number: {}
        """Asked which records of a task the broker has refused an outcome of, and how often."""
        self.on_unreadable: Callable[[Partition, Sequence[int]], None] = lambda _place, _at: None
        """Told the offsets of messages of internal topics that were skipped."""
        self.on_holes: Callable[[Partition, int], None] = lambda _place, _count: None
        """Told how many damaged offsets of an internal topic were skipped."""
        self.on_progress_lost: Callable[[Partition], None] = lambda _place: None
        """Told of a task that has no progress, though it has worked before."""

    async def join(self) -> None:
        """Become a member of the group."""
        self._member = await self._broker.join(self._group, self._rules.names.inputs("users"))

    async def update(self) -> bool:
        """Take over what has been assigned, give up what has not; whether `running` changed."""
        assert self._member is not None
        self.assigned = await self._member.assignment()
        changed = False
        for number in [n for n in self.running if n not in self.assigned]:
            await self.drop(number, "revoked")
            changed = True
        for number in [n for n in self._starting if n not in self.assigned]:
            await self._cancel(number)
        for number in self.assigned - self.running.keys() - self._starting.keys():
            backoff = self._backoff(number)
            if backoff.ready():
                self._starting[number] = asyncio.create_task(self._start(number))
        for number in [n for n, start in self._starting.items() if start.done()]:
            changed |= self._started(number)
        return changed

    async def drop(self, number: int, why: str) -> None:
        """Give up a task; what it had committed stays, and it can be taken over again."""
        owned = self.running.pop(number, None)
        if owned is None:
            return
        _log.info("task_dropped", task=number, why=why)
        if owned.work is not None and owned.work is not asyncio.current_task():
            await asyncio.wait({owned.work})  # bounded by the committer's own time limits
            owned.work.exception()  # looked at: whatever it was, the task is given up
        await owned.committer.close()

    def failed(self, number: int) -> None:
        """Wait a little longer before this task is taken over the next time."""
        self._backoff(number).failed()

    def succeeded(self, number: int) -> None:
        """The task commits: in a while the next take-over need not wait."""
        if number in self._backoffs:
            self._backoffs[number].succeeded()

    async def drop_all(self, why: str) -> None:
        """Give up every task."""
        for number in list(self._starting):
            await self._cancel(number)
        for number in list(self.running):
            await self.drop(number, why)

    async def close(self) -> None:
        """Give up every task and leave the group, so that others take over at once."""
        await self.drop_all("shutdown")
        if self._member is not None:
            await self._member.close()

    def _backoff(self, number: int) -> Backoff:
        return self._backoffs.setdefault(number, Backoff(self._clock.steady))

    # --- taking over --------------------------------------------------------------------------

    def _started(self, number: int) -> bool:
        start = self._starting.pop(number)
        try:
            self.running[number] = start.result()
        except BuddyError as error:
            self.failed(number)
            self.on_not_started(number, error)
            return False
        return True

    async def _cancel(self, number: int) -> None:
        start = self._starting.pop(number)
        start.cancel()
        try:
            owned = await start
        except (asyncio.CancelledError, BuddyError):
            return
        await owned.committer.close()

    async def _start(self, number: int) -> Owned:
        began = time.monotonic()
        names = self._rules.names
        committer = await self._broker.committer(committer_name(names, number), self._group)
        try:
            owned = await self._restore(number, committer)
        except BaseException:
            await committer.close()
            raise
        self.on_restored(time.monotonic() - began)
        task = owned.task
        _log.info("task_started", task=number, parked=len(task.parking), next=task.reading.next)
        return owned

    async def _restore(self, number: int, committer: Committer) -> Owned:
        """A task as the log says it stands."""
        names = self._rules.names
        task = Task(number, self._rules, Books(self._worker, self._clock.wall()))
        task.refused = self.refused(number)
        unreadable: Counter[Partition] = Counter()
        holes: Counter[Partition] = Counter()

        def skipped(place: Partition, offsets: Sequence[int]) -> None:
            unreadable[place] += len(offsets)
            self.on_unreadable(place, offsets)

        state = await self._identities.of_state()  # before it is read: what is anew then is noticed
        saved = await read_saved(self._broker, self._rules, number, skipped, holes.update)
        task.restore(saved, self._clock.now())
        # A hole stays in the log: its loss is told once.
        own = (names.progress, names.parked, names.granted)
        very = {name: f"{name} {state.get(name, '')}" for name in own}
        for place, count in holes.items():
            if fresh := task.books.found(INTERNAL_SKIPPED, very[place.topic], count):
                self.on_holes(place, fresh)
        for place, count in unreadable.items():
            task.books.found(UNREADABLE_INTERNAL, very[place.topic], count)
        inputs = {name: Partition(names.input(name), number) for name in INPUTS}
        if saved.progress is None and await self._broker.committed(self._group, inputs.values()):
            task.books.incident(PROGRESS_LOST)
            self.on_progress_lost(Partition(names.progress, number))
        spans = await self._broker.spans(inputs.values())
        owned = Owned(task, committer, {name: spans[place].end for name, place in inputs.items()})
        owned.state = state
        owned.missed = task.begin(
            self._identities.of_inputs(),
            {name: spans[place].start for name, place in inputs.items()},
            of_state(state, names) | (self._identities.of_outcomes() if number == 0 else {}),
        )
        return owned


def of_state(identities: Mapping[str, str], names: Names) -> dict[str, str]:
    """The identities of the topics of a task's state, as its progress names them."""
    topics = {PROGRESS: names.progress, PARKED: names.parked, GRANTED: names.granted}
    return {name: identities.get(topic, "") for name, topic in topics.items()}


def committer_name(names: Names, number: int) -> str:
    """Under which name a task commits: on Kafka its transactional id."""
    return f"{names.prefix}-task-{number}"


def reached(task: Task, rules: Rules) -> dict[Partition, int]:
    """How far a task has read every input, as people are told."""
    return {
        Partition(rules.names.input(name), task.number): offset
        for name, offset in task.reading.reached.items()
    }


def inputs(task: Task, rules: Rules) -> dict[Partition, int]:
    """Where every input of a task is to be read next."""
    return {
        Partition(rules.names.input(name), task.number): offset
        for name, offset in task.reading.next.items()
    }
