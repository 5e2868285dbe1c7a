"""The tasks of this worker: take over, restore, give up."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from bisect import bisect_right
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import structlog

from worker.brokers.contract import Broker, Member
from worker.clock import Clock
from worker.core.books import Books
from worker.core.incidents import INTERNAL_SKIPPED, PROGRESS_LOST, UNREADABLE_INTERNAL
from worker.core.ownership import owner_record, owner_tombstone
from worker.core.pressure import weight
from worker.core.reading import Missed
from worker.core.task import Task
from worker.core.task_settings import TaskSettings
from worker.core.topics import OWNERS, PARKED, PROGRESS, RESERVATIONS, TASK_INPUTS, Names
from worker.engine.identities import Identities
from worker.engine.index_updater import INDEXED
from worker.engine.order import FOREVER
from worker.engine.saved import read_state
from worker.engine.session import Session, group_of
from worker.engine.takeover import fence_earlier
from worker.engine.truncation import Read, truncated_at, truncated_inputs
from worker.errors import BuddyError
from worker.stream import Message, OffsetRange, Partition, ProducerRecord
from worker.waiting import Backoff

_ASK_SECONDS: Final = 0.05
"""Interval of assignment requests, which read files on the embedded broker."""
_STUCK_SECONDS: Final = 60.0
"""The longest backoff of a stuck task: each retry costs the other tasks a session."""

_log = structlog.get_logger(__name__)


class TaskHandle:
    """One task of this worker, with the messages that it has not judged yet."""

    def __init__(self, task: Task, ends: Mapping[str, int]) -> None:
        self.task = task
        self.ends = ends
        """The end offset of each input at the take-over."""
        self.inbox: dict[str, list[Message]] = {name: [] for name in TASK_INPUTS}
        """The messages read but not judged, by input."""
        self.times: dict[str, list[int]] = {name: [] for name in TASK_INPUTS}
        """The times of these messages, as `put` computes them."""
        self.inbox_bytes = Counter[str]()
        self.read_until: dict[str, int] = {}
        """The time of the last message read, by input."""
        self.positions: dict[str, int] = {}
        """By input: the first offset after the latest batch."""
        self.missed = Missed()
        """The losses and re-created topics found at the take-over."""
        self.assigned = False
        """Whether the reader is assigned its inputs."""
        self.state_topics: dict[str, str] = {}
        """The identities of the topics that its state was last read from or rewritten to."""
        self.lost_offsets: dict[Partition, int] = {}
        """The number of lost offsets in the partitions of these topics at that time."""

    def put(self, messages: Sequence[Message], now: int) -> None:
        """Append messages of one input to its inbox, in offset order. `now` is the wall clock.

        A message counts as of its append time. Without one it counts as of the time that its
        producer gave, but not of one in the future, for which it would wait, nor before 1970.
        """
        name = self.task.inputs[messages[0].topic]
        times = [m.timestamp if m.appended else min(max(m.timestamp, 0), now) for m in messages]
        self.inbox[name] += messages
        self.inbox_bytes[name] += sum(map(weight, messages))
        self.times[name] += times
        self.read_until[name] = times[-1]

    def take(self, limits: Mapping[str, int]) -> list[Message]:
        """Remove and return the messages up to these times; inputs without a limit: all."""
        taken: list[Message] = []
        for name, messages in self.inbox.items():
            times, limit = self.times[name], limits.get(name, FOREVER)
            if not times or times[0] > limit:
                continue
            if times[-1] <= limit:
                taken += messages
                self.inbox[name], self.times[name] = [], []
                self.inbox_bytes[name] = 0
                continue
            count = bisect_right(times, limit)
            some, self.inbox[name] = messages[:count], messages[count:]
            self.times[name] = times[count:]
            taken += some
            self.inbox_bytes[name] -= sum(map(weight, some))
        return taken

    def taken_until(self) -> dict[str, int]:
        """The time up to which all users, and all matches, have left the inbox."""
        return {
            entity: times[0] - 1 if (times := self.times[entity]) else self.read_until[entity]
            for entity in INDEXED
            if entity in self.read_until
        }

    def waiting(self) -> int:
        """Number of messages in the inbox."""
        return sum(map(len, self.inbox.values()))


class TaskManager:
    """Runs the tasks that the group assigns to this worker, once they are restored.

    A take-over commits its owner record, then fences the earlier owners, then reads the state.
    This order makes the state complete: see docs/exactly-once.md, "Fence, then read".
    """

    def __init__(
        self, broker: Broker, settings: TaskSettings, identities: Identities, clock: Clock
    ) -> None:
        self.running: dict[int, TaskHandle] = {}
        self.assigned: frozenset[int] = frozenset()
        self.session: Session | None = None
        """The session that the tasks write with; None while there is none."""
        self._broker = broker
        self._settings = settings
        self._group = group_of(settings.names)
        self._identities = identities
        self._worker = f"{socket.gethostname()}/{os.getpid()}"
        """The name of this process in the books."""
        self._member: Member | None = None
        self._ask_at = 0.0
        """When to request the assignment again, in the loop's time."""
        self._take_overs: dict[int, asyncio.Task[TaskHandle]] = {}
        self._announced: asyncio.Task[list[tuple[int, int]]] | None = None
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
        self.commit_refusals: Callable[[int], Mapping[tuple[str, int], int]] = lambda _number: {}
        """Returns the records of a task whose outcome the broker refused, and how often."""
        self.on_unreadable: Callable[[Partition, Sequence[int]], None] = lambda _partition, _at: (
            None
        )
        """Called with the offsets of skipped messages of an internal topic."""
        self.on_holes: Callable[[Partition, int], None] = lambda _partition, _count: None
        """Called with the number of missing offsets of an internal topic: removed or damaged."""
        self.on_progress_lost: Callable[[Partition], None] = lambda _partition: None
        """Called for a task that has no checkpoint although it has worked before."""

    @property
    def missing_topics(self) -> Sequence[str]:
        """The topics of the tasks' state that are missing."""
        return self._identities.missing

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
        announcement = session.commit(
            [owner_record(names, number, owner) for number in numbers], {}
        )
        announced = asyncio.create_task(announcement)
        announced.add_done_callback(_retrieved)
        self._announced = announced
        self.taken.update(numbers)
        for index, number in enumerate(numbers):
            start = self._run_take_over(number, owner, announced, index)
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
        if self._announced is None or not self._announced.done() or self._announced.cancelled():
            return
        error = self._announced.exception()
        if isinstance(error, BuddyError):
            for number in self._take_overs:
                self.on_not_started(number, error)

    async def _cancel(self, number: int) -> None:
        start = self._take_overs.pop(number)
        start.cancel()
        with suppress(asyncio.CancelledError, BuddyError):
            await start

    async def _run_take_over(
        self, number: int, owner: str, announced: asyncio.Task[list[tuple[int, int]]], index: int
    ) -> TaskHandle:
        """Take a task over; `announced[index]` locates its owner record in the log."""
        began = time.monotonic()
        _, offset = (await asyncio.shield(announced))[index]
        others = self._sessions - {owner}
        names = self._settings.names
        earlier, gone = await fence_earlier(self._broker, names, number, owner, offset, others)
        handle = await self._restore(number, gone)
        handle.task.owner = owner
        handle.task.strike_out(earlier)
        self.on_restored(time.monotonic() - began)
        task = handle.task
        _log.info("task_started", task=number, parked=len(task.parking), next=task.reading.next)
        return handle

    async def _restore(self, number: int, gone: int) -> TaskHandle:
        """Restore a task from the log; `gone` offsets of its owners partition are missing."""
        names = self._settings.names
        task = Task(number, self._settings, Books(self._worker, self._clock.wall()))
        task.commit_refusals = self.commit_refusals(number)
        unreadable: Counter[Partition] = Counter()
        holes = Counter({Partition(names.owners, number): gone})

        def skipped(partition: Partition, offsets: Sequence[int]) -> None:
            unreadable[partition] += len(offsets)
            self.on_unreadable(partition, offsets)

        # Identities and lost offsets before the state, so that a later change is noticed.
        state = await self._identities.of_state()
        lost_before = await self._identities.lost_offsets(
            [Partition(name, number) for name in names.of_state()]
        )
        # Before the checkpoint, which another worker may have moved on by then.
        inputs = {name: Partition(names.input(name), number) for name in TASK_INPUTS}
        committed = await self._broker.committed(self._group, inputs.values())
        saved = await read_state(self._broker, self._settings, number, skipped, holes.update)
        task.restore(saved, self._clock.now())
        # A hole stays in the log, so `books.found` lets each loss be reported only once.
        topic_ids = {name: f"{name} {state.get(name, '')}" for name in names.of_state()}
        for partition, count in holes.items():
            if fresh := task.books.note_faults(INTERNAL_SKIPPED, topic_ids[partition.topic], count):
                self.on_holes(partition, fresh)
        for partition, count in unreadable.items():
            task.books.note_faults(UNREADABLE_INTERNAL, topic_ids[partition.topic], count)
        if saved.checkpoint is None:
            task.reading.topics = self._identities.of_inputs_before()
            is_another = self._identities.is_another(names.progress, state.get(names.progress, ""))
            if is_another or committed:
                await self._identities.check()  # if the inputs are others, a new loop reports it
                task.books.incident(PROGRESS_LOST)
                self.on_progress_lost(Partition(names.progress, number))
        spans = await self._broker.spans(inputs.values())
        left = await self._left(task, inputs)
        handle = TaskHandle(
            task, {name: spans[partition].end for name, partition in inputs.items()}
        )
        handle.state_topics = state
        handle.lost_offsets = lost_before
        handle.missed = task.compare_topics(
            self._identities.of_inputs(),
            left,
            of_state(state, names) | (self._identities.of_outcomes() if number == 0 else {}),
            {names.entity_of(partition.topic): at for partition, at in committed.items()},
        )
        if handle.missed.truncated:
            await self._identities.check()  # if the topic is another one, this was no truncation
        return handle

    async def _left(self, task: Task, inputs: Mapping[str, Partition]) -> dict[str, OffsetRange]:
        """What the inputs hold, open transactions included; without what came after a truncation.

        Measured after the checkpoint was read. If another worker overtakes this take-over, its
        checkpoint is beyond ends that were measured before.
        """
        spans = await self._broker.spans(inputs.values(), uncommitted=True)
        identities = self._identities.of_inputs()
        read = {
            inputs[name]: Read(task.reading.first_unread(name), task.reading.arrived.get(name, 0))
            for name, topic in task.reading.topics.items()
            if topic and topic == identities.get(name)
        }
        for partition in await truncated_inputs(self._broker, read):
            span = spans[partition]
            end = await truncated_at(self._broker, partition, span, read[partition].latest)
            spans[partition] = OffsetRange(span.start, end)
        return {name: spans[partition] for name, partition in inputs.items()}


def of_state(identities: Mapping[str, str], names: Names) -> dict[str, str]:
    """The identities of the topics of a task's state, by their names in its checkpoint."""
    topics = {
        PROGRESS: names.progress,
        PARKED: names.parked,
        RESERVATIONS: names.granted,
        OWNERS: names.owners,
    }
    return {name: identities.get(topic, "") for name, topic in topics.items()}


async def _nothing() -> None:
    """Do nothing."""


def _retrieved(task: asyncio.Task[list[tuple[int, int]]]) -> None:
    """Mark the exception as retrieved, so that asyncio does not log it."""
    if not task.cancelled():
        task.exception()


def reached(task: Task, settings: TaskSettings) -> dict[Partition, int]:
    """The next unread offset of each input, for group offsets; ignores records read again."""
    return {
        Partition(settings.names.input(name), task.number): offset
        for name, offset in task.reading.reached.items()
    }


def inputs(task: Task, settings: TaskSettings) -> dict[Partition, int]:
    """The next offset to read of each input of a task."""
    return {
        Partition(settings.names.input(name), task.number): offset
        for name, offset in task.reading.next.items()
    }
