"""Reads XLSX workbooks: our exports, files saved by Excel, and files made by hand.

A formula counts by its saved result; nothing is evaluated. `worker.files.xlsx` reads the parts of a
workbook, and bounds them.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Collection, Generator, Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from schemas import ENTITIES, Entity
from worker.errors import UsageError
from worker.files.records import ENTITY_ORDER, READ_LIMIT, FileRecord, Notice, printable
from worker.files.stated import Statement
from worker.files.tabular import Table, column_names, has_column, is_empty, recognise
from worker.files.xlsx.book import Book, Sheet
from worker.files.xlsx.package import BROKEN, cause
from worker.files.xlsx.rows import Row
from worker.files.xlsx.xml import OtherFormat

_CONTINUED: Final = re.compile(r" \(([0-9]+)\)\Z")
_MOST_PARTS: Final = 99
"""Sheets of one entity. A greater number is no part: `Users (2024)`."""
_METADATA_SHEET: Final = "Export Metadata"
_MOST_METADATA: Final = 100
"""Rows of the sheet of metadata that are looked at."""
_STATED: Final = {f"record_counts.{name}": name for name in ENTITIES}
_COUNT: Final = re.compile(r"([0-9]{1,15})(?:\.0+)?")
_OLE: Final = b"\xd0\xcf\x11\xe0"
_ENCRYPTED: Final = "EncryptedPackage".encode("utf-16-le")
_SAVE: Final = "open it in a spreadsheet program and save it as .xlsx"
_LOOKED_AT: Final = 1 << 20


class _EntitySheet(msgspec.Struct, frozen=True):
    """A sheet with rows of an entity: the number of its header row, and the names in it."""

    sheet: Sheet
    entity: Entity
    number: int
    names: list[str]


def read_workbook(
    path: Path,
    entity: Entity | None,
    *,
    limit: int = READ_LIMIT,
    notice: Notice = lambda _: None,
    statement: Statement | None = None,
) -> Iterator[FileRecord]:
    """The rows of all sheets, in the order of entities; if `entity` is given, its rows only.

    The entity of a sheet is that of its name, else of its header, else `entity`. `notice` gets one
    line about each other sheet, with the reason why it is left out. `statement` gets the numbers of
    records in the sheet of metadata. Raises UsageError, naming file
    and sheet: no sheet can be read, a header is unusable, or the workbook is broken or unpacks
    beyond the bounds.
    """
    name = printable(path)
    with path.open("rb") as file:
        book = _open(path, file)
        tables = _tables(book, name, entity, notice)
        stated = _stated(book, name)
        if statement is not None:
            statement.counts |= stated
        for line in _gaps(book, stated, entity):
            notice(f"{name}: {line}")
        for table in sorted(tables, key=lambda one: ENTITY_ORDER[one.entity.name]):
            where = f"{name}, sheet {table.sheet.title}"
            rows = Table(table.entity, table.names, (name, table.sheet.title))
            rows.check_header(f"{where}, row {table.number}", notice)
            with closing(_rows(book, table.sheet, where)) as found:
                next(found, None)  # the header
                for number, cells in found:
                    yield rows.sparse(number, cells, limit)


def _open(path: Path, file: BinaryIO) -> Book:
    start = file.read(_LOOKED_AT)
    file.seek(0)
    try:
        return Book(file)
    except BROKEN as error:
        why = f"{cause(error)}; {_SAVE}"
        if isinstance(error, OtherFormat):
            why = cause(error)
        elif isinstance(error, zipfile.BadZipFile):
            why = _instead(start)
        raise UsageError(
            f"{printable(path)}: not an XLSX workbook that can be read: {why}"
        ) from error


def _instead(start: bytes) -> str:
    """What a file is if it is not a ZIP archive."""
    text = start[:1000].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if not start:
        return "it is empty"
    if start.startswith(b"PK"):
        return f"it is cut off or damaged; {_SAVE}, or fetch it again"
    if start.startswith(_OLE) and _ENCRYPTED in start:
        return "it has a password; save it without one"
    if start.startswith(_OLE):
        return "it is an old workbook (.xls) or has a password; save it as .xlsx, without one"
    if text.startswith((b"<!doctype html", b"<html", b"<table")):
        return f"it is a web page; {_SAVE}"
    if text.startswith(b"<?xml"):
        return f"it is XML; {_SAVE}"
    if start.startswith(b"\x1f\x8b"):
        return "it is packed with gzip; unpack it"
    return "it is no ZIP archive; if it is text, name it .csv"


def _tables(book: Book, name: str, entity: Entity | None, notice: Notice) -> list[_EntitySheet]:
    """The sheets to read. Raises UsageError if there is none."""
    tables: list[_EntitySheet] = []
    others: list[str] = []
    for sheet in book.sheets:
        found = _entity_sheet(book, sheet, f"{name}, sheet {sheet.title}", entity)
        if isinstance(found, _EntitySheet):
            tables.append(found)
        elif found:
            others.append(f"sheet {sheet.title}: left out, {found}")
    for line in others:
        notice(f"{name}, {line}")
    if not tables and others:
        wanted = "an entity" if entity is None else entity.name
        raise UsageError(
            f"{name}: no sheet of it can be read: the first row of one must name the columns of "
            f"{wanted}, and it must not be hidden ({_most(others)})"
        )
    return tables


def _entity_sheet(
    book: Book, sheet: Sheet, where: str, entity: Entity | None
) -> _EntitySheet | str:
    """The table in a sheet, or why there is none: empty for the metadata sheet of our exports."""
    if sheet.fault is not None:
        return sheet.fault
    with closing(_rows(book, sheet, where)) as rows:
        number, header = next(rows, (0, {}))
    names = column_names([*map(header.get, range(max(header, default=-1) + 1))])
    chosen = _by_title(sheet.title) or recognise(names)
    if chosen is None and sheet.title == _METADATA_SHEET:
        return ""
    if not number:
        return "it is empty"
    if chosen is None and entity is not None and has_column(entity, names):
        chosen = entity
    if chosen is None:
        return "its name and its columns are of no entity"
    if sheet.hidden:
        return "it is hidden"
    if entity not in (None, chosen):
        return f"it is of {chosen.name}"
    return _EntitySheet(sheet, chosen, number, names)


def _stated(book: Book, name: str) -> dict[str, int]:
    """The numbers of records by entity in the sheet of metadata of our exports, if there is one.

    None of an entity with a hidden sheet, which is left out with a line of its own.
    """
    counts: dict[str, int] = {}
    sheet = next((one for one in book.sheets if one.title == _METADATA_SHEET), None)
    if sheet is None or sheet.fault is not None:
        return counts
    try:
        with closing(_rows(book, sheet, name)) as rows:
            for _, cells in islice(rows, _MOST_METADATA):
                field, value = cells.get(0), cells.get(1)
                if field in _STATED and isinstance(value, str) and (is_ := _COUNT.fullmatch(value)):
                    counts[_STATED[field]] = int(is_[1])
    except UsageError:
        return {}  # a damaged sheet states nothing
    hidden = {entity.name for one in book.sheets if one.hidden and (entity := _by_title(one.title))}
    return {entity: count for entity, count in counts.items() if entity not in hidden}


def _gaps(book: Book, stated: Collection[str], wanted: Entity | None) -> Iterator[str]:
    """A line on each entity with a sheet like `Users (3)` but no `Users (2)`.

    Not if the entity's number of records is stated: that number shows whether records are missing.
    """
    parts: dict[str, set[int]] = {}
    for sheet in book.sheets:
        if entity := _by_title(sheet.title):
            number = _CONTINUED.search(sheet.title)
            parts.setdefault(entity.name, set()).add(int(number[1]) if number else 1)
    for name, found in parts.items():
        last = max((n for n in found if n <= _MOST_PARTS), default=0)
        missing = [n for n in range(1, last) if n not in found]
        if missing and name not in stated and wanted in (None, ENTITIES[name]):
            title = ENTITIES[name].sheet
            first = title if missing[0] == 1 else f"{title} ({missing[0]})"
            yield f"sheet {title} ({last}) is there, but no sheet {first}"


def _most(lines: list[str]) -> str:
    more = len(lines) - 1
    return lines[0] if not more else f"{lines[0]}; {more} more"


def _rows(book: Book, sheet: Sheet, where: str) -> Generator[Row, None, None]:
    """The rows that are not empty, with their numbers."""
    number = 0
    try:
        for number, found in book.rows(sheet):
            if not is_empty(found.values()):
                yield number, found
    except BROKEN as error:
        raise UsageError(
            f"{where}: cannot be read beyond row {number}: {cause(error)}; {_SAVE}"
        ) from error


def _by_title(title: str) -> Entity | None:
    name = _CONTINUED.sub("", title).strip().casefold()
    return next((e for e in ENTITIES.values() if name in (e.sheet.casefold(), e.name)), None)
