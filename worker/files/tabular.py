"""Tables, common to CSV files and sheets: a header of column names, and rows below it.

A header made by hand may have blanks around its names, or capitals, so names are compared without
them. Cells missing at the end of a row are empty: Excel sometimes omits them. A value under no name
is a fault of the row, since it may belong to another column.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from schemas import ENTITIES, Entity, Kind
from worker.errors import UsageError
from worker.files.cell_json import Cell, Filled, json_string, json_value
from worker.files.records import FileRecord, Notice

COLUMNS: Final = frozenset(column.name for entity in ENTITIES.values() for column in entity.columns)
_DECIMAL_COMMA: Final = re.compile(r"\A(-?[0-9]+),([0-9]+)\Z")
_WHOLE: Final = re.compile(r"\A(-?(?:0|[1-9][0-9]*))\.0+\Z")
_WHOLE_COMMA: Final = re.compile(r"\A(-?(?:0|[1-9][0-9]*))[.,](?!000\Z)0+\Z")
"""If a comma may be the decimal sign, a point or comma before three zeros may mean thousands."""
_MOST_UNKNOWN: Final = 1_000
"""At most this many unknown columns become unknown fields of the records."""
_WIDEST_GAP: Final = 100
"""Empty cells beyond the header in the array of a faulty row; a sheet has 16,384 columns."""
_MOST_NAMED: Final = 5
_LONGEST_NAMED: Final = 60
_AROUND: Final = (
    " \t\n\v\f\r\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2028\u2029\u202f\u205f\u3000"
    "\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\0\xad\u180e\u200b\u200c\u200d\u200e\u200f\u2060\ufeff"
)
"""Invisible characters around a name: white space, and characters without a width."""
_LOOKED_AT: Final = frozenset({Kind.INTEGER, Kind.RATING, Kind.TEXTS, Kind.INTEGERS, Kind.OBJECT})
"""Kinds for which a cell may mean something other than its text (`worker.files.cell_json`)."""
_encode: Final = msgspec.json.Encoder().encode


def column_names(cells: Sequence[Cell]) -> list[str]:
    """The names in a header. Names of columns are spelled as in the specification.

    A cell without a name gives an empty name; such cells at the end are dropped.
    """
    names = [cell.strip(_AROUND) if isinstance(cell, str) else "" for cell in cells]
    while names and not names[-1]:
        names.pop()
    return [lower if (lower := name.lower()) in COLUMNS else name for name in names]


def recognise(names: Sequence[str]) -> Entity | None:
    """The one entity whose required columns are all there, with the most columns; else None."""
    known = COLUMNS.intersection(names)
    fitting = [
        (sum(column.name in known for column in entity.columns), entity.name)
        for entity in ENTITIES.values()
        if all(column.name in known for column in entity.columns if column.required)
    ]
    fitting.sort(reverse=True)
    if not fitting or (len(fitting) > 1 and fitting[0][0] == fitting[1][0]):
        return None
    return ENTITIES[fitting[0][1]]


def has_column(entity: Entity, names: Sequence[str]) -> bool:
    """Whether at least one of these names is a column of the entity."""
    known = COLUMNS.intersection(names)
    return any(column.name in known for column in entity.columns)


def is_empty(cells: Iterable[Cell]) -> bool:
    """Whether a row holds nothing but blanks."""
    for cell in cells:  # noqa: SIM110, a generator takes three times as long
        if isinstance(cell, bool) or (cell and not cell.isspace()):
            return False
    return True


class Table:
    """Turns rows of cells, in the order of a header, into records in the entity's order.

    `source` is (path, sheet). With `decimal_comma`, a number may be written `0,85`. An integer may
    have zero decimals, as written by programs that cannot represent a missing integer.
    """

    def __init__(
        self,
        entity: Entity,
        names: Sequence[str],
        source: tuple[str, str | None],
        *,
        decimal_comma: bool = False,
    ) -> None:
        kinds = {column.name: column.kind for column in entity.columns}
        order = {name: n for n, name in enumerate(kinds)}
        first = {name: n for n, name in reversed([*enumerate(names)]) if name}
        columns = [
            (order.get(name, len(order)), n, _field(name), kinds.get(name, Kind.TEXT))
            for name, n in first.items()
        ]
        self._entity = entity
        self._names = names
        self._path, self._sheet = source
        most = sum(name in order for name in first) + _MOST_UNKNOWN
        self._columns = [
            (*column[1:], column[3] in _LOOKED_AT) for column in sorted(columns)[:most]
        ]
        self._nameless = [n for n, name in enumerate(names) if not name]
        self._decimal_comma = decimal_comma
        self._whole = _WHOLE_COMMA if decimal_comma else _WHOLE

    def check_header(self, where: str, notice: Notice) -> None:
        """Report missing and unknown columns of the header. UsageError if it is unusable."""
        names, columns = self._names, self._entity.columns
        for column in columns:
            if names.count(column.name) > 1:
                raise UsageError(f"{where}: a column is named twice: {column.name}")
        if not has_column(self._entity, names):
            such_as = ", ".join(column.name for column in columns[:3])
            raise UsageError(
                f"{where}: not one column of {self._entity.name} in the header: expected column "
                f"names there ({such_as}, …), and no title above them"
            )
        named = COLUMNS.intersection(names)
        missing = [one.name for one in columns if one.required and one.name not in named]
        if missing:
            notice(f"{where}: no column {_listed(missing)}, which {self._entity.name} must have")
        known = {column.name for column in columns}
        unknown = [name for name in dict.fromkeys(names) if name and name not in known]
        if unknown:
            notice(f"{where}: no column of {self._entity.name}, left out: {_listed(unknown)}")

    def record(self, line: int, cells: Sequence[Cell], limit: int) -> FileRecord:
        """The record of a row: a JSON object without the empty cells, or the fault of the row."""
        fault = self._fault(cells)
        value = self._object(cells) if fault is None else _array(cells)
        return self._record(line, value, fault, limit)

    def sparse(self, line: int, cells: Mapping[int, Cell], limit: int) -> FileRecord:
        """As `record`, for a row as a mapping from column index to cell, with one cell at least.

        A cell far to the right costs no more than others. More than 100 columns beyond the header,
        the array of a faulty row contains only the cells that are not empty.
        """
        last, width = max(cells), len(self._names) + _WIDEST_GAP
        if last < width:
            return self.record(line, [*map(cells.get, range(last + 1))], limit)
        far = sorted(n for n, cell in cells.items() if n >= width and cell not in (None, ""))
        near = [*map(cells.get, range(width))]
        fault = self._fault(near)
        if fault is None and far:
            fault = _misplaced(far[0])
        if fault is None:
            return self.record(line, near, limit)
        return self._record(line, _array(near + [cells[n] for n in far]), fault, limit)

    def _record(self, line: int, value: bytes, fault: str | None, limit: int) -> FileRecord:
        oversize, sha256 = 0, None
        if len(value) > limit:
            oversize, sha256 = len(value), hashlib.sha256(value).hexdigest()
        return FileRecord(
            self._entity.name,
            self._path,
            line,
            value[:limit],
            sheet=self._sheet,
            oversize=oversize,
            sha256=sha256,
            fault=fault,
        )

    def _fault(self, cells: Sequence[Cell]) -> str | None:
        width = len(self._names)
        if len(cells) <= width and not self._nameless:
            return None
        beyond = (n for n in range(width, len(cells)) if cells[n] not in (None, ""))
        within = (n for n in self._nameless if n < len(cells) and cells[n] not in (None, ""))
        for n in (*within, *beyond):
            return _misplaced(n)
        return None

    def _object(self, cells: Sequence[Cell]) -> bytes:
        there = len(cells)
        try:
            return _encode(
                {
                    name: msgspec.Raw(self._value(kind, cell)) if looked_at else cell
                    for n, name, kind, looked_at in self._columns
                    if n < there and (cell := cells[n]) is not None and cell != ""
                }
            )
        except UnicodeEncodeError:  # bytes that were not UTF-8, or a lone surrogate
            pairs = [
                json_string(name) + b":" + self._value(kind, cell)
                for n, name, kind, _ in self._columns
                if n < there and (cell := cells[n]) is not None and cell != ""
            ]
            return b"{" + b",".join(pairs) + b"}"

    def _value(self, kind: Kind, cell: Filled) -> bytes:
        if kind is Kind.INTEGER and isinstance(cell, str):
            cell = self._whole.sub(r"\1", cell)
        elif self._decimal_comma and kind is Kind.RATING and isinstance(cell, str):
            cell = _DECIMAL_COMMA.sub(r"\1.\2", cell)
        return json_value(kind, cell)


def _misplaced(index: int) -> str:
    return f"expected nothing in column {column_letters(index)}, which has no name"


def column_letters(index: int) -> str:
    """The name of a column in a spreadsheet: A for 0, AA for 26."""
    letters = ""
    index += 1
    while index:
        index, rest = divmod(index - 1, 26)
        letters = chr(ord("A") + rest) + letters
    return letters


def _array(cells: Sequence[Cell]) -> bytes:
    try:
        return _encode(cells)
    except UnicodeEncodeError:
        values = (b"null" if cell is None else json_value(Kind.TEXT, cell) for cell in cells)
        return b"[" + b",".join(values) + b"]"


def _listed(names: Sequence[str]) -> str:
    listed = ", ".join(map(shown, names[:_MOST_NAMED]))
    more = len(names) - _MOST_NAMED
    return listed if more <= 0 else f"{listed} and {more} more"


def shown(name: str) -> str:
    """A name with invisible characters, and bytes that are not UTF-8, as escapes."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode().replace("udc", "x")
        for one in name[:_LONGEST_NAMED]
    )


def _field(name: str) -> str:
    """The name of a field in valid UTF-8: a name that is not must not spoil the row."""
    return name.encode(errors="backslashreplace").decode()
