"""The sink as a service: it consumes, stands for election, and leads while elected."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
import structlog

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.clock import Clock
from worker.core.topics import Names, are_missing
from worker.errors import (
    BrokerUnavailable,
    BuddyError,
    DamagedLog,
    MissingTopic,
    StateError,
    StateLost,
)
from worker.exports.places.place import ExportPlace, NoSealError
from worker.sink.attempt import reconcile_bookmarks
from worker.sink.election import Election
from worker.sink.export import check_rooms, clear_spool
from worker.sink.export_settings import ExportSettings
from worker.sink.leader import Leader
from worker.sink.reports import SinkReports, unheard
from worker.sink.selection.bookmarks import Bookmarks
from worker.sink.selection.cut import CutSource
from worker.sink.store.consume import Consumer
from worker.sink.store.row_store import RowStore
from worker.waiting import Backoff, together, wait

_LOOK_SECONDS: Final = 1.0
_LOOK_AT_ROOMS_SECONDS: Final = 10.0
_LOOK_AT_TOPICS_SECONDS: Final = 10.0
_TOPICS: Final = "topics"
"""The part of its work in which a sink is hindered if an export would find no topic."""
_ROOMS: Final = "spool"
"""The part of its work in which a sink is hindered if exports find no room beside the store."""

_log = structlog.get_logger(__name__)


async def serve(
    broker: Broker,
    prefix: str,
    store_directory: Path,
    settings: ExportSettings,
    stop: asyncio.Event,
    *,
    clock: Clock | None = None,
    reports: SinkReports | None = None,
) -> None:
    """Run a sink on an open broker until `stop` is set.

    On `stop`, the sink finishes the batch in hand and abandons an export in hand; the next start
    makes that export. Sets `stop` when it fails. Raises `errors.WAITED_OUT` during start-up only.
    Raises `StateError` if the store is in use or cannot be written.
    """
    clock = clock or Clock()
    names = Names(prefix)
    store = await asyncio.to_thread(RowStore, store_directory, names)
    reports = reports or unheard(clock.steady)
    watching = asyncio.create_task(_watch(settings.place, reports, stop))
    try:
        await asyncio.to_thread(clear_spool, store_directory)
        try:
            with suppress(NoSealError):  # it concerns one export, and the upkeep reports it
                for leftover in await asyncio.to_thread(settings.place.sweep):
                    _log.warning("export_leftover_removed", name=leftover)
            with suppress(StateLost):  # the store notes the damage; the consumer wipes it
                await asyncio.to_thread(reconcile_bookmarks, Bookmarks(store), settings.place)
        except StateError:
            if stop.is_set():  # `stop` ended the wait for an unreachable place
                return
            raise
        consumer = Consumer(broker, store, names, clock, reports)
        source = CutSource(broker, names, store, consumer, clock.wall, reports.unreadable)
        election = Election(broker, names, reports, clock)
        leader = Leader(source, settings, election, reports, clock)
        await _check_topics(broker, names)
        try:
            if not await _opened(consumer, stop, reports, clock):
                return
            await election.join()
            _log.info("sink_started", rows=sum(store.counts().values()))
            await together(
                stop,
                consumer.run(stop),
                election.run(stop),
                leader.run(stop),
                _watch_rooms(store_directory, reports, stop),
                _watch_topics(broker, names, reports, stop),
            )
        finally:
            await election.close()
            await consumer.close()
    finally:
        watching.cancel()
        await asyncio.to_thread(store.close)
    _log.info("sink_stopped", **msgspec.structs.asdict(consumer.counts))


async def _opened(
    consumer: Consumer, stop: asyncio.Event, reports: SinkReports, clock: Clock
) -> bool:
    """Open the consumer; wait while the log is damaged or away. False if stopped first."""
    backoff = Backoff(clock.steady)
    while True:
        try:
            await consumer.open()
        except (DamagedLog, BrokerUnavailable) as error:
            seconds = backoff.failed()
            # Until the consumer finds no damage, or reads.
            what = "log" if isinstance(error, DamagedLog) else "broker"
            reports.hindered(what, str(error))
            reports.alive()  # a restart does not cure it
            _log.warning("sink_waits_for_broker", error=str(error), seconds=round(seconds, 1))
            await wait(stop, seconds)
        else:
            return True
        if stop.is_set():
            return False


async def _watch(place: ExportPlace, reports: SinkReports, stop: asyncio.Event) -> None:
    """Report when the export place is unreachable or hangs, until `stop`.

    Then close the place, so that no call waits any longer for an unreachable one.
    """
    loop = asyncio.get_running_loop()
    place.tell(lambda away: loop.call_soon_threadsafe(reports.place, away))
    while not stop.is_set():
        reports.place_hangs(place.hang())
        await wait(stop, _LOOK_SECONDS)
    place.close()


async def _watch_rooms(store_directory: Path, reports: SinkReports, stop: asyncio.Event) -> None:
    """Report when exports find no room beside the store, until `stop`."""
    hindered = False
    while not stop.is_set():
        try:
            await asyncio.to_thread(check_rooms, store_directory)
        except StateError as error:
            if not hindered:
                _log.warning("export_room_unusable", error=str(error))
            hindered = True
            reports.hindered(_ROOMS, str(error))
        else:
            hindered = False
            reports.free(_ROOMS, after=0)
        await wait(stop, _LOOK_AT_ROOMS_SECONDS)


async def _watch_topics(
    broker: Broker, names: Names, reports: SinkReports, stop: asyncio.Event
) -> None:
    """Report topics that are missing and that exports need, also while none is due."""
    every = [names.input(entity) for entity in ENTITIES]
    every += [names.accepted(entity) for entity in ENTITIES]
    every += [names.progress, names.schedules, names.export_requests, names.exports]
    before: list[str] = []
    while not stop.is_set():
        with suppress(BuddyError):  # an outage is told by who reads
            there = await broker.topics(every)
            missing = [name for name in every if name not in there]
            for name in missing:
                if name not in before:
                    _log.warning("topic_missing", topic=name)
            before = missing
            if missing:
                reports.hindered(_TOPICS, are_missing(missing))
            else:
                reports.free(_TOPICS, after=0)
        await wait(stop, _LOOK_AT_TOPICS_SECONDS)


async def _check_topics(broker: Broker, names: Names) -> None:
    wanted = (names.exports, names.export_requests, names.schedules)
    there = await broker.topics(wanted)
    for name in wanted:
        if name not in there:
            raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
