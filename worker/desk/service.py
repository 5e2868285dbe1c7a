"""The desk as a service: it follows the topics into its store until it is stopped."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Final

import structlog

from worker.brokers.contract import Broker
from worker.clock import Clock
from worker.core.topics import Names
from worker.desk.follow import DeskUpdater
from worker.desk.reading import Stopped
from worker.desk.reports import DeskReports
from worker.desk.still_open import still_open
from worker.desk.store import RejectionStore
from worker.errors import WAITED_OUT, StateError
from worker.waiting import Backoff, wait

_PAUSE_SECONDS: Final = 1.0
"""Between passes."""
_STORE, _BROKER = "desk", "broker"
"""The parts of its work in which it can be hindered."""

_log = structlog.get_logger(__name__)


async def serve(
    broker: Broker,
    names: Names,
    directory: Path,
    stop: asyncio.Event,
    reports: DeskReports,
    clock: Clock,
    *,
    share: float = 1.0,
) -> None:
    """Keep the store in `directory` up to date until `stop` is set.

    `share` is the part of the time in which it reads; the rest is for others in the process. A
    store that cannot be used, a broker that is away, damage and a missing topic are reported and
    waited out: nothing here ends a worker in the same process.
    """
    backoff = Backoff(clock.steady, longest=30.0)
    while not stop.is_set():
        try:
            store = await asyncio.to_thread(RejectionStore, directory, names)
            reports.opened()
            try:
                updater = DeskUpdater(
                    broker, store, reports.unreadable, reports.missed, share=share, stop=stop
                )
                await _follow(updater, stop, reports, backoff)
            finally:
                await asyncio.to_thread(store.close)
        except Stopped:
            break
        except StateError as error:
            seconds = backoff.failed()
            reports.waits(_STORE, error, seconds)
            await wait(stop, seconds)
    _log.info("desk_stopped")


async def _follow(
    updater: DeskUpdater, stop: asyncio.Event, reports: DeskReports, backoff: Backoff
) -> None:
    """Follow until `stop`. Raises Stopped, and StateError of the store."""
    store = updater.store
    try:
        while not stop.is_set():
            try:
                if await updater.catch_up(reports.read):
                    reports.still_open(await asyncio.to_thread(still_open, store))
                reports.free(_STORE, after=0)  # it is open and has taken what was read
                reports.free(_BROKER)
                reports.caught_up(store.replayed, store.database.rebuilt)
                if reports.transactions_are_due():
                    reports.open_transactions(await updater.blocked())
            except WAITED_OUT as error:
                seconds = backoff.failed()
                reports.waits(_BROKER, error, seconds)
                await wait(stop, seconds)
            else:
                backoff.succeeded()
                await wait(stop, _PAUSE_SECONDS)
    finally:
        await updater.close()
