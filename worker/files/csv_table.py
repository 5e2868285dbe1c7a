"""Reads CSV files: our exports, files saved by Excel, and files made by hand.

A header line of column names, then rows. The csv module parses; the lines are split here, so that
line numbers agree with an editor. LF, CRLF and CR alone end a line, even within one file.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from typing import Final

from schemas import Entity
from worker.errors import UsageError
from worker.files.csv_header import Header, NoSeparator, NumberedText, find_header, header_names
from worker.files.encodings import Readable
from worker.files.foreign import markup
from worker.files.lines import read_any_lines
from worker.files.records import READ_LIMIT, FileRecord, Notice
from worker.files.stated import Statement
from worker.files.tabular import Table, is_empty, recognise

_LINES_IN_A_ROW: Final = 8
"""A row over several lines may be this many times as long as the limit of one line."""
_MOST_COLUMNS: Final = 200_000
_END_OF_FILE: Final = "\x1a"
"""Ctrl-Z, which ended texts under DOS."""
_NO_NAME: Final = re.compile("[\x0b\x0c\x1c-\x1f\x85\u2028\u2029]")
"""Characters that end a line in some programs, and that no column name contains."""
_FAULTS: Final = {
    "unexpected end": "the quote that opens here is never closed",
    "expected after": "text follows a closing quote; a quote inside a cell is written twice",
    "field larger": "a cell is too long",
}
"""By a part of the csv module's message, our own message."""


def read_csv(
    stream: Readable,
    entity: Entity | None,
    name: str,
    *,
    limit: int = READ_LIMIT,
    notice: Notice = lambda _: None,
    statement: Statement | None = None,
) -> Iterator[FileRecord]:
    """The records of a CSV stream in UTF-8. Without `entity` the header decides the entity.

    A row with a value beyond the header is a record with a fault. A row with bytes that are not
    UTF-8 is a malformed record. Empty rows are skipped. `notice` gets one line each about
    lines above the header, missing columns and unknown columns. `statement` gets the number of
    records that a comment above the header states. Raises UsageError, naming file and
    line, if the file is not CSV.
    """
    file = _CsvRows(stream, name, limit)
    header, names = file.header()
    if header is None:
        raise UsageError(f"{name}: {file.without_header(entity)}")
    where = f"{name}:{header.number}"
    entity = entity or recognise(names)
    if entity is None:
        raise UsageError(f"{where}: these columns are of no one entity; say which with --entity")
    if header.above:
        notice(f"{name}: left out above the header: line {', '.join(map(str, header.above))}")
    table = Table(entity, names, (name, None), decimal_comma=header.separator != ",")
    table.check_header(where, notice)
    cells: Sequence[str] = names
    for line, cells in file:
        yield table.record(line, cells, limit)
    if statement is not None and header.stated is not None:
        statement.counts[entity.name] = header.stated
        statement.cut_off = len(cells) < len(names) and not file.ends_with_line


def csv_header(stream: Readable, name: str, limit: int = READ_LIMIT) -> list[str]:
    """The column names of a CSV stream; none if it has no header. UsageError as in `read_csv`."""
    return _CsvRows(stream, name, limit).header()[1]


class _CsvRows:
    """The rows that are not empty, each with the number of its first line."""

    def __init__(self, stream: Readable, name: str, limit: int) -> None:
        self._first = b""
        self._name = name
        self._limit = limit
        self._lines = self._texts(stream)
        self._last = b""
        self._start = 0
        self._size = 0
        self._reader: Iterator[list[str]] = iter(())
        # The csv module has one limit for the whole process: only raise it.
        csv.field_size_limit(max(csv.field_size_limit(), limit))

    def header(self) -> tuple[Header | None, list[str]]:
        """The header and its column names."""
        try:
            header = find_header(self._lines)
        except NoSeparator:
            raise UsageError(
                f"{self._name}: the line sep=… declares no separator that can be used: expected "
                "one character, such as a comma, a semicolon or a tab"
            ) from None
        if header is None:
            return None, []
        lines = self._started(header.lines)
        self._reader = csv.reader(lines, delimiter=header.separator, strict=True)
        _, cells = next(self)
        if len(cells) > _MOST_COLUMNS:
            raise UsageError(f"{self._name}:{header.number}: more than {_MOST_COLUMNS} columns")
        names = header_names(cells)
        if any(map(_NO_NAME.search, names)):
            raise UsageError(
                f"{self._name}:{header.number}: a column name holds a control character: lines "
                "must end with LF, CRLF or CR"
            )
        return header, names

    @property
    def ends_with_line(self) -> bool:
        """Whether the last line that was read has a line end."""
        return self._last.endswith((b"\n", b"\r"))

    def without_header(self, entity: Entity | None) -> str:
        """Why no header was found, and what to do."""
        if why := markup(self._first):
            return why
        names = "" if entity is None else f" of {entity.name}"
        found = f"not one column{names} in its first lines" if self._first else "the file is empty"
        columns = () if entity is None else entity.columns[:3]
        such_as = f" ({', '.join(column.name for column in columns)}, …)" if columns else ""
        return f"{found}: expected a line of column names{such_as}"

    def __iter__(self) -> Iterator[tuple[int, Sequence[str]]]:
        return self

    def __next__(self) -> tuple[int, Sequence[str]]:
        while True:
            self._start = self._size = 0
            try:
                cells = next(self._reader)
            except csv.Error as error:
                fault = next((f for said, f in _FAULTS.items() if said in str(error)), "not CSV")
                raise UsageError(f"{self._name}:{self._start}: {fault}") from error
            if not is_empty(cells):
                return self._start, cells

    def _started(self, lines: Iterator[NumberedText]) -> Iterator[str]:
        """The lines for the parser; also tracks where the current row starts, and its size."""
        for number, text in lines:
            self._start = self._start or number
            self._size += len(text)
            if self._size > self._limit * _LINES_IN_A_ROW:
                raise UsageError(
                    f"{self._name}:{self._start}: a row that does not end; is a quote not closed?"
                )
            yield text

    def _texts(self, stream: Readable) -> Iterator[NumberedText]:
        for line in read_any_lines(stream, self._limit):
            if line.oversize:
                raise UsageError(f"{self._name}:{line.number}: a line of {line.oversize} bytes")
            self._last = line.data
            text = line.data.decode("utf-8", "surrogateescape")
            if line.number == 1:
                self._first = line.data
                text = text.lstrip("\ufeff")  # some programs add a second BOM
            yield line.number, text.rstrip(_END_OF_FILE)
