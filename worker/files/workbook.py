"""XLSX workbooks: those that we export, those that Excel saves, and those made by hand.

Of a formula its saved result counts; nothing is evaluated. A workbook comes from anybody: how
much each part unpacks to is bounded before anything parses it.
"""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Container, Generator, Iterator
from pathlib import Path
from typing import IO, Any, BinaryIO, Final
from xml.etree.ElementTree import ParseError
from xml.parsers.expat import ExpatError

import msgspec
from openpyxl.reader.excel import ExcelReader
from openpyxl.utils.exceptions import InvalidFileException
from openpyxl.xml.constants import ARC_STYLE, SHARED_STRINGS

from schemas import ENTITIES, Entity
from worker.errors import UsageError
from worker.files.cells import Cell
from worker.files.records import READ_LIMIT, FileRecord, Notice, printable
from worker.files.sheet_cells import CellReader
from worker.files.sheet_xml import SharedStrings, read_rows
from worker.files.table import Table, column_names, has_column, is_empty, recognise

_MOST_PARTS: Final = 10_000
_MOST_SHARED_TEXT: Final = 256 << 20
"""Unpacked bytes of the table of shared strings, which is held in memory."""
_LONGEST_ROW: Final = 16 << 20
"""Bytes of XML of one row, and of any part that has no rows."""
_MOST_TAGS: Final = 500_000
"""In a part that is held in memory; Excel has 65,490 styles at most."""
_CHECKED: Final = (".xml", ".rels")
_READ: Final = 1 << 20
_ROW: Final = re.compile(rb"<(?:\w{1,20}:)?row[\s/>]")
_OVERLAP: Final = 32
"""More than what `_ROW` or `<!` takes, so that none is missed between two chunks."""
_CONTINUED: Final = re.compile(r" \([0-9]+\)\Z")
_NEVER_READ: Final = (
    "customXml/",
    "docProps/",
    "xl/calcChain.xml",
    "xl/drawings/",
    "xl/embeddings/",
    "xl/externalLinks/",
    "xl/media/",
    "xl/pivotCache/",
    "xl/printerSettings/",
    "xl/theme/",
)
"""Parts that hold no rows. They may be large and of any kind, so they cannot be read at all."""
_METADATA_SHEET: Final = "Export Metadata"

_BROKEN: Final = (
    zipfile.BadZipFile,
    InvalidFileException,
    ParseError,
    ExpatError,
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
"""What openpyxl, expat and zipfile raise on files that are not what they claim to be."""


class _Sheet(msgspec.Struct, frozen=True):
    """A sheet that holds something: its header, and the rows below it that hold something."""

    where: str
    title: str
    hidden: bool
    entity: Entity | None
    number: int
    names: list[str]
    rows: Iterator[tuple[int, list[Cell]]]


def read_workbook(
    path: Path,
    entity: Entity | None,
    *,
    limit: int = READ_LIMIT,
    notice: Notice = lambda _: None,
) -> Iterator[FileRecord]:
    """The rows of all sheets, in their order; only those of one entity if one is given.

    A sheet is of the entity that its name or else its header tells, or of the one given. Sheets
    that are of none, and hidden ones, are left out; `notice` gets one line of each. UsageError,
    naming file and sheet, where no sheet is of an entity, where a header makes no sense, or where
    the workbook is broken or unpacks beyond bounds.
    """
    left_out = 0
    used = False
    for sheet in _sheets(path):
        chosen = sheet.entity
        if chosen is None and entity is not None and has_column(entity, sheet.names):
            chosen = entity
        if chosen is None or sheet.hidden:
            why = "its name and its columns are of no entity" if chosen is None else "it is hidden"
            notice(f"{sheet.where}: left out, {why}")
            left_out += 1
            continue
        used = True
        if entity in (None, chosen):
            table = Table(chosen, sheet.names, (printable(path), sheet.title))
            table.check_header(f"{sheet.where}, row {sheet.number}", notice)
            for number, cells in sheet.rows:
                yield table.record(number, cells, limit)
    if left_out and not used:
        raise UsageError(
            f"{path}: no sheet of it can be read: the first row of one must name the columns of "
            "an entity, and it must not be hidden"
        )


def entities_of_workbook(path: Path) -> list[str | None]:
    """The entities of its sheets, in their order, hidden ones too. As `read_workbook`."""
    return [None if one.entity is None else one.entity.name for one in _sheets(path)]


def _sheets(path: Path) -> Iterator[_Sheet]:
    """The sheets that hold anything but our metadata; rows are read when they are asked for."""
    with path.open("rb") as file:
        reader, meaning = _open(path, file)
        with reader.archive:
            for title, hidden, part in reader.sheets:
                where = f"{printable(path)}, sheet {title}"
                if title == _METADATA_SHEET:
                    continue
                rows = _rows(where, reader, part, meaning)
                number, header = next(rows, (0, []))
                if number:
                    names = column_names(header)
                    entity = _by_title(title) or recognise(names)
                    yield _Sheet(where, title, hidden, entity, number, names, rows)
                rows.close()


class _Reader(ExcelReader):
    """openpyxl's reader of all but what has rows: it says which sheets and which styles there are.

    Parts that are large, or of no use, are out of its reach, whatever refers to them.
    """

    def __init__(self, file: BinaryIO, hidden: Container[str]) -> None:
        super().__init__(file, read_only=True, keep_links=False)
        self.parts = dict(self.archive.NameToInfo)
        for name in self.parts:
            if name in hidden:
                del self.archive.NameToInfo[name]
        self.valid_files = list(self.archive.NameToInfo)
        self.sheets: list[tuple[str, bool, str]] = []
        """Title, whether it is hidden, and part of each sheet."""

    def read_strings(self) -> None:
        """Not here: openpyxl would change them."""

    def read_worksheets(self) -> None:
        """Only which there are; charts have no rows."""
        parser: Any = self.parser
        self.sheets = [
            (sheet.name, sheet.state != "visible", relation.target)
            for sheet, relation in parser.find_sheets()
            if relation.target in self.parts and "chartsheet" not in relation.Type
        ]

    def open_part(self, name: str) -> IO[bytes]:
        """Any part that has been checked."""
        if not name.endswith(_CHECKED):
            raise ValueError("a part that holds no rows")
        return self.archive.open(self.parts[name])

    def cell_reader(self) -> CellReader:
        """What the cells of this workbook need, the shared strings among it."""
        package: Any = self.package
        book: Any = self.wb
        part = package.find(SHARED_STRINGS)
        shared = SharedStrings()
        if part is not None:
            with self.open_part(part.PartName.removeprefix("/")) as member:
                shared = SharedStrings(member)
        dates, durations = book._date_formats, book._timedelta_formats  # noqa: SLF001
        return CellReader(shared, dates, durations, book.epoch)


def _open(path: Path, file: BinaryIO) -> tuple[_Reader, CellReader]:
    try:
        if file.read(4) == b"\xd0\xcf\x11\xe0":
            raise UsageError(
                f"{path}: an old or an encrypted workbook: save it as .xlsx, without a password"
            )
        file.seek(0)
        hidden = _check_parts(path, file)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of formats and extensions that nobody looks at
            reader = _Reader(file, hidden)
            reader.read()
        return reader, reader.cell_reader()
    except (*_BROKEN, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's fault; openpyxl raises OSErrors of its own
        raise UsageError(f"{path}: not an XLSX workbook that can be read") from error


def _rows(
    where: str, reader: _Reader, part: str, meaning: CellReader
) -> Generator[tuple[int, list[Cell]], None, None]:
    """The rows that hold something, with their numbers."""
    number = 0
    try:
        with reader.open_part(part) as member:
            for line, raw in read_rows(member):
                cells: list[Cell] = [None] * (max(raw, default=-1) + 1)
                for place, cell in raw.items():
                    cells[place] = meaning.read(cell)
                number = line
                if not is_empty(cells):
                    yield number, cells
    except _BROKEN as error:
        raise UsageError(
            f"{where}: cannot be read beyond row {number} ({type(error).__name__})"
        ) from error


def _by_title(title: str) -> Entity | None:
    name = _CONTINUED.sub("", title).strip().casefold()
    return next((e for e in ENTITIES.values() if name in (e.sheet.casefold(), e.name)), None)


def _check_parts(path: Path, file: BinaryIO) -> set[str]:
    """Bound what the parts unpack to; zipfile holds them to the sizes that they declare.

    The parts that openpyxl must not read: those of no use, and those that are too large to be
    held in memory, which a sheet and the shared strings may be.
    """
    hidden = set()
    with zipfile.ZipFile(file) as archive:
        parts = archive.infolist()
        if len(parts) > _MOST_PARTS:
            raise UsageError(f"{path}: {len(parts)} parts are too many for a workbook")
        for part in parts:
            where = f"{path}: {part.filename}"
            if part.filename.startswith(_NEVER_READ):
                hidden.add(part.filename)
                continue
            tags = 0
            if part.filename.endswith(_CHECKED):
                shared = part.filename.lower().endswith("sharedstrings.xml")
                if shared and part.file_size > _MOST_SHARED_TEXT:
                    raise UsageError(f"{where} unpacks to {part.file_size} bytes")
                with archive.open(part) as member:
                    tags = _check_markup(
                        member, where, _MOST_SHARED_TEXT if shared else _LONGEST_ROW
                    )
            if part.file_size > _LONGEST_ROW or tags > _MOST_TAGS:
                if part.filename == ARC_STYLE:
                    raise UsageError(f"{where} is too large: the workbook has too many styles")
                hidden.add(part.filename)
    return hidden


def _check_markup(member: IO[bytes], where: str, longest: int) -> int:
    """No declarations, comments or CDATA, and no row, or part without rows, over `longest`.

    Without those `<row` is markup wherever it stands, and a parser that forgets each row when it
    is done never holds more than `longest`. Returns how many tags there are.
    """
    tail = b""
    since = tags = 0
    while data := member.read(_READ):
        window = tail + data
        if b"\0" in window:
            raise UsageError(f"{where} is not UTF-8; save it anew")
        if b"<!" in window:
            raise UsageError(f"{where} holds a declaration, a comment or CDATA; save it anew")
        row = _ROW.search(window)
        since = since + len(data) if row is None else len(data)
        if since > longest:
            raise UsageError(f"{where} has a row of more than {longest} bytes")
        tags += data.count(b"<")
        tail = window[-_OVERLAP:]
    return tags
