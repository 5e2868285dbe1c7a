"""manifest.json: what an export consists of, and how it was made. Written last.

The JSON Schema of the manifest quotes the first sentence of each Struct's docstring.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from datetime import date
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Final

import msgspec

from worker import __version__
from worker.errors import StateError, UsageError
from worker.exports.layout import MANIFEST, SUMS, Format
from worker.exports.metadata import Metadata

MANIFEST_FORMAT: Final = 1
"""Increased whenever an older reader would misunderstand the manifest."""
MOST_BYTES: Final = 64 << 20
"""No manifest is larger: room for some 300,000 cut cells, each of which has over 32,767 characters.

Whatever is larger under that name is not read, so that it cannot fill the memory.
"""


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for: entities in the registry's order, formats, and how to write them.

    `start` and `end` are inclusive days in UTC; None leaves the range open. `incremental` names a
    bookmark: a schedule's if `scheduled`, else a request's. The two are different feeds.
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
    """The input offsets that were fully judged by the time of the cut."""


class Base(msgspec.Struct, frozen=True):
    """The export that an incremental one goes on from, the hash of its manifest, and its cut."""

    export_id: str
    directory: str
    manifest_sha256: str
    cut: Cut


class Incremental(msgspec.Struct, frozen=True, kw_only=True):
    """How an export that was asked for under a bookmark's name is to be read.

    With a base, the export holds the new and changed rows, and deletions.ndjson lists the rows that
    no longer belong. Applied to the base, they give exactly the full export of the same cut, which
    has `totals` rows by entity. Without a base it holds all rows, and `full_because` says why.
    """

    name: str
    base: Base | None = None
    full_because: str | None = None
    deletions: dict[str, dict[str, int]] = {}
    """Entity → reason → rows in deletions.ndjson."""
    references_into_base: dict[str, int] = {}
    """By entity, rows that this export refers to and that only the base holds."""
    totals: dict[str, int] = {}


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller knows about the origin of the rows.

    `left_out` counts rows that were not exported. `kept_without` counts rows that were exported
    without a row they refer to. Both map entity → reason → rows; in an incremental export they
    describe the base with the export applied. `pending` counts, by entity and input partition, the
    offsets that the cut waited for in vain. It is empty if the export is complete.
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
    """The whole manifest. `formula_cells` counts, by entity, cells of the CSV files."""

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
    """The content of SHA256SUMS: a line for each file but itself.

    The manifest has no line: it is written later, and lists SHA256SUMS like every other file.
    """
    return "".join(f"{f.sha256}  {f.path}\n" for f in files if f.path != SUMS).encode()


def encode(manifest: Manifest) -> bytes:
    """The content of manifest.json, indented for people. StateError if it would be too large."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=2) + b"\n"
    if len(content) > MOST_BYTES:
        raise StateError(
            f"manifest.json would be larger than {MOST_BYTES >> 20} MiB, as "
            f"{len(manifest.xlsx_cut_cells)} cells of the workbook had to be cut: export without "
            "xlsx, or fewer rows"
        )
    return content


def read_content(file: BinaryIO, where: str) -> bytes:
    """The content of an open manifest. Raises UsageError, which names `where`, if too large."""
    _check_size(os.fstat(file.fileno()).st_size, where)
    return file.read(MOST_BYTES)


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a finished export. UsageError if it is missing, or not a known manifest."""
    path = directory / MANIFEST
    try:
        with path.open("rb") as file:
            content = read_content(file, str(path))
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}; is this a finished export?") from error
    return decode(content, str(path))


def decode(content: bytes, where: str) -> Manifest:
    """Decode a manifest. Raises UsageError, which names `where`, if it is not a known manifest.

    Also raises UsageError if it names a file outside the export.
    """
    _check_size(len(content), where)
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{where}: not the manifest of an export") from error
    if manifest.format != MANIFEST_FORMAT:
        raise UsageError(f"{where}: manifest format {manifest.format} is not {MANIFEST_FORMAT}")
    if any(PurePosixPath(file.path).is_absolute() or ".." in file.path for file in manifest.files):
        raise UsageError(f"{where}: names a file outside the export")
    return manifest


def _check_size(size: int, where: str) -> None:
    if size > MOST_BYTES:
        raise UsageError(
            f"{where}: not the manifest of an export: it is larger than {MOST_BYTES >> 20} MiB"
        )
