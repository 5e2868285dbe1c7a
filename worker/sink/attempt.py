"""Makes one export from its cut: collects the rows, writes the files, moves the bookmark."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from datetime import date
from pathlib import Path
from typing import TypeVar

import structlog

from worker.errors import StateError
from worker.exports.manifest import Incremental, Origin
from worker.exports.metadata import Metadata
from worker.exports.places.place import ExportPlace, Finished
from worker.exports.spool import Spool, SpoolFile
from worker.exports.write import OnWritten, ignore_written, total_steps, write_export
from worker.sink.export_settings import ExportSettings
from worker.sink.requests import ExportRequest, export_id_of, options_of, selection_of
from worker.sink.selection.bookmarks import Bookmarks, FullBecause, Generation
from worker.sink.selection.cut import CutSource, Report, TakenCut
from worker.sink.selection.increment import BaseDamagedError, Increment, spool_increment
from worker.sink.selection.plan import Reason, date_range, day_of, moment_of
from worker.sink.selection.spool import Spooled, Waiter, spool
from worker.sink.store import rocks

T = TypeVar("T")

_log = structlog.get_logger(__name__)


class ExportAttempt:
    """One attempt to make an export, from its cut to its publication."""

    def __init__(
        self,
        request: ExportRequest,
        source: CutSource,
        settings: ExportSettings,
        report: Report,
        taken: TakenCut,
        directory: Path,
    ) -> None:
        self._request = request
        self._source = source
        self._settings = settings
        self._report = report
        self._taken = taken
        self._directory = directory
        self._selection = selection_of(request)
        self._export_id = export_id_of(request.id)

    async def make(self) -> Finished:
        """Make the export; with a bookmark, reconcile the bookmarks before and after."""
        name = self._request.incremental
        if name is None:
            spooled = await self._collect(
                lambda waiter: spool(self._taken.snapshot, self._selection, self._directory, waiter)
            )
            return await self._write(spooled)
        bookmarks, place = Bookmarks(self._source.store), self._settings.place
        await asyncio.to_thread(reconcile_bookmarks, bookmarks, place)
        async with AsyncExitStack() as after:
            after.push_async_callback(_reconcile_again, bookmarks, place)
            base_or_reason, increment = await self._collect_increment(bookmarks, name)
            return await self._write_increment(bookmarks, name, base_or_reason, increment)

    async def _collect_increment(
        self, bookmarks: Bookmarks, name: str
    ) -> tuple[Generation | FullBecause, Increment]:
        """The rows since the base of the bookmark; all rows if there is none that can be read."""
        place = self._settings.place
        base_or_reason = await asyncio.to_thread(
            lambda: bookmarks.find(name, self._selection, place.finished())
        )
        try:
            return base_or_reason, await self._increment(bookmarks, name, base_or_reason)
        except BaseDamagedError:
            await asyncio.to_thread(bookmarks.forget, name)
            await asyncio.to_thread(reconcile_bookmarks, bookmarks, place)
            await asyncio.to_thread(_empty, self._directory)
        base_or_reason = FullBecause.BASE_DAMAGED
        return base_or_reason, await self._increment(bookmarks, name, base_or_reason)

    async def _write_increment(
        self,
        bookmarks: Bookmarks,
        name: str,
        base_or_reason: Generation | FullBecause,
        increment: Increment,
    ) -> Finished:
        incremental = Incremental(
            name=options_of(self._request).incremental or name,
            base=base_or_reason.base() if isinstance(base_or_reason, Generation) else None,
            full_because=None if isinstance(base_or_reason, Generation) else base_or_reason.value,
            deletions={e: _texts(reasons) for e, reasons in increment.deleted.items()},
            references_into_base=dict(increment.into_base),
            totals=dict(increment.totals),
        )
        return await self._write(
            increment.spooled,
            incremental,
            increment.deletions,
            lambda sha256: bookmarks.expect(name, sha256),
        )

    async def _increment(
        self, bookmarks: Bookmarks, name: str, base_or_reason: Generation | FullBecause
    ) -> Increment:
        mark = base_or_reason if isinstance(base_or_reason, Generation) else None
        draft = await asyncio.to_thread(
            bookmarks.begin, name, self._export_id, self._selection, self._taken.cut
        )
        return await self._collect(
            lambda waiter: spool_increment(
                self._taken.snapshot, self._selection, self._directory, waiter, draft, mark
            )
        )

    async def _collect(self, collect: Callable[[Waiter], T]) -> T:
        abandoned = threading.Event()
        waiter = Waiter(lambda done, total: self._report("collect", done, total), abandoned.is_set)
        task = asyncio.ensure_future(asyncio.to_thread(collect, waiter))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            abandoned.set()
            await asyncio.wait({task})  # the thread still uses the snapshot and the directory
            task.exception()
            raise

    async def _write(
        self,
        spooled: Spooled,
        incremental: Incremental | None = None,
        deletions: SpoolFile | None = None,
        on_written: OnWritten = ignore_written,
    ) -> Finished:
        taken = self._taken
        day = day_of(taken.moment)
        start, end = date_range(spooled.earliest.values(), self._selection.days, day)
        metadata = Metadata(
            export_id=self._export_id,
            export_date=moment_of(taken.moment),
            start=date.fromisoformat(start),
            end=date.fromisoformat(end),
            counts=dict(spooled.rows),
            program_name=self._settings.program_name,
        )
        options = options_of(self._request)
        origin = Origin(
            cut=taken.cut,
            complete=not taken.pending,
            pending=taken.pending,
            incremental=incremental,
            left_out=_reasons(spooled, "left_out"),
            kept_without=_reasons(spooled, "kept_without"),
        )
        total = total_steps(metadata, options)
        written = 0

        def progress(rows: int) -> None:
            nonlocal written
            written += rows
            self._report("write", written, total)

        files = Spool(spooled.files, deletions)
        return await write_export(
            self._settings.place,
            files,
            metadata,
            options,
            origin,
            progress=progress,
            on_written=on_written,
        )


def reconcile_bookmarks(bookmarks: Bookmarks, place: ExportPlace) -> None:
    """Make the bookmarks agree with the finished exports. Blocking."""
    bookmarks.reconcile(place.find_or_finish)


async def _reconcile_again(bookmarks: Bookmarks, place: ExportPlace) -> None:
    """Reconcile the bookmarks, whatever became of the export, and cancelled or not.

    The place alone decides whether a bookmark moves. So bookmarks and exports agree after any
    exception, whenever it was raised.
    """
    await asyncio.shield(asyncio.to_thread(_reconcile_if_possible, bookmarks, place))


def _reconcile_if_possible(bookmarks: Bookmarks, place: ExportPlace) -> None:
    """Reconcile the bookmarks; only log a failure. Blocking.

    The next incremental export reconciles them before it looks at its bookmark.
    """
    try:
        reconcile_bookmarks(bookmarks, place)
    except StateError as error:
        _log.warning("bookmarks_not_settled", error=str(error))


def _reasons(spooled: Spooled, which: str) -> dict[str, dict[str, int]]:
    """Entity → reason → rows; entities without any are omitted."""
    found = {entity: getattr(picked, which) for entity, picked in spooled.picked.items()}
    return {entity: _texts(reasons) for entity, reasons in found.items() if reasons}


def _texts(reasons: Mapping[Reason, int]) -> dict[str, int]:
    return {reason.value: count for reason, count in reasons.items()}


def _empty(directory: Path) -> None:
    """Remove the files of a directory. Blocking."""
    try:
        for path in directory.iterdir():
            path.unlink()
    except OSError as error:
        raise StateError(rocks.in_one_line(directory, error)) from None
