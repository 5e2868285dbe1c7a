"""Reads the rows of a sheet, with one piece of XML in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final
from xml.parsers.expat import ExpatError

from worker.files.cell_json import Cell
from worker.files.xlsx.cells import CellReader
from worker.files.xlsx.escapes import from_excel
from worker.files.xlsx.xml import TEXT, BrokenPart, ItemHandler, OpenPart, read_items

MAX_ROWS: Final = 1_048_576
MAX_COLUMNS: Final = 16_384
_REFERENCE: Final = re.compile(r"\$?([A-Z]{1,3})\$?[0-9]*\Z", re.ASCII | re.IGNORECASE)
_TEXTS: Final = frozenset({"t", "v", "f"})
"""The elements whose text counts: a string, a value, a formula."""
_PLAIN_ROW: Final = re.compile(r'\s*<row r="([1-9][0-9]{0,6})"(?: [\w:]{1,40}="[\w:. ]{0,80}")*>')
_PLAIN_CELL: Final = re.compile(
    r'<c(?: r="([A-Z]{1,3})[1-9][0-9]{0,6}")?(?: s="([0-9]{1,9})")?(?: t="(\w{1,20})")?'
    rf"(?:/>|></c>|><v>({TEXT})</v></c>"
    rf'|><is><t(?: xml:space="preserve")?>({TEXT})</t></is></c>)'
    r"|(\S.*)",
    re.DOTALL,
)
"""Column, style, type, value and inline text; or all text from the first other cell on."""
_LONGEST_PLAIN: Final = 1 << 20
"""Characters of a row parsed at once at most: each of its cells is a tuple in memory."""

Row = tuple[int, dict[int, Cell]]
"""The number of a row, from 1, and its cells by column, from 0. Empty cells are left out.

A dict, not a list: thousands of rows with one cell each at XFD would exhaust the memory.
"""


def read_rows(part: OpenPart, meaning: CellReader) -> Iterator[Row]:
    """The rows of a sheet, in its order.

    Raises BrokenPart, or ExpatError for invalid XML, after yielding the rows before the fault.
    """
    handler = _RowHandler(meaning)
    try:
        for _ in read_items(part, handler):
            yield from handler.rows
            handler.rows.clear()
    except (BrokenPart, ExpatError):
        yield from handler.rows
        raise


class _ColumnNumbers(dict[str, int]):
    """A cache of column numbers, from 0, by their letters."""

    def __missing__(self, letters: str) -> int:
        number = -1
        for letter in letters.upper():
            number = (number + 1) * 26 + ord(letter) - ord("A")
        self[letters] = number
        return number


class _RowHandler(ItemHandler):
    """Builds rows from the parser's events; complete rows are in `rows`."""

    container = "sheetData"
    item = "row"

    def __init__(self, meaning: CellReader) -> None:
        self.rows: list[Row] = []
        self._meaning = meaning
        self._columns = _ColumnNumbers()
        self._row = 0
        self._column = -1
        self._cells: dict[int, Cell] = {}
        self._kind: str | None = None
        """The type of the open cell; None outside a cell."""
        self._style = ""
        self._texts: dict[str, list[str]] = {}
        self._pieces: list[str] | None = None
        self._phonetic = False

    def take_plain(self, text: str) -> bool:
        """Take one row without its end tag, if each cell has the form that most programs write."""
        head = _PLAIN_ROW.match(text)
        if head is None or len(text) > _LONGEST_PLAIN:
            return False
        self._begin(int(head[1]))
        read, strings = self._meaning.read, self._meaning.shared
        columns, cells, column = self._columns, self._cells, -1
        for letters, style, kind, value, inline, other in _PLAIN_CELL.findall(text, head.end()):
            if other:
                return False
            column = columns[letters] if letters else column + 1
            if value:
                cells[column] = strings[value] if kind == "s" else read(kind, style, value)
            elif inline:
                cells[column] = from_excel(inline)
        self._finish()
        return True

    def start(self, tag: str, attributes: dict[str, str]) -> None:
        if not self.inside:
            if tag == self.container and not self.done:
                self.inside = self.depth
        elif tag in _TEXTS:
            if self._kind is not None and not self._phonetic:
                self._pieces = self._texts.setdefault(tag, [])
        elif tag == "c":
            self._column = self._place(attributes.get("r"))
            self._kind, self._style = attributes.get("t", ""), attributes.get("s", "")
            self._texts = {}
        elif tag == "row":
            number = attributes.get("r", "").strip() or f"{self._row + 1}"
            if not (number.isascii() and number.isdigit() and len(number) < 9):
                raise BrokenPart("a row without a number")
            self._begin(int(number))
        elif tag == "rPh":
            self._phonetic = True

    def text(self, text: str) -> None:
        if self._pieces is not None:
            self._pieces.append(text)

    def end(self, tag: str) -> None:
        if not self.inside:
            return
        if tag in _TEXTS:
            self._pieces = None
        elif tag == "c" and self._kind is not None:
            texts = {name: "".join(pieces) for name, pieces in self._texts.items()}
            get = texts.get
            cell = self._meaning.read(self._kind, self._style, get("v"), get("f"), get("t"))
            if cell is not None:
                self._cells[self._column] = cell
            self._kind = None
        elif tag == "row":
            self._finish()
        elif tag == "rPh":
            self._phonetic = False
        elif tag == self.container and self.depth == self.inside:
            self.inside = 0
            self.done = True

    def _begin(self, number: int) -> None:
        if not 1 <= number <= MAX_ROWS:
            raise BrokenPart(f"row {number} of at most {MAX_ROWS}")
        self._row = number
        self._column = -1
        self._cells = {}

    def _finish(self) -> None:
        self.taken += 1
        if self.taken > MAX_ROWS:
            raise BrokenPart(f"more than {MAX_ROWS} rows")
        cells, self._cells = self._cells, {}  # a cell after the row belongs to none
        if cells:
            if (last := max(cells)) >= MAX_COLUMNS:
                raise BrokenPart(f"column {last + 1} of at most {MAX_COLUMNS}")
            self.rows.append((self._row, cells))

    def _place(self, reference: str | None) -> int:
        """The column of a cell; without a reference, the next column."""
        if not reference:
            return self._column + 1
        match = _REFERENCE.match(reference.strip())
        if match is None:
            raise BrokenPart("a cell without a place")
        return self._columns[match[1].upper()]
