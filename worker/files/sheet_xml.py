"""The XML of a workbook's sheets and shared strings, in pieces: no part is ever held as a whole.

openpyxl opens the workbook and knows its sheets and styles; rows are read here, since openpyxl
drops text that looks like an escape from shared strings, knows of a formula either itself or its
result, and holds on to every row. What parts unpack to has been bounded before: worker.files.
workbook.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator
from typing import Final, Protocol
from xml.parsers import expat

import msgspec

from worker.exports.xlsx_text import from_excel
from worker.files.cells import Cell

MAX_ROWS: Final = 1_048_576
MAX_COLUMNS: Final = 16_384
_MOST_STRINGS: Final = 16_000_000
_DEEPEST: Final = 50
_READ: Final = 1 << 18
_REFERENCE: Final = re.compile(r"([A-Z]{1,3})[0-9]+\Z")
_TEXTS: Final = frozenset({"t", "v", "f"})
"""The elements whose text counts: of a string, a value, a formula."""


class BrokenSheet(ValueError):
    """The XML is not what a spreadsheet writes."""


class Part(Protocol):
    """As much of an open part as is needed here."""

    def read(self, size: int, /) -> bytes:
        """Up to `size` bytes, none at the end."""
        ...


class RawCell(msgspec.Struct):
    """A cell as it stands. `value` is None where there is no value at all."""

    kind: str
    style: int
    value: str | None = None
    formula: str | None = None
    inline: str | None = None


Row = tuple[int, dict[int, RawCell]]
"""The number of a row and its cells by their columns, both as the sheet has them, from 1 and 0."""


def read_rows(part: Part) -> Iterator[Row]:
    """The rows of a sheet, in its order, one chunk of XML in memory at a time.

    Raises BrokenSheet or another ValueError, and ExpatError for what is no XML, after the rows
    before.
    """
    reader = _SheetReader()
    parser = _parser(reader.start, reader.end, reader.text)
    data = b" "
    while data:
        data = part.read(_READ)
        try:
            parser.Parse(data, not data)
        except (expat.ExpatError, ValueError):
            yield from reader.rows
            raise
        yield from reader.rows
        reader.rows.clear()


def _parser(
    start: Callable[[str, dict[str, str]], None],
    end: Callable[[str], None],
    text: Callable[[str], None],
) -> expat.XMLParserType:
    """A parser that hands on names without their prefixes."""
    depth = 0

    def started(tag: str, attributes: dict[str, str]) -> None:
        nonlocal depth
        depth += 1
        if depth > _DEEPEST:
            raise BrokenSheet(f"elements nested deeper than {_DEEPEST}")
        start(tag.rpartition(":")[2] if ":" in tag else tag, attributes)

    def ended(tag: str) -> None:
        nonlocal depth
        depth -= 1
        end(tag.rpartition(":")[2] if ":" in tag else tag)

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = started
    parser.EndElementHandler = ended
    parser.CharacterDataHandler = text
    parser.StartDoctypeDeclHandler = _refuse_doctype
    return parser


def _refuse_doctype(*_: object) -> None:
    raise BrokenSheet("a document type declaration")


class _SheetReader:
    """Takes what the parser finds; whole rows lie in `rows`."""

    def __init__(self) -> None:
        self.rows: list[Row] = []
        self._inside = self._phonetic = False
        self._row = 0
        self._column = -1
        self._cells: dict[int, RawCell] = {}
        self._cell: RawCell | None = None
        self._pieces: list[str] | None = None
        self._letters: dict[str, int] = {}

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self._inside:
            self._inside = tag == "sheetData"
        elif tag in _TEXTS:
            if self._cell is not None and not self._phonetic:
                self._pieces = []
        elif tag == "c":
            self._column = self._place(attributes.get("r"))
            kind, style = attributes.get("t", "n"), attributes.get("s", "0")
            self._cell = RawCell(kind, int(style))
            self._cells[self._column] = self._cell
        elif tag == "row":
            self._row = int(attributes.get("r", self._row + 1))
            if not 1 <= self._row <= MAX_ROWS:
                raise BrokenSheet(f"row {self._row} of at most {MAX_ROWS}")
            self._column = -1
            self._cells = {}
        elif tag == "rPh":
            self._phonetic = True

    def text(self, text: str) -> None:
        if self._pieces is not None:
            self._pieces.append(text)

    def end(self, tag: str) -> None:
        cell = self._cell
        if tag in _TEXTS:
            if self._pieces is not None and cell is not None:
                found = "".join(self._pieces)
                if tag == "v":
                    cell.value = found
                elif tag == "f":
                    cell.formula = found
                else:
                    cell.inline = (cell.inline or "") + found
            self._pieces = None
        elif tag == "c":
            self._cell = None
        elif tag == "row" and self._inside:
            self.rows.append((self._row, self._cells))
        elif tag == "rPh":
            self._phonetic = False
        elif tag == "sheetData":
            self._inside = False

    def _place(self, reference: str | None) -> int:
        """The column of a cell; without a reference the next one."""
        if reference is None:
            place = self._column + 1
        else:
            match = _REFERENCE.match(reference)
            if match is None:
                raise BrokenSheet("a cell without a place")
            place = self._letters.get(match[1], -1)
            if place < 0:
                for letter in match[1]:
                    place = (place + 1) * 26 + ord(letter) - ord("A")
                self._letters[match[1]] = place
        if place >= MAX_COLUMNS:
            raise BrokenSheet(f"column {place + 1} of at most {MAX_COLUMNS}")
        return place


class SharedStrings:
    """The table of shared strings, in one block of bytes: a workbook may have millions of them."""

    def __init__(self, part: Part | None = None) -> None:
        """Read the table. Raises BrokenSheet, and ExpatError for what is no XML."""
        self._data = bytearray()
        self._ends = array("L", [0])
        self._collecting = self._phonetic = False
        if part is None:
            return
        parser = _parser(self._start, self._end, self._text)
        data = b" "
        while data:
            data = part.read(_READ)
            parser.Parse(data, not data)

    def __getitem__(self, index: int) -> Cell:
        if not 0 <= index < len(self._ends) - 1:
            raise BrokenSheet("a cell refers to a shared string that is not there")
        start, end = self._ends[index : index + 2]
        return from_excel(self._data[start:end].decode("utf-8", "surrogatepass"))

    def _start(self, tag: str, _: dict[str, str]) -> None:
        if tag == "t":
            self._collecting = not self._phonetic
        elif tag == "rPh":
            self._phonetic = True

    def _text(self, text: str) -> None:
        if self._collecting:
            self._data += text.encode("utf-8", "surrogatepass")

    def _end(self, tag: str) -> None:
        if tag == "t":
            self._collecting = False
        elif tag == "rPh":
            self._phonetic = False
        elif tag == "si":
            if len(self._ends) > _MOST_STRINGS:
                raise BrokenSheet("too many shared strings")
            self._ends.append(len(self._data))
