"""From spool files to a finished export at a place: the shell around the writers.

The writers yield chunks and write nothing themselves. A thread steps them, a block of rows at a
time, and hashes the chunks. aiofiles writes the chunks in pieces of 1 MiB or more. The event loop
never blocks, and memory does not grow with the rows.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, closing
from typing import Final, Generic, TypeVar

import aiofiles
import msgspec

from schemas import ENTITIES, Entity
from worker.errors import StateError
from worker.exports import layout, manifest
from worker.exports.formats.csv import csv_chunks
from worker.exports.formats.json import json_chunks
from worker.exports.formats.xlsx import MAX_ROWS, xlsx_chunks
from worker.exports.manifest import CutCell, ExportedFile, Options, Origin
from worker.exports.metadata import Metadata, json_file
from worker.exports.places.place import ExportPlace, Finished
from worker.exports.places.staging import Staging, create_private
from worker.exports.spool import Spool, SpoolFile, read_blocks
from worker.private import DIRECTORY_MODE

T = TypeVar("T")
Progress = Callable[[int], None]
"""Called with the number of further rows written, on the event loop."""
OnWritten = Callable[[str], None]
"""Called with the SHA-256 of the manifest once all files are written, before they are visible.

Called in a thread.
"""

_WRITE: Final = 1 << 20
_CHUNKS: Final = 8
"""Chunks in one step of the thread. A cancelled export waits for a step; progress follows each."""
_UNKNOWN: Final = Origin()


def ignore_progress(_: int) -> None:
    """Report nothing."""


def ignore_written(_: str) -> None:
    """Report nothing."""


def total_steps(metadata: Metadata, options: Options) -> int:
    """The sum over all calls of `progress`: each row counts once for each format."""
    return sum(metadata.counts.values()) * len(options.formats)


async def write_export(  # noqa: PLR0913 -- four have a default that suits most callers
    place: ExportPlace,
    spool: Spool,
    metadata: Metadata,
    options: Options,
    origin: Origin = _UNKNOWN,
    *,
    progress: Progress = ignore_progress,
    on_written: OnWritten = ignore_written,
    max_sheet_rows: int = MAX_ROWS,
) -> Finished:
    """Write an export of the spooled rows, publish it, and return it.

    The export appears at the place in one step, or not at all. After any exception, cancellation
    included, nothing of it remains, unless it was sealed already. If another export was published
    first under its id, that one is returned.

    Raises StateError if the disk or the place refuses, or if a spool does not hold the canonical
    rows that the metadata counts. Raises ValueError if spool, metadata and options disagree on
    entities.
    """
    if list(metadata.counts) != list(options.entities) or set(spool.rows) != set(options.entities):
        raise ValueError("spool, metadata and options must name the same entities")
    staging = place.staging(layout.directory_name(metadata))
    try:
        async with AsyncExitStack() as used:
            used.push_async_callback(_in_thread, staging.discard)
            await _in_thread(staging.open)
            writer = _Writer(staging, spool, metadata, options, progress)
            sha256 = await writer.write(origin, max_sheet_rows)
            await _in_thread(lambda: on_written(sha256))
            abandoned = threading.Event()
            return await _in_thread(
                lambda: place.publish(staging, abandoned.is_set), on_cancel=abandoned.set
            )
    except OSError as error:
        raise StateError(
            f"cannot write an export to {staging.outer}: {error.strerror or error}"
        ) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise StateError("a spooled row is not in canonical form; nothing was exported") from error


class _Writer:
    """Writes the files of one export into a directory, the manifest last."""

    def __init__(
        self,
        staging: Staging,
        spool: Spool,
        metadata: Metadata,
        options: Options,
        progress: Progress,
    ) -> None:
        self._directory = staging.directory
        self._calls = staging.calls
        self._spool = spool
        self._metadata = metadata
        self._options = options
        self._progress = progress
        self._entities = [ENTITIES[name] for name in options.entities]
        self._files: list[ExportedFile] = []
        self._formula_cells: dict[str, int] = {}
        self._cut_cells: tuple[CutCell, ...] = ()

    async def write(self, origin: Origin, max_sheet_rows: int) -> str:
        """Write all files; returns the SHA-256 of the manifest."""
        metadata, formats = self._metadata, self._options.formats
        if "csv" in formats:
            await self._write_csv()
        if "json" in formats:
            count = _Count()
            document = json_chunks(metadata, self._tables(count))
            counts = await self._write_file(layout.document_path(metadata), document, count)
            self._check(counts)
        if "xlsx" in formats:
            count = _Count()
            workbook = xlsx_chunks(metadata, self._tables(count), max_rows=max_sheet_rows)
            outcome = await self._write_file(layout.workbook_path(metadata), workbook, count)
            self._check(outcome.rows)
            self._cut_cells = outcome.cut_cells
        if self._spool.deletions is not None:
            count = _Count()
            lines = _lines(count.blocks(self._spool.deletions))
            await self._write_file(layout.DELETIONS, lines, count, silent=True)
        content = _single(manifest.sums(self._files))
        await self._write_file(layout.SUMS, content, _Count())
        whole = manifest.build(
            metadata,
            self._options,
            origin,
            tuple(self._files),
            self._formula_cells,
            self._cut_cells,
        )
        await self._write_file(layout.MANIFEST, _single(manifest.encode(whole)), _Count())
        return self._files[-1].sha256

    async def _write_csv(self) -> None:
        metadata = self._metadata
        folder = self._directory / layout.base_name(metadata)
        with self._calls.running():
            await _in_thread(lambda: folder.mkdir(mode=DIRECTORY_MODE))
        content = _single(json_file(metadata))
        await self._write_file(layout.metadata_path(metadata), content, _Count())
        for entity in self._entities:
            count = _Count()
            chunks = csv_chunks(
                entity,
                metadata,
                count.blocks(self._spool.rows[entity.name]),
                guard_formulas=self._options.guard_formulas,
            )
            outcome = await self._write_file(layout.csv_path(metadata, entity.name), chunks, count)
            self._check({entity.name: outcome.rows})
            self._formula_cells[entity.name] = outcome.formula_cells

    def _tables(self, count: _Count) -> Iterable[tuple[Entity, Iterator[list[bytes]]]]:
        return ((entity, count.blocks(self._spool.rows[entity.name])) for entity in self._entities)

    def _check(self, counts: Mapping[str, int]) -> None:
        for entity, rows in counts.items():
            if rows != (expected := self._metadata.counts[entity]):
                raise StateError(f"the spool of {entity} holds {rows} rows instead of {expected}")

    async def _write_file(
        self, path: str, chunks: Generator[bytes, None, T], count: _Count, *, silent: bool = False
    ) -> T:
        """Write one file, flush it to disk and list it; returns what the generator returns.

        Reports progress unless `silent`.
        """
        steps = _Steps(chunks)
        size = reported = 0
        with closing(chunks), self._calls.running() as moved:
            async with aiofiles.open(
                self._directory / path, "xb", buffering=0, opener=create_private
            ) as file:
                while (data := await _in_thread(steps.next)) or not steps.done:
                    moved()
                    if data:
                        await _write_all(file, data)
                        size += len(data)
                    if count.rows > reported and not silent:
                        self._progress(count.rows - reported)
                        reported = count.rows
                moved()
                await _in_thread(lambda: os.fsync(file.fileno()))
        self._files.append(ExportedFile(path, size, count.rows, steps.sha256))
        return steps.outcome


class _Steps(Generic[T]):
    """Steps a generator of chunks, in a thread; buffers small chunks until they make 1 MiB."""

    def __init__(self, chunks: Generator[bytes, None, T]) -> None:
        self._chunks = chunks
        self._held: list[bytes] = []
        self._size = 0
        self._hash = hashlib.sha256()
        self._outcome: list[T] = []

    @property
    def done(self) -> bool:
        """Whether the generator has ended and the buffer is empty."""
        return bool(self._outcome) and not self._held

    @property
    def outcome(self) -> T:
        """What the generator returned."""
        return self._outcome[0]

    @property
    def sha256(self) -> str:
        """The SHA-256 of all data returned so far."""
        return self._hash.hexdigest()

    def next(self) -> bytes:
        """The next piece: 1 MiB or more, except for the last. Empty if more steps are needed."""
        for _ in range(_CHUNKS):
            try:
                chunk = next(self._chunks)
            except StopIteration as end:
                self._outcome.append(end.value)
                return self._release()
            if chunk:
                self._held.append(chunk)
                self._size += len(chunk)
            if self._size >= _WRITE:
                return self._release()
        return b""

    def _release(self) -> bytes:
        data = b"".join(self._held)
        self._held.clear()
        self._size = 0
        self._hash.update(data)
        return data


class _Count:
    """Counts the rows that a writer has read from the spool."""

    def __init__(self) -> None:
        self.rows = 0

    def blocks(self, spooled: SpoolFile) -> Iterator[list[bytes]]:
        for block in read_blocks(spooled):
            yield block
            self.rows += len(block)


def _lines(blocks: Iterator[list[bytes]]) -> Generator[bytes, None, None]:
    for block in blocks:
        yield b"\n".join(block) + b"\n"


def _single(data: bytes) -> Generator[bytes, None, None]:
    yield data


async def _write_all(file: aiofiles.threadpool.binary.AsyncFileIO, data: bytes) -> None:
    """Write all of `data`: a raw file may accept less than it is offered."""
    rest = memoryview(data)
    while rest:
        rest = rest[await file.write(rest) :]


def _nothing() -> None:
    """Do nothing: a short step ends by itself."""


async def _in_thread(function: Callable[[], T], on_cancel: Callable[[], None] = _nothing) -> T:
    """Like asyncio.to_thread, but a cancelled caller still waits for the thread.

    So clean-up never runs under a running step. A step takes about a tenth of a second, or
    `on_cancel` tells it to stop.
    """
    task = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        on_cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # retrieved here, since nobody else does
        raise
