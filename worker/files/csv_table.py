"""CSV files: those that we export, those that Excel saves, and those made by hand.

A comment header may come first, then a header line of column names. What separates cells (a
comma, a semicolon or a tab) is told by the header line alone: it is what makes most column names
of it. The csv module parses; lines are cut at LF here, so that a line number is what an editor
shows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from typing import Final

from schemas import Entity
from worker.errors import UsageError
from worker.files.encodings import Readable
from worker.files.lines import Line, read_lines
from worker.files.records import READ_LIMIT, FileRecord, Notice
from worker.files.table import COLUMNS, Table, column_names, is_empty, recognise

_SEPARATORS: Final = ",;\t"
_COMMENT: Final = (b"#", b'"#')
"""A spreadsheet quotes a comment line that holds a separator."""
_LINES_IN_A_ROW: Final = 8
"""A row over many lines may be so many times as long as one line at most."""


def read_csv(
    stream: Readable,
    entity: Entity | None,
    name: str,
    *,
    limit: int = READ_LIMIT,
    notice: Notice = lambda _: None,
) -> Iterator[FileRecord]:
    """The records of a CSV stream of UTF-8; without an entity it is recognised by the header.

    A row with a value beyond the header is a record with a fault; one of bytes that are no UTF-8
    a malformed record. Empty rows are left out. `notice` gets what the header lacks. UsageError,
    naming file and line, where the file is no CSV.
    """
    file = _Rows(stream, name, limit)
    number, names = file.header()
    where = f"{name}:{number}"
    entity = entity or recognise(names)
    if entity is None:
        raise UsageError(f"{where}: these columns are of no one entity; say which with --entity")
    table = Table(entity, names, (name, None), decimal_comma=file.separator != ",")
    table.check_header(where, notice)
    for line, cells in file:
        yield table.record(line, cells, limit)


def csv_header(stream: Readable, name: str, limit: int = READ_LIMIT) -> list[str]:
    """The column names of a CSV stream, none if it has no header. UsageError as `read_csv`."""
    return _Rows(stream, name, limit).header()[1]


class _Rows:
    """The rows that hold something, each with the number of its first line."""

    def __init__(self, stream: Readable, name: str, limit: int) -> None:
        self._name = name
        self._limit = limit
        self._lines = read_lines(stream, limit)
        self._start = 0
        self._size = 0
        self._reader: Iterator[list[str]] = iter(())
        self.separator = ","
        # The module's limit is the process's: it is only ever raised.
        csv.field_size_limit(max(csv.field_size_limit(), limit))

    def header(self) -> tuple[int, list[str]]:
        """The line number of the header, and its names."""
        declared = ""
        for line in self._lines:
            text = self._text(line)
            if line.data.startswith(_COMMENT) or not text.strip(f"{_SEPARATORS} \r\n"):
                continue
            if not declared and (declared := _declared(text)):
                continue
            self.separator = declared or _separator(text)
            self._reader = csv.reader(self._texts(line), delimiter=self.separator, strict=True)
            number, cells = next(self, (line.number, []))
            return number, column_names(cells)
        return 1, []

    def __iter__(self) -> Iterator[tuple[int, Sequence[str]]]:
        return self

    def __next__(self) -> tuple[int, Sequence[str]]:
        while True:
            self._start = self._size = 0
            try:
                cells = next(self._reader)
            except csv.Error as error:
                raise UsageError(f"{self._name}:{self._start}: not CSV ({error})") from error
            if not is_empty(cells):
                return self._start, cells

    def _texts(self, header: Line) -> Iterator[str]:
        yield self._started(header)
        for line in self._lines:
            yield self._started(line)

    def _started(self, line: Line) -> str:
        self._start = self._start or line.number
        self._size += len(line.data) + 1
        if self._size > self._limit * _LINES_IN_A_ROW:
            raise UsageError(f"{self._name}:{self._start}: a row that does not end")
        return self._text(line)

    def _text(self, line: Line) -> str:
        if line.oversize:
            raise UsageError(f"{self._name}:{line.number}: a line of {line.oversize} bytes")
        return line.data.decode("utf-8", "surrogateescape") + "\n"


def _declared(text: str) -> str:
    """The separator that a line `sep=;` declares, which Excel heeds; else none."""
    text = text.strip('"\r\n ')
    return text[4:] if text[:4] == "sep=" and text[4:] in (*_SEPARATORS,) else ""


def _separator(header: str) -> str:
    """What makes most column names of a header line; a comma where nothing does."""

    def found(separator: str) -> int:
        try:
            cells = next(csv.reader([header], delimiter=separator), [])
        except csv.Error:
            return 0
        return sum(name in COLUMNS for name in column_names(cells))

    return max(_SEPARATORS, key=found)
