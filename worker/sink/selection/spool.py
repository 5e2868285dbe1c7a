"""Writes the rows of an export from the snapshot to files for the writers, one file per entity.

Blocking: call it in a thread. Memory is bounded by a block of rows, the cache of `KnownRows` and
the runs of `Ids`.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from schemas import ENTITIES
from worker.errors import StateError
from worker.exports.spool import SpoolFile
from worker.sink.selection.ids import Ids
from worker.sink.selection.plan import KnownRows, Picked, Picker, Pulls, Reason, Selection
from worker.sink.store import rocks
from worker.sink.store.rows import REFERRED
from worker.sink.store.snapshot import Snapshot

_CHUNK: Final = 1024 * 1024


class Spooled(msgspec.Struct, frozen=True):
    """The rows that an export will be made of, by entity.

    `files` hold one canonical row per line, `rows` counts them, `earliest` is the day of the
    earliest row. `picked` says what became of all rows of the selected entities.
    """

    files: Mapping[str, SpoolFile]
    rows: Mapping[str, int]
    earliest: Mapping[str, str | None]
    picked: Mapping[str, Picked]


class AbandonedError(Exception):
    """Nobody waits for the export any more. Never leaves the sink."""


class Waiter(msgspec.Struct, frozen=True):
    """Who waits for the rows. `advance` gets (rows done, in total); `abandoned`: nobody waits."""

    advance: Callable[[int, int], None]
    abandoned: Callable[[], bool]

    def report(self, done: int, total: int) -> None:
        """Report `done` of `total` rows. Raises `AbandonedError` if nobody waits any more."""
        if self.abandoned():
            raise AbandonedError
        self.advance(done, total)


def spool(snapshot: Snapshot, selection: Selection, directory: Path, waiter: Waiter) -> Spooled:
    """Write the rows that belong in an export to files in `directory`, in the store's order.

    Raises `StateError`, and `AbandonedError` soon after nobody waits for the export any more.
    """
    passes = Pass(snapshot, selection, directory)
    total = sum(snapshot.counts[entity] for entity in selection.entities)
    done = 0
    files: dict[str, SpoolFile] = {}
    picked: dict[str, Picked] = {}
    for entity in selection.in_stages():
        picker = passes.picker(entity)
        with LineFile(directory / f"{entity}.ndjson") as file:
            for block in snapshot.blocks(entity):
                file.write(kept(block, picker.pick(block)))
                done += len(block)
                waiter.report(done, total)
        files[entity] = file.spooled()
        picked[entity] = picker.picked()
    picked = {entity: picked[entity] for entity in selection.entities}
    return Spooled(
        {entity: files[entity] for entity in picked},
        {entity: found.rows for entity, found in picked.items()},
        {entity: found.earliest for entity, found in picked.items()},
        picked,
    )


class Pass:
    """State shared by the entities of one pass: known ids, and ids that a date range pulls in."""

    def __init__(self, snapshot: Snapshot, selection: Selection, directory: Path) -> None:
        self._known = KnownRows(snapshot.users_of)
        self._days = selection.days
        targets = [name for name in selection.entities if name in REFERRED]
        self._pulled = {
            name: Ids(directory, f"pulled-{name}") for name in targets if selection.days.limited
        }

    def picker(self, entity: str) -> Picker:
        """The picker of an entity. Ask in the order of `Selection.in_stages`, one at a time.

        The picker of the previous entity must have judged all its rows.
        """
        pulled = self._pulled.get(entity)
        wanted = pulled.ascending() if pulled is not None else iter(())
        refer = {name: ids.add for name, ids in self._pulled.items()}
        return Picker(ENTITIES[entity], self._known, self._days, Pulls(wanted, refer))


def kept(rows: list[bytes], fates: list[Reason | None]) -> list[bytes]:
    """The rows that belong in the export: those whose fate is None."""
    if not any(fates):
        return rows
    return [row for row, fate in zip(rows, fates, strict=True) if fate is None]


class LineFile:
    """A file of lines that only its owner can read, written in chunks of 1 MiB or more.

    The file must be new; with `before`, lines are appended to that file. Raises `StateError`.
    """

    def __init__(self, path: Path, before: SpoolFile | None = None) -> None:
        self._mode = os.O_EXCL if before is None else os.O_APPEND
        self._path = path
        self._crc32 = 0 if before is None else before.crc32
        self._held: list[bytes] = []
        self._size = 0
        self._descriptor = -1

    def __enter__(self) -> Self:
        try:
            self._descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | self._mode, 0o600)
        except OSError as error:
            raise StateError(rocks.in_one_line(self._path.parent, error)) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if kind is None:
                self._write_all()
        finally:
            os.close(self._descriptor)

    def spooled(self) -> SpoolFile:
        """The file as it was written; call after the end of the `with` block."""
        return SpoolFile(self._path, self._crc32)

    def write(self, lines: Sequence[bytes]) -> None:
        """Add lines, given without their line ends."""
        for line in lines:
            self._size += len(line) + 1
        self._held += lines
        if self._size >= _CHUNK:
            self._write_all()

    def _write_all(self) -> None:
        if not self._held:
            return
        left = memoryview(b"\n".join(self._held) + b"\n")
        self._crc32 = zlib.crc32(left, self._crc32)
        self._held, self._size = [], 0
        try:
            while left:
                left = left[os.write(self._descriptor, left) :]
        except OSError as error:
            raise StateError(rocks.in_one_line(self._path.parent, error)) from None
