"""The sink as a service: consumes, and answers requests one after the other, until told to stop.

A request is done when its answer has been published; only then does its position move. A crash in
between means that it is taken up again, and an export that was finished is announced again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec
import structlog

from worker.brokers.contract import Broker, Message, Outgoing, Partition, Reader
from worker.errors import BrokerUnavailable, BuddyError, MissingTopic, UsageError
from worker.sink.bookmarks import Bookmarks
from worker.sink.consume import Clock, Consumer, sleep
from worker.sink.cut import Source
from worker.sink.export import (
    ExportSettings,
    carry_out,
    clear_room,
    moment_of,
    settle_bookmarks,
)
from worker.sink.reports import Reports, unheard
from worker.sink.requests import (
    Announcement,
    ExportRequest,
    Progress,
    Status,
    encode_announcement,
    export_id_of,
    read_request,
    request_id_of,
)
from worker.sink.store import RowStore
from worker.topics import Names

EXPIRY_MS: Final = 3_600_000
"""Whoever asked longer ago has given up; a rebuilt store finds old requests, too."""

_POLL_SECONDS: Final = 0.2
_REPORT_SECONDS: Final = 1.0
_ALIVE_SECONDS: Final = 10.0
"""Whoever waits must see that a sink is there, also while it waits itself."""
_RETRY_SECONDS: Final = 1.0

_log = structlog.get_logger(__name__)


def _milliseconds() -> int:
    return time.time_ns() // 1_000_000


async def serve(
    broker: Broker,
    prefix: str,
    store_directory: Path,
    settings: ExportSettings,
    stop: asyncio.Event,
    *,
    clock: Clock = _milliseconds,
    reports: Reports | None = None,
) -> None:
    """Run a sink on an open broker until `stop` is set.

    Then the batch in hand is finished and an export in hand given up: the next start takes it up
    again. Raises `MissingTopic` and `BrokerUnavailable` at the start only (later outages are
    waited out), and `StateError` when the store is taken or cannot be written.
    """
    names = Names(prefix)
    store = await asyncio.to_thread(RowStore, store_directory, names)
    try:
        await asyncio.to_thread(clear_room, store_directory)
        for leftover in await asyncio.to_thread(settings.place.sweep):
            _log.warning("export_leftover_removed", name=leftover)
        await asyncio.to_thread(settle_bookmarks, Bookmarks(store), settings.place)
        reports = reports or unheard(clock)
        consumer = Consumer(broker, store, names, clock, reports)
        answers = _Answers(Source(broker, names, store, consumer, clock), settings)
        answers.on_export = reports.export
        await consumer.open()
        try:
            await answers.open()
            _log.info("sink_started", rows=sum(store.counts().values()))
            await _together(consumer, answers, stop)
        finally:
            await answers.close()
            await consumer.close()
    finally:
        await asyncio.to_thread(store.close)
    _log.info("sink_stopped", **msgspec.structs.asdict(consumer.counts))


async def _together(consumer: Consumer, answers: _Answers, stop: asyncio.Event) -> None:
    """Both run until `stop`; when one fails, the other is stopped and the failure raised."""
    ended = asyncio.Event()
    tasks = {
        asyncio.create_task(consumer.run(ended)),
        asyncio.create_task(answers.run(ended)),
    }
    waiting = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait({*tasks, waiting}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended.set()
        waiting.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


class _Answers:
    """Takes requests up in the order of their topic, and answers each."""

    def __init__(self, source: Source, settings: ExportSettings) -> None:
        self._source = source
        self._broker = source.broker
        self._names = source.names
        self._settings = settings
        self._clock = source.clock
        self._reader: Reader | None = None
        self.on_export: Callable[..., None] = lambda _seconds, **_finished: None
        """Told how long each export took, and whether it was `finished`."""

    async def open(self) -> None:
        """Begin after the last request that was answered."""
        requests, exports = self._names.export_requests, self._names.exports
        topics = await self._broker.topics([requests, exports])
        for name in (requests, exports):
            if name not in topics:
                raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
        places = [Partition(requests, number) for number in range(topics[requests].partitions)]
        spans = await self._broker.spans(places)
        held = self._source.store.positions()
        positions = {}
        for place, span in spans.items():
            position = held.get(place, span.start)
            # Outside of the log: the topic was created anew, or the rest has expired.
            positions[place] = position if span.start <= position <= span.end else span.start
        self._reader = self._broker.reader()
        self._reader.assign(positions)

    async def run(self, stop: asyncio.Event) -> None:
        """Answer until `stop`. Raises `StateError` when the store cannot be written."""
        if self._reader is None:
            raise RuntimeError("open before you run")
        while not stop.is_set():
            try:
                messages = await self._reader.read(1, _POLL_SECONDS)
            except BrokerUnavailable:
                await sleep(stop, _RETRY_SECONDS)
                continue
            for message in messages:
                if not await self._answer(message, stop):
                    return
                place = Partition(message.topic, message.partition)
                await asyncio.to_thread(self._source.store.note, {place: message.offset + 1})

    async def close(self) -> None:
        """Stop reading; `run` must have ended."""
        if self._reader is not None:
            await self._reader.close()

    async def _answer(self, message: Message, stop: asyncio.Event) -> bool:
        """Answer one request, whatever the broker does meanwhile; False if `stop` came first."""
        while not stop.is_set():
            task = asyncio.create_task(self._answer_once(message))
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                stopping.cancel()
                task.cancel()  # nothing happens if it is done
                await asyncio.wait({task})
            if task.cancelled():
                return False
            try:
                task.result()
            except BrokerUnavailable as error:
                _log.warning("export_waits_for_broker", error=str(error))
                await sleep(stop, _RETRY_SECONDS)
            else:
                return True
        return False

    async def _answer_once(self, message: Message) -> None:
        age = self._clock() - message.timestamp
        if age > EXPIRY_MS:
            _log.info("export_request_expired", offset=message.offset, seconds=age // 1000)
            return
        try:
            request = read_request(message)
        except UsageError as error:
            await self._fail(request_id_of(message), str(error))
            return
        _log.info("export_started", request=request.id, entities=len(request.entities))
        began = time.monotonic()
        await self._announce(self._words(request.id, "started"))
        try:
            announcement = await self._carry_out(request)
        except BrokerUnavailable:
            raise
        except BuddyError as error:
            self.on_export(time.monotonic() - began, finished=False)
            await self._fail(request.id, str(error))
        except Exception as error:  # noqa: BLE001 -- one request never ends the sink
            self.on_export(time.monotonic() - began, finished=False)
            _log.error("export_internal_error", request=request.id, kind=type(error).__name__)
            await self._fail(request.id, f"internal error: {type(error).__name__}")
        else:
            await self._announce(announcement)
            self.on_export(time.monotonic() - began, finished=True)
            _log.info(
                "export_finished",
                request=request.id,
                directory=announcement.directory,
                complete=announcement.complete,
            )
            if announcement.full_because is not None:
                _log.warning(
                    "export_full",
                    request=request.id,
                    bookmark=request.incremental,
                    reason=announcement.full_because,
                )

    async def _carry_out(self, request: ExportRequest) -> Announcement:
        """With an announcement of progress once a second, or of its absence every ten."""
        latest: list[Progress] = []

        def report(stage: str, done: int, total: int) -> None:
            latest[:] = [Progress(stage, done, total)]

        reporting = asyncio.create_task(self._report(request.id, latest))
        try:
            return await carry_out(request, self._source, self._settings, report)
        finally:
            reporting.cancel()
            await asyncio.wait({reporting})

    async def _report(self, request_id: str, latest: Sequence[Progress]) -> None:
        told: Progress | None = None
        spoke = time.monotonic()
        while True:
            await asyncio.sleep(_REPORT_SECONDS)
            if latest and (latest[0] != told or time.monotonic() - spoke >= _ALIVE_SECONDS):
                told = latest[0]
                spoke = time.monotonic()
                words = self._words(request_id, "progress")
                try:
                    await self._announce(msgspec.structs.replace(words, progress=told))
                except BuddyError as error:  # the export itself is what matters
                    _log.warning("export_progress_not_announced", error=str(error))

    async def _fail(self, request_id: str, error: str) -> None:
        _log.error("export_failed", request=request_id, error=error)
        words = self._words(request_id, "failed")
        await self._announce(msgspec.structs.replace(words, error=error))

    def _words(self, request_id: str, status: Status) -> Announcement:
        at = moment_of(self._clock())
        return Announcement(export_id_of(request_id), request_id, status, at)

    async def _announce(self, announcement: Announcement) -> None:
        key, value = encode_announcement(announcement)
        await self._broker.publish([Outgoing(self._names.exports, key, value)])
