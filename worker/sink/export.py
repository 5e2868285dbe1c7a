"""Carrying out one request: catch up, take a snapshot, collect the rows, write the files.

The cut is the accepted offsets in the snapshot: at least all that had been accepted when the
request was taken up. Consumption goes on meanwhile; no export is ever held in memory.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, date, datetime
from pathlib import Path

import msgspec

from worker.brokers.contract import Partition
from worker.errors import StateError, UsageError
from worker.exports.directory import total_steps, write_export
from worker.exports.manifest import Cut, Manifest, Options, Origin, read_manifest
from worker.exports.metadata import Metadata
from worker.sink import rocks
from worker.sink.consume import Clock, Consumer
from worker.sink.plan import date_range, day_of
from worker.sink.requests import Announcement, ExportFile, ExportRequest, export_id_of
from worker.sink.snapshot import SNAPSHOTS, Snapshot
from worker.sink.spool import Spooled, spool
from worker.sink.store import RowStore
from worker.topics import Names

Report = Callable[[str, int, int], None]
"""Told of progress: stage ("read", "collect" or "write"), done, total. Called from any thread."""


class ExportSettings(msgspec.Struct, frozen=True):
    """Where exports go, what they call the programme, and how long to wait for progress."""

    exports: Path
    program_name: str = "Buddy Program"
    patience: float = 60.0


async def carry_out(
    request: ExportRequest,
    store: RowStore,
    consumer: Consumer,
    settings: ExportSettings,
    clock: Clock,
    report: Report,
) -> Announcement:
    """Make the export and say what it is; one that exists already under its id is only announced.

    The request is as `read_request` gives it. Cancelling it leaves nothing behind. Raises
    `UsageError` (the id stands for an export with other options), `StateError`, `NoAnswer`,
    `BrokerUnavailable`.
    """
    export_id = export_id_of(request.id)
    there = await asyncio.to_thread(find_export, settings.exports, export_id)
    if there is not None:
        return _again(request, there, await asyncio.to_thread(read_manifest, there), clock)
    await consumer.catch_up(settings.patience, lambda done, total: report("read", done, total))
    snapshot = await asyncio.to_thread(store.snapshot)
    moment = clock()
    room = None
    try:
        room = await asyncio.to_thread(_make_room, store.directory)
        spooled = await _spool(snapshot, request, room, report)
        directory = await _write(request, snapshot, spooled, moment, settings, report)
    finally:
        snapshot.close()
        if room is not None:
            await asyncio.to_thread(shutil.rmtree, room, ignore_errors=True)
    manifest = await asyncio.to_thread(read_manifest, directory)
    return _finished(request, directory, manifest, clock)


def find_export(exports: Path, export_id: str) -> Path | None:
    """The directory of the finished export with that id. Blocking."""
    for directory in sorted(exports.glob(f"*_{export_id}")):
        try:
            read_manifest(directory)
        except UsageError:
            continue
        return directory
    return None


def clear_room(store_directory: Path) -> None:
    """Remove what a crash left of spooled rows and snapshots; nobody else may be using the store.

    Blocking.
    """
    for name in ("spool", SNAPSHOTS):
        shutil.rmtree(store_directory / name, ignore_errors=True)


def _make_room(store_directory: Path) -> Path:
    """A directory for spooled rows, beside the store.

    Not in the system's temporary directory: that is often memory, and rows are personal data that
    a crash must not leave lying about.
    """
    parent = store_directory / "spool"
    rocks.make_directory(parent)
    try:
        return Path(tempfile.mkdtemp(dir=parent))
    except OSError as error:
        raise StateError(rocks.in_one_line(parent, error)) from None


async def _spool(snapshot: Snapshot, request: ExportRequest, room: Path, report: Report) -> Spooled:
    abandoned = threading.Event()

    def advance(done: int, total: int) -> None:
        report("collect", done, total)

    task = asyncio.ensure_future(
        asyncio.to_thread(spool, snapshot, request.entities, room, advance, abandoned.is_set)
    )
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        abandoned.set()
        await asyncio.wait({task})  # it uses the snapshot and the directory
        task.exception()
        raise


async def _write(
    request: ExportRequest,
    snapshot: Snapshot,
    spooled: Spooled,
    moment: int,
    settings: ExportSettings,
    report: Report,
) -> Path:
    start, end = date_range(spooled.picked.values(), day_of(moment))
    metadata = Metadata(
        export_id=export_id_of(request.id),
        export_date=moment_of(moment),
        start=date.fromisoformat(start),
        end=date.fromisoformat(end),
        counts={entity: picked.rows for entity, picked in spooled.picked.items()},
        program_name=settings.program_name,
    )
    options = Options(
        entities=request.entities,
        formats=request.formats,
        guard_formulas=request.guard_formulas,
    )
    origin = Origin(
        cut=Cut(accepted=_by_entity(snapshot.positions)),
        left_out=_reasons(spooled, "left_out"),
        kept_without=_reasons(spooled, "kept_without"),
    )
    total = total_steps(metadata, options)
    written = 0

    def progress(rows: int) -> None:
        nonlocal written
        written += rows
        report("write", written, total)

    return await write_export(
        settings.exports, spooled.files, metadata, options, origin, progress=progress
    )


def _again(
    request: ExportRequest, directory: Path, manifest: Manifest, clock: Clock
) -> Announcement:
    options = manifest.options
    asked = (request.entities, request.formats, request.guard_formulas)
    if asked != (options.entities, options.formats, options.guard_formulas):
        raise UsageError(
            f"id {request.id} stands for {directory.name}, which was made with other options: "
            "ask under another id"
        )
    return _finished(request, directory, manifest, clock)


def _finished(
    request: ExportRequest, directory: Path, manifest: Manifest, clock: Clock
) -> Announcement:
    return Announcement(
        id=manifest.export_id,
        request_id=request.id,
        status="finished",
        at=moment_of(clock()),
        directory=directory.name,
        location=str(directory.absolute()),
        counts=manifest.record_counts,
        files=tuple(ExportFile(f.path, f.bytes, f.rows, f.sha256) for f in manifest.files),
        left_out=manifest.left_out,
        kept_without=manifest.kept_without,
        complete=manifest.complete,
    )


def _by_entity(positions: Mapping[Partition, int]) -> dict[str, dict[int, int]]:
    """The accepted offsets of the cut: entity → partition → next offset."""
    cut: dict[str, dict[int, int]] = {}
    for place, offset in sorted(positions.items()):
        cut.setdefault(Names().entity_of(place.topic), {})[place.number] = offset
    return cut


def _reasons(spooled: Spooled, which: str) -> dict[str, dict[str, int]]:
    """Entity → reason → rows; entities without any are not listed."""
    found = {entity: getattr(picked, which) for entity, picked in spooled.picked.items()}
    return {entity: dict(reasons) for entity, reasons in found.items() if reasons}


def moment_of(milliseconds: int) -> datetime:
    """That moment in UTC, in whole seconds as all of the export's times are."""
    return datetime.fromtimestamp(milliseconds // 1000, UTC)
