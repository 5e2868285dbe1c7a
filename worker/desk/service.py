"""The desk as a service: it follows the topics into its store until it is stopped."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, Final

import structlog

from worker.brokers.contract import Broker
from worker.clock import Clock, StepWatch
from worker.core.topics import Names
from worker.desk.detection import BUCKET_MS
from worker.desk.follow import DeskUpdater
from worker.desk.incidents import IncidentBook, IncidentReport
from worker.desk.reading import Stopped
from worker.desk.reports import DeskReports
from worker.desk.still_open import still_open
from worker.desk.store import RejectionStore
from worker.desk.webhook import Webhook, WebhookFailed
from worker.errors import WAITED_OUT, StateError
from worker.waiting import Backoff, Interval, wait

_PAUSE_SECONDS: Final = 1.0
"""Between passes."""
_LATE_MS: Final = 2_000
"""After its end, a bucket is looked at: by then its verdicts are committed and read, as a rule."""
_LONG_MS: Final = 10_000
"""After a pass that took longer, the next one reads what is not of this moment."""
_MEASURE_EVERY_MS: Final = 5_000
"""How often to look for damage and open transactions, which costs requests to the broker."""
_LAST_SECONDS: Final = 2.0
"""How long a stop waits for the webhook."""
_LEFT_SECONDS: Final = 35.0
"""How long a stand-in leaves the store alone for the desk that asked for it: longer than any pause
between two tries of a desk."""
_WANTED: Final = "wanted"
"""A file in the directory of the store by which a desk asks a stand-in for it."""
_STORE, _BROKER = "desk", "broker"
"""The parts of its work in which it can be hindered."""

_log = structlog.get_logger(__name__)


class DeskService:
    """Keeps a store up to date, and looks for incidents in what it reads."""

    _stands_in: ClassVar[bool] = False

    def __init__(
        self,
        broker: Broker,
        names: Names,
        directory: Path,
        reports: DeskReports,
        clock: Clock,
        *,
        webhook: Webhook | None = None,
        share: float = 1.0,
    ) -> None:
        """`share` is the part of the time in which it reads; the rest is for its process."""
        self._broker = broker
        self._names = names
        self._directory = directory
        self._reports = reports
        self._clock = clock
        self._webhook = webhook
        self._share = share
        self._wanted = directory / _WANTED
        self._stop = asyncio.Event()
        self._looked_at = 0
        """The number of the bucket up to which incidents were looked for."""
        self._sending: asyncio.Task[IncidentReport] | None = None
        self._retry = Backoff(clock.steady, first=1.0, longest=60.0)
        self._measuring = Interval(clock.steady, _MEASURE_EVERY_MS)
        # Its time passes steadily within a pass, and is the wall clock's again in the next one.
        self._wall_minus_steady = clock.wall() - clock.steady()
        self._steps = StepWatch(clock)

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set.

        A store that cannot be used, a broker that is away, damage and a missing topic are reported
        and waited out: nothing here ends a worker in the same process.
        """
        self._stop = stop
        backoff = Backoff(self._clock.steady, longest=30.0)
        while not stop.is_set():
            self._follow_clock()
            try:
                store = await self._open()
                self._reports.opened()
                try:
                    await self._work(store, backoff)
                finally:
                    await asyncio.to_thread(store.close)
                if self._stands_in:
                    await wait(stop, _LEFT_SECONDS)
            except Stopped:
                break
            except StateError as error:
                if isinstance(error.__cause__, BlockingIOError):  # another process has it open
                    if self._stands_in:
                        self._reports.beside()
                        await wait(stop, _PAUSE_SECONDS)
                        continue
                    await asyncio.to_thread(self._ask_for_it)
                seconds = backoff.failed()
                self._reports.waits(_STORE, error, seconds)
                await wait(stop, seconds)
        _log.info("desk_stopped")

    async def _open(self) -> RejectionStore:
        """Open the store. After a kill, a large one is checked for minutes: that is progress."""
        opening = asyncio.create_task(
            asyncio.to_thread(RejectionStore, self._directory, self._names)
        )
        while not opening.done():
            await asyncio.wait({opening}, timeout=_PAUSE_SECONDS)
            self._reports.alive()
        return opening.result()

    async def _work(self, store: RejectionStore, backoff: Backoff) -> None:
        """Work with one opening of the store, until the end or until a desk asks for it.

        Raises Stopped, and StateError of the store.
        """
        store.clock = self._now
        book = IncidentBook(store)
        if self._webhook is None and not self._stands_in:
            await asyncio.to_thread(book.forget_untold)
        updater = DeskUpdater(
            self._broker,
            store,
            self._reports.unreadable,
            self._reports.missed,
            self._reports.expired,
            share=self._share,
            stop=self._stop,
        )
        await asyncio.to_thread(self._forget_wish)
        try:
            while not self._stop.is_set():
                if self._stands_in and await asyncio.to_thread(self._wanted.exists):
                    return
                self._follow_clock()
                try:
                    await self._tell(book)
                    await self._pass(updater, book)
                except WAITED_OUT as error:
                    store.is_live = False
                    seconds = backoff.failed()
                    self._reports.waits(_BROKER, error, seconds)
                    await wait(self._stop, seconds)
                else:
                    backoff.succeeded()
                    await wait(self._stop, _PAUSE_SECONDS)
        finally:
            await updater.close()
            await self._finish_telling(book)

    async def _pass(self, updater: DeskUpdater, book: IncidentBook) -> None:
        store = updater.store
        # What is accepted later is not read in this pass, but what is rejected later may be.
        began = self._now()
        now = began - _LATE_MS
        if await updater.catch_up(self._reports.read):
            self._reports.still_open(await asyncio.to_thread(still_open, store))
        self._reports.free(_STORE, after=0)  # it is open and has taken what was read
        self._reports.free(_BROKER)
        identity = await asyncio.to_thread(lambda: store.database.identity)
        self._reports.caught_up(store.replayed, store.database.rebuilt, identity)
        store.is_live = self._now() - began < _LONG_MS
        if now // BUCKET_MS > self._looked_at:
            self._looked_at = now // BUCKET_MS
            # What a stand-in finds is for the desk that comes after it.
            tells = self._webhook is not None or self._stands_in
            changed = await asyncio.to_thread(book.detect, now, self._clock.wall(), tells=tells)
            self._reports.skew(store.skew)
            found = await asyncio.to_thread(book.reports, only_open=True)
            self._reports.incidents(changed, found)
        if self._measuring.begin_if_over():
            self._reports.damage(await self._broker.damage())
            self._reports.open_transactions(await updater.readable_ends())

    async def _tell(self, book: IncidentBook) -> None:
        """Note what became of the last message to the webhook, and begin with the next one.

        It is sent beside the reading, and again and again until the webhook takes it.
        """
        if self._webhook is None:
            return
        if self._sending is not None:
            if not self._sending.done():
                return
            sending, self._sending = self._sending, None
            try:
                report = sending.result()
            except WebhookFailed as error:
                self._reports.webhook(error, self._retry.failed())
            else:
                await asyncio.to_thread(book.told, report)
                self._retry.succeeded()
                self._reports.webhook(None)
        if self._retry.ready() and not self._stop.is_set():
            untold = await asyncio.to_thread(book.untold)
            if untold:
                self._sending = asyncio.create_task(self._webhook.send(untold[0]))
            else:
                self._reports.nothing_to_send()

    async def _finish_telling(self, book: IncidentBook) -> None:
        """Note the outcome of a message under way, or else it is sent again after the start."""
        if self._sending is not None:
            await asyncio.wait({self._sending}, timeout=_LAST_SECONDS)
            with suppress(StateError):
                await self._tell(book)
        if self._sending is not None:
            self._sending.cancel()
            await asyncio.wait({self._sending})
            self._sending = None

    def _ask_for_it(self) -> None:
        """Ask a stand-in for the store; another desk does not look."""
        with suppress(OSError):
            self._wanted.touch()

    def _forget_wish(self) -> None:
        """Remove what an earlier desk has asked for: it may have ended since."""
        with suppress(OSError):
            self._wanted.unlink(missing_ok=True)

    def _follow_clock(self) -> None:
        """If the wall clock was set, date by it from now on, as after a restart."""
        if step := self._steps.step():
            self._wall_minus_steady += step
            self._looked_at = 0  # it may lie in the future now
            self._reports.clock_stepped(step)

    def _now(self) -> int:
        return self._clock.steady() + self._wall_minus_steady


class StandInDesk(DeskService):
    """A desk that works only while no other one does.

    It waits in silence for its turn, and leaves the store to a desk that asks for it.
    """

    _stands_in = True
