"""XLSX workbooks: those that we export, and plain ones with a header row of column names.

openpyxl reads, row by row; formulas are their text, never evaluated. A workbook comes from
anybody: how much each part unpacks to is bounded before anything parses it.
"""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from datetime import date, datetime, time
from pathlib import Path
from typing import IO, Any, BinaryIO, Final
from xml.etree.ElementTree import ParseError

from openpyxl import Workbook, load_workbook
from openpyxl.utils.exceptions import InvalidFileException

from schemas import ENTITIES, Entity
from worker.errors import UsageError
from worker.exports.xlsx_text import from_excel
from worker.files.cells import RowEncoder, recognise
from worker.files.records import READ_LIMIT, Collector, FileRecord

_MAX_ROWS: Final = 1_048_576
_MOST_PARTS: Final = 10_000
_MOST_SHARED_TEXT: Final = 256 << 20
"""Unpacked bytes of the table of shared strings, which is held in memory."""
_LONGEST_ROW: Final = 16 << 20
"""Bytes of XML of one row, and of any part that has no rows."""
_READ: Final = 1 << 20
_ROW: Final = re.compile(rb"<(?:\w{1,20}:)?row[\s/>]")
_OVERLAP: Final = 32
"""More than what `_ROW` or `<!` takes, so that none is missed between two chunks."""
_CONTINUED: Final = re.compile(r" \([0-9]+\)\Z")
_METADATA_SHEET: Final = "Export Metadata"

_BROKEN: Final = (
    zipfile.BadZipFile,
    InvalidFileException,
    ParseError,
    KeyError,
    ValueError,
    TypeError,
    IndexError,
    AttributeError,
    EOFError,
    NotImplementedError,
    RuntimeError,
    OverflowError,
    struct.error,
    zlib.error,
)
"""What openpyxl and zipfile raise on files that are not what they claim to be."""


def read_workbook(
    path: Path, entity: Entity | None, *, limit: int = READ_LIMIT
) -> Iterator[FileRecord]:
    """The rows of all sheets, in their order; only those of one entity if one is given.

    A sheet is of the entity that its name or else its header tells, or of the one given.
    UsageError, naming file and sheet, where nothing tells, or where the workbook is broken or
    unpacks beyond bounds.
    """
    with path.open("rb") as file:
        workbook = _open(path, file)
        try:
            for sheet in workbook.worksheets:
                if sheet.title != _METADATA_SHEET:
                    rows = _rows(f"{path}, sheet {sheet.title}", sheet)
                    yield from _records(path, sheet.title, rows, entity, limit)
        finally:
            workbook.close()


def _open(path: Path, file: BinaryIO) -> Workbook:
    try:
        _check_parts(path, file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return load_workbook(file, read_only=True)
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault; openpyxl raises OSErrors of its own
        raise UsageError(f"{path}: not an XLSX workbook that can be read") from error


Numbered = tuple[int, Sequence[Any]]


def _rows(where: str, sheet: Any) -> Iterator[Numbered]:
    """The rows that hold something, with their numbers."""
    # What a workbook says of its own size may be wrong, and a row number may be anything.
    sheet.reset_dimensions()
    number = 0
    try:
        rows = sheet.iter_rows(max_row=_MAX_ROWS, values_only=True)
        while row := _next_filled(rows):
            number += row[0]
            yield number, row[1]
    except _BROKEN as error:
        raise UsageError(f"{where}: cannot be read ({type(error).__name__})") from error


def _records(
    path: Path, title: str, rows: Iterator[Numbered], entity: Entity | None, limit: int
) -> Iterator[FileRecord]:
    where = f"{path}, sheet {title}"
    number, cells = next(rows, (0, ()))
    if not number:
        return
    header = [cell_text(cell) or "" for cell in cells]
    names = [name for name in header if name]
    named = _by_title(title) or recognise(header)
    chosen = named or entity
    if chosen is None:
        raise UsageError(f"{where}: neither its name nor row {number} tells which entity it holds")
    if entity not in (None, chosen):
        return
    if len(set(names)) < len(names):
        raise UsageError(f"{where}, row {number}: a column is named twice")
    if not {column.name for column in chosen.columns} & set(names):
        raise UsageError(f"{where}, row {number}: not one column of {chosen.name}")
    encoder = RowEncoder(chosen, header)
    for number, cells in rows:
        texts = [cell_text(cell) for cell in cells]
        if any(texts[len(header) :]):
            raise UsageError(f"{where}, row {number}: a cell has no column name above it")
        texts += [None] * (len(header) - len(texts))
        record = Collector(limit)
        record.add(encoder.encode(texts))
        yield FileRecord(
            chosen.name,
            str(path),
            number,
            record.value,
            sheet=title,
            oversize=record.oversize,
            sha256=record.sha256,
        )


def cell_text(cell: Any) -> str | None:
    """What a cell shows, as text; None if it is empty."""
    if cell is None:
        return None
    if isinstance(cell, str):
        return from_excel(cell)
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, int | float):
        return repr(cell)
    if isinstance(cell, datetime | date | time):
        return cell.isoformat()
    return str(getattr(cell, "text", cell))  # an array formula


def _by_title(title: str) -> Entity | None:
    name = _CONTINUED.sub("", title)
    return next((entity for entity in ENTITIES.values() if entity.sheet == name), None)


def _next_filled(rows: Iterator[Sequence[Any]]) -> Numbered | None:
    """The next row that holds something, and how many rows further it is."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of formats and extensions that nobody looks at
        for distance, row in enumerate(rows, 1):
            if any(cell is not None for cell in row):
                return distance, row
    return None


def _check_parts(path: Path, file: BinaryIO) -> None:
    """Bound what the parts unpack to; zipfile holds them to the sizes that they declare."""
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if len(parts) > _MOST_PARTS:
            raise UsageError(f"{path}: {len(parts)} parts are too many for a workbook")
        for part in parts:
            where = f"{path}: {part.filename}"
            if part.filename.endswith((".xml", ".rels")):
                shared = part.filename.endswith("sharedStrings.xml")
                if shared and part.file_size > _MOST_SHARED_TEXT:
                    raise UsageError(f"{where} unpacks to {part.file_size} bytes")
                with archive.open(part) as member:
                    _check_markup(member, where, _MOST_SHARED_TEXT if shared else _LONGEST_ROW)
            elif part.file_size > _LONGEST_ROW:
                raise UsageError(f"{where} unpacks to {part.file_size} bytes")


def _check_markup(member: IO[bytes], where: str, longest: int) -> None:
    """No declarations, comments or CDATA, and no row, or part without rows, over `longest`.

    Without those `<row` is markup wherever it stands, and a parser that forgets each row when it
    is done never holds more than `longest`.
    """
    tail = b""
    since = 0
    while data := member.read(_READ):
        window = tail + data
        if b"<!" in window:
            raise UsageError(f"{where} holds a declaration, a comment or CDATA; save it anew")
        row = _ROW.search(window)
        since = since + len(data) if row is None else len(data)
        if since > longest:
            raise UsageError(f"{where} has a row of more than {longest} bytes")
        tail = window[-_OVERLAP:]
