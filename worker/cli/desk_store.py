"""Opens the store of rejections for a command, with a progress bar."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from worker.cli.console import Context, complain, progress_bar

if TYPE_CHECKING:
    from worker.brokers.contract import Broker
    from worker.desk.opening import StoreAccess
    from worker.desk.store import RejectionStore


@asynccontextmanager
async def open_desk(
    context: Context, *, quiet: bool
) -> AsyncIterator[tuple[Broker, RejectionStore]]:
    """The broker, and the store, up to date with the topics."""
    access = store_access(context)
    async with context.broker(read_only=True, logs_damage=False) as broker:
        with progress_bar(quiet=quiet) as bar:
            task = bar.add_task("Reading rejections", total=None)
            store = await access.up_to_date(
                broker,
                advance=lambda done, total: bar.update(task, completed=done, total=total),
            )
        try:
            yield broker, store
        finally:
            await asyncio.to_thread(store.close)


def store_access(context: Context) -> StoreAccess:
    """How a command opens the store; it says on standard error what is missing there."""
    from worker.desk.opening import StoreAccess

    return StoreAccess(desk_directory(context), context.names, complain)


def desk_directory(context: Context) -> Path:
    """Where the store of rejections is."""
    return Path(context.settings.data) / "desk"
