"""Carries out one request: looks for its export, or takes a cut and makes the export from it.

Consumption goes on meanwhile. No export is ever held in memory.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from worker.errors import StateError, UsageError
from worker.exports.manifest import Incremental
from worker.exports.places.place import Finished
from worker.sink.attempt import ExportAttempt
from worker.sink.export_settings import ExportSettings
from worker.sink.requests import (
    Announcement,
    ExportFile,
    ExportRequest,
    export_id_of,
    options_of,
)
from worker.sink.schedule import is_slot_of
from worker.sink.selection.cut import CutSource, Report, take_cut
from worker.sink.selection.plan import moment_of
from worker.sink.store import rocks
from worker.sink.store.snapshot import SNAPSHOTS

_SPOOL: Final = "spool"
_ROOMS: Final = (_SPOOL, SNAPSHOTS)
"""The directories beside the store that an export needs."""


async def carry_out(
    request: ExportRequest,
    source: CutSource,
    settings: ExportSettings,
    report: Report,
    *,
    scheduled: bool,
) -> Announcement:
    """Make the export and return its announcement; an existing export is only announced.

    The request comes from `read_request`, or from a slot if `scheduled`. Cancellation leaves
    nothing behind, unless the export was finished at that moment. Raises `UsageError` if the id
    stands for an export with other options, for a removed one, or for a slot that was not made.
    Raises `StateError`, `NoAnswer`, `MissingTopic`, `BrokerUnavailable`.
    """
    there = await published(request, source, settings)
    if there is not None:
        return there
    if not scheduled and any(is_slot_of(one, request.id) for one in settings.schedules):
        raise UsageError(
            f"id {request.id} is that of a schedule's run, which is not there: ask under another id"
        )
    if await asyncio.to_thread(settings.place.sealed, export_id_of(request.id)):
        raise UsageError(
            f"id {request.id} stands for an export that has been removed since, or whose manifest "
            "is damaged: ask under another id"
        )
    taken = await take_cut(source, settings.patience, report)
    async with AsyncExitStack() as used:
        used.callback(taken.snapshot.close)
        directory = await asyncio.to_thread(_make_spool_directory, source.store.directory)
        used.push_async_callback(asyncio.to_thread, shutil.rmtree, directory, ignore_errors=True)
        finished = await ExportAttempt(request, source, settings, report, taken, directory).make()
    return _answer(request, finished, source)


async def published(
    request: ExportRequest, source: CutSource, settings: ExportSettings
) -> Announcement | None:
    """The announcement of a finished export; None without one. Raises as `carry_out` does."""
    there = await asyncio.to_thread(settings.place.find_or_finish, export_id_of(request.id))
    return None if there is None else _answer(request, there, source)


def clear_spool(store_directory: Path) -> None:
    """Remove spooled rows and snapshots that a crash left. Blocking.

    Nobody else may be using the store.
    """
    for name in _ROOMS:
        shutil.rmtree(store_directory / name, ignore_errors=True)


def check_rooms(store_directory: Path) -> None:
    """Raise StateError, which names the path, unless exports find room beside the store. Blocking.

    A file may stand in the place of a directory, or its rights may have changed.
    """
    for name in _ROOMS:
        _make_temporary(store_directory / name).rmdir()


def _make_spool_directory(store_directory: Path) -> Path:
    """Make a directory for spooled rows, beside the store.

    The system's temporary directory is unsuitable: it is often in memory. Rows are also personal
    data, which a crash must not leave there.
    """
    return _make_temporary(store_directory / _SPOOL)


def _make_temporary(room: Path) -> Path:
    rocks.make_room(room)
    try:
        return Path(tempfile.mkdtemp(dir=room))
    except OSError as error:
        raise StateError(rocks.in_one_line(room, error)) from None


def _answer(request: ExportRequest, finished: Finished, source: CutSource) -> Announcement:
    """The announcement of an export, new or old; UsageError if it has other options."""
    manifest = finished.manifest
    asked = options_of(request)
    if not asked.scheduled:  # a request that names a slot's id may have its export
        asked = msgspec.structs.replace(asked, scheduled=manifest.options.scheduled)
    if asked != manifest.options:
        raise UsageError(
            f"id {request.id} stands for {finished.name}, which was made with other options: "
            "ask under another id"
        )
    incremental = manifest.incremental or Incremental(name="")
    return Announcement(
        id=manifest.export_id,
        request_id=request.id,
        status="finished",
        at=moment_of(source.clock()),
        directory=finished.name,
        location=finished.location,
        options=manifest.options,
        counts=manifest.record_counts,
        files=tuple(ExportFile(f.path, f.bytes, f.rows, f.sha256) for f in manifest.files),
        left_out=manifest.left_out,
        kept_without=manifest.kept_without,
        complete=manifest.complete,
        pending=manifest.pending,
        base=None if incremental.base is None else incremental.base.export_id,
        full_because=incremental.full_because,
        deletions=incremental.deletions,
    )
