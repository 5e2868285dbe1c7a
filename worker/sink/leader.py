"""The work of the leader: it answers requests one after the other, and runs the schedules.

The last answer is one transaction with the mark that the request, or the schedule's slot, is done.
Every announcement is a transaction of one writer: that of the leader. A sink that froze and thaws
is fenced: it announces nothing, drops its work in hand and stands for election again. After a crash
before the last transaction, the request is taken up again; a finished export is only announced.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextlib import AsyncExitStack
from typing import Any, Final, TypeVar

import structlog

from worker.brokers.contract import Broker, Committer, Reader
from worker.brokers.tables import read_checked
from worker.clock import Clock
from worker.errors import (
    WAITED_OUT,
    Fenced,
    MessageRefused,
    MissingTopic,
    StateLost,
    UsageError,
)
from worker.ops.steady_health import STEADY_MS
from worker.sink.agenda import Agenda, Due, read_standing
from worker.sink.answer_mark import KEY, AnswerMarks, Resumed, read_mark
from worker.sink.answers import Answers, message_of
from worker.sink.election import Election
from worker.sink.export_settings import ExportSettings
from worker.sink.reports import SinkReports
from worker.sink.requests import (
    Announcement,
    UnreadableRequest,
    read_request,
    request_id_of,
)
from worker.sink.selection.cut import CutSource
from worker.sink.upkeep import PlaceUpkeep
from worker.stream import Message, Partition, ProducerRecord
from worker.waiting import Backoff, wait

EXPIRY_MS: Final = 3_600_000
"""The age at which a request expires: its sender has given up. A group without positions finds such
old requests too. They still get an answer: a clock that was set makes requests look old, and
somebody may be waiting."""

_POLL_SECONDS: Final = 0.2
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 20.0
_STEADY_SESSION_MS: Final = 10_000
"""A session this long without a failure is a success too: there was nothing to answer."""
_LOOK_MS: Final = 5_000
"""How often to check whether the topic of requests has more partitions."""
_LEADING: Final = "requests and schedules"
"""The part of its work in which a leader can be hindered."""

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class Leader:
    """Does the leader's work while this sink is elected."""

    def __init__(
        self,
        source: CutSource,
        settings: ExportSettings,
        election: Election,
        reports: SinkReports,
        clock: Clock,
    ) -> None:
        self._source = source
        self._settings = settings
        self._election = election
        self._reports = reports
        self._clock = clock
        self._upkeep = PlaceUpkeep(settings.place, settings.keep, clock, reports.place)
        self._backoff = Backoff(clock.steady, _FIRST_PAUSE, _LONGEST_PAUSE)

    async def run(self, stop: asyncio.Event) -> None:
        """Lead whenever elected, until `stop`; then abandon an export in hand.

        Outages (`WAITED_OUT`), a topic that refuses even the shortest answer, and a rebuilt store
        are waited out with backoff. The backoff starts anew once some work is done. Raises
        `StateError`.
        """
        while not stop.is_set():
            try:
                if not self._election.elected.is_set():
                    self._reports.free(_LEADING, after=0)  # another sink may do the work by now
                await unless(stop, self._election.elected.wait())
                await self._lead(stop)
                self._reports.free(_LEADING, after=0)  # the work is no longer this sink's
            except Fenced:
                _log.warning("sink_fenced")
                await wait(stop, self._backoff.failed())
            except (*WAITED_OUT, MessageRefused, StateLost) as error:
                seconds = self._backoff.failed()
                self._reports.hindered(_LEADING, str(error))
                _log.warning("export_waits", error=str(error), seconds=round(seconds, 1))
                await wait(stop, seconds)
        await self._upkeep.close()

    async def _lead(self, stop: asyncio.Event) -> None:
        """Hold one leadership session, until the lead is lost; then finish the work in hand.

        Abandoning the work would gain nothing: the other sink has begun the same work by then.
        The slower of the two finds the finished export. The fence lets only the new leader
        commit.
        """
        if stop.is_set():
            return
        names, broker, group = self._source.names, self._source.broker, self._election.group
        async with AsyncExitStack() as stack:
            committer = await broker.committer(group, group)
            stack.push_async_callback(committer.close)
            reader = broker.reader()
            stack.push_async_callback(reader.close)
            table = await self._standings(broker)
            identities = await broker.identities([names.export_requests, names.exports])
            marks = AnswerMarks(names, identities, table.get(KEY))
            resumed = await marks.resume(broker, await self._answered(broker))
            positions, ends = await self._positions(broker, resumed.positions)
            reader.assign(positions)
            agenda = Agenda(self._settings.schedules, names, table)
            answers = Answers(self._source, committer, self._settings, self._reports)
            session = LeadershipSession(
                committer, answers, agenda, marks, self._upkeep, self._reports, self._clock
            )
            _log.info("sink_active")
            self._reports.active(is_active=True)
            began = looked = self._clock.steady()
            try:
                await session.begin(ends, resumed)
                while self._election.elected.is_set() and not stop.is_set():
                    if not await session.step(reader, stop):
                        break  # the next session finds out where to go on
                    if self._clock.steady() - looked >= _LOOK_MS:
                        looked = self._clock.steady()
                        if await self._partitions(broker) != len(positions):
                            break  # the next session reads the added partitions
                    is_steady = self._clock.steady() - began >= _STEADY_SESSION_MS
                    if is_steady or session.answered:
                        self._backoff.succeeded()
                        self._reports.free(_LEADING, after=0 if is_steady else STEADY_MS)
            finally:
                self._reports.active(is_active=False)
                _log.info("sink_passive")

    async def _standings(self, broker: Broker) -> dict[bytes, bytes]:
        """The standing of each schedule and the mark of answers, whichever sink wrote them."""
        partition = Partition(self._source.names.schedules, 0)
        table = await read_checked(broker, partition, _checked)
        for offset in table.unreadable:
            self._reports.unreadable(partition, offset)
        if table.holes:
            self._reports.skipped(partition, table.holes)
        return table.rows

    async def _answered(self, broker: Broker) -> dict[Partition, int]:
        """By partition of requests: the offset after the last one that any sink answered."""
        name, count = self._source.names.export_requests, await self._partitions(broker)
        places = [Partition(name, number) for number in range(count)]
        return await broker.committed(self._election.group, places)

    async def _positions(
        self, broker: Broker, answered: Mapping[Partition, int]
    ) -> tuple[dict[Partition, int], dict[Partition, int]]:
        """By partition of requests: where to go on, and the current end."""
        name, count = self._source.names.export_requests, await self._partitions(broker)
        spans = await broker.spans(Partition(name, n) for n in range(count))
        positions = {}
        for partition, span in spans.items():
            position = answered.get(partition, span.start)
            if position < span.start:
                self._reports.skipped(partition, span.start - position)
            # Outside the log: the topic was recreated, or the remaining messages have expired.
            positions[partition] = position if span.start <= position <= span.end else span.start
        return positions, {partition: span.end for partition, span in spans.items()}

    async def _partitions(self, broker: Broker) -> int:
        """Partitions of the topic of requests. It is created with one; somebody may add more."""
        name = self._source.names.export_requests
        topics = await broker.topics([name])
        if name not in topics:
            raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
        return topics[name].partitions


class LeadershipSession:
    """One period as the leader. Any exception ends the period.

    All exceptions but `Fenced` may come again in the next period.
    """

    def __init__(
        self,
        committer: Committer,
        answers: Answers,
        agenda: Agenda,
        marks: AnswerMarks,
        upkeep: PlaceUpkeep,
        reports: SinkReports,
        clock: Clock,
    ) -> None:
        self.answered = 0
        """The number of requests and slots that got their last answer."""
        self._ends: Mapping[Partition, int] = {}
        self._names = marks.names
        self._answers = answers
        self._agenda = agenda
        self._marks = marks
        self._upkeep = upkeep
        self._reports = reports
        self._committer = committer
        self._clock = clock

    async def begin(self, ends: Mapping[Partition, int], resumed: Resumed) -> None:
        """Save the standing of new schedules: they run from now on, and make up for no slot.

        Requests before `ends` were in the topic when this session began.
        """
        self._ends = ends
        fresh = self._agenda.begin(self._clock.now())
        offsets = resumed.positions if resumed.lost else {}
        await self._committer.commit([*fresh, *resumed.messages], offsets)
        for partition in resumed.lost:
            self._reports.lost_end(partition)
        self._reports.schedules(self._agenda.next())
        self._upkeep.sweep_soon()

    async def step(self, reader: Reader, stop: asyncio.Event) -> bool:
        """Handle at most one due slot and one request, so that neither starves the other.

        False if the topic of requests has lost its last messages: the positions are void.
        """
        self._upkeep.run_if_due()
        await self._correct()
        due = self._agenda.due(self._clock.now())
        if due is not None:
            await self._run(due, stop)
        messages = await reader.read(1, _POLL_SECONDS)
        if reader.truncated():
            return False
        for message in messages:
            await self._take_up(message, stop)
        for partition, count in (*reader.skipped().items(), *reader.expired().items()):
            self._reports.skipped(partition, count)
        return True

    async def _correct(self) -> None:
        """Correct the schedules after the wall clock was set back."""
        corrected = self._agenda.correct(self._clock.now())
        if not corrected:
            return
        following = self._agenda.next()
        for message in corrected:
            name = (message.key or b"").decode()
            _log.warning("schedule_clock_back", schedule=name, next=following[name].isoformat())
        await self._committer.commit(corrected, {})
        self._reports.schedules(following)

    async def _run(self, due: Due, stop: asyncio.Event) -> None:
        answer = await unless(stop, self._answers.answer(due.request, scheduled=True))
        if answer is None:
            return
        if answer.decided:
            mark = self._marks.answered(None, answer.said.request_id)
            await self._say(answer.said, [self._agenda.message_of(due, answer.said.id), mark], {})
            self._agenda.note_done(due, answer.said.id)
        else:
            await self._say(answer.said, [], {})
            self._agenda.postpone(due, self._clock.now())
        self._reports.schedules(self._agenda.next())

    async def _take_up(self, message: Message, stop: asyncio.Event) -> None:
        partition = Partition(message.topic, message.partition)
        offsets = {partition: message.offset + 1}
        try:
            request = read_request(message)
        except UsageError as error:
            if isinstance(error, UnreadableRequest):
                self._reports.unreadable(partition, message.offset)
            said = self._answers.fail(request_id_of(message), str(error))
            await self._say(said, [self._marks.answered(message, said.request_id)], offsets)
            return
        mark = self._marks.answered(message, request.id)
        age = self._clock.wall() - message.timestamp
        # A request that came during this session is young, whatever the wall clock says.
        if message.offset < self._ends.get(partition, 0) and age > EXPIRY_MS:
            _log.warning("export_request_expired", request=request.id, seconds=age // 1000)
            await self._say(await self._answers.answer_expired(request), [mark], offsets)
            return
        answer = await unless(stop, self._answers.answer(request))
        if answer is not None:
            await self._say(answer.said, [mark], offsets)

    async def _say(
        self, said: Announcement, more: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
    ) -> None:
        try:
            places = await self._committer.commit([message_of(self._names, said), *more], offsets)
        except MessageRefused as error:
            failure = self._answers.fail(said.request_id, str(error))
            said_instead = [message_of(self._names, failure), *more]
            places = await self._committer.commit(said_instead, offsets)
        if self._marks.announced(places[0][1]):
            self._reports.lost_end(Partition(self._names.exports, 0))
        self.answered += 1
        if said.directory is not None:
            self._upkeep.announced(said.directory)
        else:
            self._upkeep.sweep_soon()


def _checked(key: bytes, value: bytes) -> bytes | None:
    """The value if a sink can have written it."""
    is_ours = read_mark(value) if key == KEY else read_standing(key, value)
    return None if is_ours is None else value


async def unless(stop: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    """The result of `work`; None if `stop` cancelled it first. `work` has ended in either case."""
    task = asyncio.create_task(work)
    stopping = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()
        task.cancel()  # no effect on a finished task
        await asyncio.wait({task})
    return None if task.cancelled() else task.result()
