"""Opens the store of rejections up to date with the topics, whoever keeps it so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.desk.follow import bring_up_to_date, tell_open_transactions
from worker.desk.goal import Goal, goal, offsets_left
from worker.desk.lacking import lacking
from worker.desk.reading import Advance
from worker.desk.store import RejectionStore
from worker.errors import NoAnswer, StateError
from worker.stream import Partition

PATIENCE: Final = 40.0
"""How long to wait for another process that has the store open and makes no progress. Longer than a
broker keeps the transaction of a replay that was killed."""
_CREATING_SECONDS: Final = 5.0
"""How long to wait while another process creates the store."""
_STEP_SECONDS: Final = 0.1


def _unseen(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


class StoreAccess:
    """Opens the store in a directory for those who ask about rejections.

    If nobody has it open, this process brings it up to date. If another process has it open, this
    one only reads the store: a desk keeps it up to date, and a command soon ends.
    """

    def __init__(
        self, directory: Path, names: Names, missed: Callable[[str], None] | None = None
    ) -> None:
        """`missed` gets a line about each message that is not in the store and should be."""
        self.directory = directory
        self.names = names
        self._missed = missed

    @asynccontextmanager
    async def open(self, broker: Broker, *, whole: bool = False) -> AsyncIterator[RejectionStore]:
        """The store, up to date with the topics: see `up_to_date`."""
        store = await self.up_to_date(broker, whole=whole)
        try:
            yield store
        finally:
            await asyncio.to_thread(store.close)

    async def up_to_date(
        self, broker: Broker, *, whole: bool = False, advance: Advance = _unseen
    ) -> RejectionStore:
        """Open the store, once it is up to date: by this process, or by the one that has it open.

        With `whole`, open transactions are waited for, and damage raises DamagedLog; without, it is
        told (`missed`). Raises MissingTopic, BrokerUnavailable, StateError; and NoAnswer if the
        other process is silent for too long.
        """
        wanted = await goal(broker, self.names, whole=whole)
        total = before = sum(wanted.ends.values())
        moved = time.monotonic()
        while True:
            store = await self._opened()
            left: int | None = before
            if store is not None:
                try:
                    left = await self._left(broker, store, wanted, advance)
                except BaseException:
                    await asyncio.to_thread(store.close)
                    raise
                if left == 0:
                    await self._tell(broker, store, whole=whole)
                    return store
                await asyncio.to_thread(store.close)
            if left is None:  # a topic was created anew, or the other process has to notice it
                wanted = await goal(broker, self.names, whole=whole)
                left = before
            if left != before:
                before, moved = left, self._moved(moved)
            if time.monotonic() - moved >= self._patience():
                raise self._silence(left)
            advance(max(0, total - left), total)
            await asyncio.sleep(_STEP_SECONDS)

    async def catch_up(
        self,
        broker: Broker,
        store: RejectionStore,
        *,
        whole: bool = False,
        advance: Advance = _unseen,
    ) -> None:
        """Bring a store that this process owns up to date. Raises what `up_to_date` raises."""
        missed = self._missed or (lambda _line: None)

        def unreadable(partition: Partition, offset: int) -> None:
            what = "audit of a replay" if partition.topic.endswith(".replays") else "rejection"
            missed(f"{partition.topic}/{partition.number}/{offset} is no {what}: skipped")

        await bring_up_to_date(broker, store, unreadable, advance, missed, whole=whole)

    # --- what readers beside a desk do otherwise ----------------------------------------------

    def _open(self) -> RejectionStore | None:
        """Open the store now; None to try again. Blocking. Raises StateError."""
        return opened(self.directory, self.names)

    def _patience(self) -> float:
        return PATIENCE

    def _moved(self, _since: float) -> float:
        """From when the patience counts, after the other process has read something."""
        return time.monotonic()

    def _silence(self, left: int) -> NoAnswer:
        return NoAnswer(
            f"the process that has {self.directory} open has read nothing for"
            f" {PATIENCE:.0f} s, and {left} messages are left: see its log"
        )

    # --- inside -------------------------------------------------------------------------------

    async def _opened(self) -> RejectionStore | None:
        opening = asyncio.ensure_future(asyncio.to_thread(self._open))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(_close)
            raise

    async def _left(
        self, broker: Broker, store: RejectionStore, wanted: Goal, advance: Advance
    ) -> int | None:
        """See `offsets_left`; 0 for a store of this process, which is brought up to date."""
        if store.database.read_only:
            return await asyncio.to_thread(offsets_left, store, wanted)
        await self.catch_up(broker, store, whole=wanted.whole, advance=advance)
        return 0

    async def _tell(self, broker: Broker, store: RejectionStore, *, whole: bool) -> None:
        if self._missed is not None and store.database.read_only and not whole:
            for line in await asyncio.to_thread(lacking, store):
                self._missed(line)
            await tell_open_transactions(broker, self.names, self._missed)


class ReadingAccess(StoreAccess):
    """Only reads the store: a desk in this process or in another one keeps it up to date."""

    def __init__(self, directory: Path, names: Names, seconds: float) -> None:
        """The store must be up to date within so many seconds, or else `up_to_date` raises."""
        super().__init__(directory, names)
        self._seconds = seconds

    def _open(self) -> RejectionStore | None:
        try:
            return RejectionStore(self.directory, self.names, read_only=True)
        except StateError:  # it is not there yet, or is being replaced
            return None

    def _patience(self) -> float:
        return self._seconds

    def _moved(self, since: float) -> float:
        return since

    def _silence(self, left: int) -> NoAnswer:
        return NoAnswer(
            f"the desk has not read what the topics hold within {self._seconds:.0f} s, and"
            f" {left} messages are left: see its log"
        )


def opened(directory: Path, names: Names) -> RejectionStore:
    """Open the store; read-only if another process has it open. Blocking. Raises StateError."""
    patient_until = time.monotonic() + _CREATING_SECONDS
    while True:
        try:
            return RejectionStore(directory, names)
        except StateError as error:
            if not isinstance(error.__cause__, BlockingIOError):
                raise
        try:
            return RejectionStore(directory, names, read_only=True)
        except StateError:  # the other process is just creating it
            if time.monotonic() >= patient_until:
                raise
            time.sleep(_STEP_SECONDS)


def _close(opening: asyncio.Future[RejectionStore | None]) -> None:
    """Close a store that was opened for a caller who is gone."""
    if not opening.cancelled() and opening.exception() is None:
        store = opening.result()
        if store is not None:
            store.close()
