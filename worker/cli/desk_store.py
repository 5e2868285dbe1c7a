"""Opens the store of rejections for a command, up to date with the topics."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from worker.cli.console import Context, complain, progress_bar
from worker.core.topics import Names
from worker.errors import NoAnswer, StateError
from worker.stream import Partition

if TYPE_CHECKING:
    from worker.brokers.contract import Broker
    from worker.desk.goal import Goal
    from worker.desk.reading import Advance
    from worker.desk.store import RejectionStore

_PATIENCE: Final = 40.0
"""How long to wait for another process that has the store open and makes no progress. Longer than a
broker keeps the transaction of a replay that was killed."""
_CREATING_SECONDS: Final = 5.0
"""How long to wait while another process creates the store."""
_STEP_SECONDS: Final = 0.1


@asynccontextmanager
async def open_desk(
    context: Context, *, quiet: bool
) -> AsyncIterator[tuple[Broker, RejectionStore]]:
    """The broker, and the store, up to date with the topics."""
    async with (
        context.broker(read_only=True) as broker,
        open_store(context, broker, quiet=quiet) as store,
    ):
        yield broker, store


@asynccontextmanager
async def open_store(
    context: Context, broker: Broker, *, quiet: bool, whole: bool = False
) -> AsyncIterator[RejectionStore]:
    """The store, up to date with the topics.

    If another process has it open, this one only reads the store: a desk keeps it up to date,
    and another command soon ends. With `whole`, open transactions are waited for.
    """
    store = await _up_to_date(context, broker, quiet=quiet, whole=whole)
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)


async def catch_up(broker: Broker, store: RejectionStore, *, quiet: bool, whole: bool) -> None:
    """Bring a store that this process owns up to date; say on standard error what is missing."""
    with _progress(quiet=quiet) as advance:
        await _catch_up(broker, store, advance, whole=whole)


async def _catch_up(
    broker: Broker, store: RejectionStore, advance: Advance, *, whole: bool
) -> None:
    from worker.desk.follow import bring_up_to_date

    await bring_up_to_date(broker, store, _garbage, advance, complain, whole=whole)


async def _up_to_date(
    context: Context, broker: Broker, *, quiet: bool, whole: bool
) -> RejectionStore:
    """The store, once it is up to date: by this process, or by the one that has it open."""
    from worker.desk.follow import tell_open_transactions
    from worker.desk.goal import goal

    wanted = await goal(broker, context.names, whole=whole)
    total = before = sum(wanted.ends.values())
    moved = time.monotonic()
    with _progress(quiet=quiet) as advance:
        while True:
            store = await asyncio.to_thread(opened, desk_directory(context), context.names)
            try:
                left = await _left(broker, store, wanted, advance)
            except BaseException:
                await asyncio.to_thread(store.close)
                raise
            if left == 0:
                if store.database.read_only and not whole:
                    await tell_open_transactions(broker, context.names, complain)
                return store
            await asyncio.to_thread(store.close)
            if left is None:  # a topic was created anew, or the other process has to notice it
                wanted = await goal(broker, context.names, whole=whole)
                left = before
            if left != before:
                before, moved = left, time.monotonic()
            if time.monotonic() - moved >= _PATIENCE:
                raise NoAnswer(
                    f"the process that has {desk_directory(context)} open has read nothing for"
                    f" {_PATIENCE:.0f} s, and {left} messages are left: see its log"
                )
            advance(max(0, total - left), total)
            await asyncio.sleep(_STEP_SECONDS)


async def _left(
    broker: Broker, store: RejectionStore, wanted: Goal, advance: Advance
) -> int | None:
    """See `offsets_left`; 0 for a store of this process, which is brought up to date."""
    from worker.desk.goal import offsets_left

    if store.database.read_only:
        return await asyncio.to_thread(offsets_left, store, wanted)
    await _catch_up(broker, store, advance, whole=wanted.whole)
    return 0


def desk_directory(context: Context) -> Path:
    """Where the store of rejections is."""
    return Path(context.settings.data) / "desk"


def opened(directory: Path, names: Names) -> RejectionStore:
    """Open the store; read-only if another process has it open. Blocking. Raises StateError."""
    from worker.desk.store import RejectionStore

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


@contextmanager
def _progress(*, quiet: bool) -> Iterator[Advance]:
    with progress_bar(quiet=quiet) as bar:
        task = bar.add_task("Reading rejections", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _garbage(partition: Partition, offset: int) -> None:
    what = "audit of a replay" if partition.topic.endswith(".replays") else "rejection"
    complain(f"{partition.topic}/{partition.number}/{offset} is no {what}: skipped")
