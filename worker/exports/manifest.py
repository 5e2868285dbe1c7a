"""manifest.json: what an export consists of, and how it came about. Written last."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Final

import msgspec

from worker import __version__
from worker.errors import UsageError
from worker.exports.layout import MANIFEST, SUMS, Format
from worker.exports.metadata import Metadata

MANIFEST_FORMAT: Final = 1
"""Raised when a reader of the manifest would misunderstand it."""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for: entities in the registry's order, formats, and how to write them.

    `start` and `end` are inclusive days in UTC, each may be open. `incremental` names a bookmark:
    a schedule's own where `scheduled`, else one of requests, which is another feed.
    """

    entities: tuple[str, ...]
    formats: tuple[Format, ...]
    guard_formulas: bool = False
    start: date | None = None
    end: date | None = None
    incremental: str | None = None
    scheduled: bool = False


class Cut(msgspec.Struct, frozen=True):
    """The offsets that the export contains exactly: entity → partition → next offset."""

    accepted: dict[str, dict[int, int]] = {}
    judged: dict[str, dict[int, int]] = {}
    """The input offsets that were fully judged by then."""


class Base(msgspec.Struct, frozen=True):
    """The export that an incremental one goes on from, the hash of its manifest, and its cut."""

    export_id: str
    directory: str
    manifest_sha256: str
    cut: Cut


class Incremental(msgspec.Struct, frozen=True, kw_only=True):
    """How an export that was asked for under a bookmark's name is to be read.

    With a base it holds the rows that are new or changed, and deletions.ndjson lists those that no
    longer belong: applied to the base they give exactly the full export of the same cut, which has
    `totals` rows by entity. Without one it holds all rows, and `full_because` says why.
    """

    name: str
    base: Base | None = None
    full_because: str | None = None
    deletions: dict[str, dict[str, int]] = {}
    """Entity → reason → rows in deletions.ndjson."""
    references_into_base: dict[str, int] = {}
    """Rows, by entity, that rows in here refer to and that are not in here but in the base."""
    totals: dict[str, int] = {}


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """Where the rows come from, as the caller knows it.

    `left_out` counts what was not exported, `kept_without` what was although something that it
    refers to was not: entity → reason → rows. In an incremental export they speak of the base with
    the export applied. `pending` counts, by entity and input partition, the offsets that the cut
    waited for in vain; it is empty where the export is complete.
    """

    cut: Cut = Cut()
    complete: bool = True
    pending: dict[str, dict[int, int]] = {}
    incremental: Incremental | None = None
    left_out: dict[str, dict[str, int]] = {}
    kept_without: dict[str, dict[str, int]] = {}


class ExportedFile(msgspec.Struct, frozen=True):
    """One file: its path below the export's directory, with `/`; rows of all entities in it."""

    path: str
    bytes: int
    rows: int
    sha256: str


class CutCell(msgspec.Struct, frozen=True):
    """A cell of the workbook that was cut; `characters` is its full length as Excel counts."""

    entity: str
    key: str
    column: str
    characters: int


class DateRange(msgspec.Struct, frozen=True):
    """Inclusive days, in UTC."""

    start: date
    end: date


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """The whole manifest. `formula_cells` counts by entity, in the CSV files."""

    format: int = MANIFEST_FORMAT
    program: str = f"buddy-stream {__version__}"
    spec_version: str
    export_id: str
    export_date: str
    date_range: DateRange
    record_counts: dict[str, int]
    options: Options
    cut: Cut
    complete: bool
    pending: dict[str, dict[int, int]] = {}
    incremental: Incremental | None = None
    left_out: dict[str, dict[str, int]]
    kept_without: dict[str, dict[str, int]]
    formula_cells: dict[str, int]
    xlsx_cut_cells: tuple[CutCell, ...]
    files: tuple[ExportedFile, ...]


def build(
    metadata: Metadata,
    options: Options,
    origin: Origin,
    files: tuple[ExportedFile, ...],
    formula_cells: dict[str, int],
    cut_cells: tuple[CutCell, ...],
) -> Manifest:
    """The manifest of a finished export."""
    return Manifest(
        spec_version=metadata.version,
        export_id=metadata.export_id,
        export_date=metadata.exported_at,
        date_range=DateRange(metadata.start, metadata.end),
        record_counts=dict(metadata.counts),
        options=options,
        cut=origin.cut,
        complete=origin.complete,
        pending=origin.pending,
        incremental=origin.incremental,
        left_out=origin.left_out,
        kept_without=origin.kept_without,
        formula_cells=formula_cells,
        xlsx_cut_cells=cut_cells,
        files=files,
    )


def sums(files: Iterable[ExportedFile]) -> bytes:
    """The content of SHA256SUMS: a line for each of the files but itself.

    The manifest has no line: it is written later, and names SHA256SUMS as it names every file.
    """
    return "".join(f"{f.sha256}  {f.path}\n" for f in files if f.path != SUMS).encode()


def encode(manifest: Manifest) -> bytes:
    """The content of manifest.json, indented for people."""
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a finished export; UsageError if there is none, or none that we know."""
    path = directory / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; is this a finished export?") from error
    return decode(content, str(path))


def decode(content: bytes, where: str) -> Manifest:
    """The manifest with that content; UsageError, which says `where`, if it is none we know."""
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: not the manifest of an export") from error
    if manifest.format != MANIFEST_FORMAT:
        raise UsageError(f"{where}: manifest format {manifest.format} is not {MANIFEST_FORMAT}")
    if any(PurePosixPath(file.path).is_absolute() or ".." in file.path for file in manifest.files):
        raise UsageError(f"{where}: names a file outside the export")
    return manifest
