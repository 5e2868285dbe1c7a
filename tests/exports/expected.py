"""What the cells of an export must be, from the accepted rows: docs/contract.md, "Exports"."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

from tests.exports.reading import Cells
from tests.exports.spec import FREE, NESTED, NUMBERS, TABLES
from tests.proofs.chaos.entities import key_of

LONGEST: Final = 32_767
"""UTF-16 code units that a cell of Excel holds."""

_RATING: Final = re.compile(r"[01]\.[0-9]{2,}")
_FORMULA: Final = re.compile(r"[=+\-@\t\r]")

Row = dict[str, Any]
Rows = Mapping[str, Sequence[Row]]
Same = Callable[[str, Any, Any], bool]
"""Whether a cell that was found is what a column of that type must show of a value."""


class LongCell(NamedTuple):
    """A cell that does not fit into a workbook."""

    entity: str
    key: str
    column: str
    length: int


def rows_of(accepted: Mapping[str, Iterable[bytes]]) -> dict[str, list[Row]]:
    """The rows as an export has them: in the byte order of their keys, the last of a key."""
    found = {}
    for entity, lines in accepted.items():
        latest = {key_of(entity, row): row for row in map(json.loads, lines)}
        found[entity] = [
            row for _, row in sorted(latest.items(), key=lambda item: item[0].encode())
        ]
    return found


def csv_cell(type_: str, value: Any, found: Any) -> bool:
    """A cell as the csv module gives it."""
    if value is None:
        return bool(found == "")
    if type_ == "Decimal":
        return _RATING.fullmatch(found) is not None and float(found) == value
    return bool(found == (str(value) if type_ == "Integer" else text_of(type_, value)))


def sheet_cell(type_: str, value: Any, found: Any) -> bool:
    """A cell as a reader of workbooks gives it, its escapes undone; None where it is empty."""
    if value is None:
        return found is None
    if type_ in NUMBERS:
        return type(found) in (int, float) and found == value
    return type(found) is str and found == cut(text_of(type_, value))


def differences(
    entity: str, rows: Sequence[Row], found: Iterable[Sequence[Any]], same: Same
) -> Iterator[str]:
    """One line for each cell that is not what it must be, header included."""
    columns = TABLES[entity].columns
    types = list(columns.items())
    lines = iter(found)
    header = list(next(lines, ()))
    if header != list(columns):
        yield f"{entity}: header {header}"
    seen = 0
    for row, cells in zip(rows, lines, strict=False):
        seen += 1
        if len(cells) != len(types):
            yield f"{entity} {key_of(entity, row)}: {len(cells)} cells"
            continue
        for (name, type_), cell in zip(types, cells, strict=True):
            value = row.get(name)
            if not same(type_, value, cell):
                yield f"{entity} {key_of(entity, row)} {name}: {value!r:.200} became {cell!r:.200}"
    surplus = sum(1 for _ in lines)
    if seen + surplus != len(rows):
        yield f"{entity}: {seen + surplus} rows instead of {len(rows)}"


def long_cells(rows: Rows) -> set[LongCell]:
    """Those that a workbook must cut, with their lengths."""
    return {
        LongCell(entity, key_of(entity, row), name, units(text))
        for entity, content in rows.items()
        for row in content
        for name, type_ in TABLES[entity].columns.items()
        if name in row
        and type_ not in NUMBERS
        and units(text := text_of(type_, row[name])) > LONGEST
    }


def formulas(rows: Rows) -> dict[str, int]:
    """How many cells of each entity a spreadsheet would run if they came by CSV."""
    return {
        entity: sum(
            1
            for row in content
            for name, type_ in TABLES[entity].columns.items()
            if type_ in FREE and name in row and _FORMULA.match(row[name])
        )
        for entity, content in rows.items()
    }


def units(text: str) -> int:
    """The length as Excel counts it."""
    return len(text) + sum(character > "\uffff" for character in text)


def cut(text: str) -> str:
    """What of a text fits into a cell; no character is halved."""
    if len(text) <= LONGEST // 2 or units(text) <= LONGEST:
        return text
    room = LONGEST
    for at, character in enumerate(text):
        room -= 2 if character > "\uffff" else 1
        if room < 0:
            return text[:at]
    return text


def text_of(type_: str, value: Any) -> str:
    """The text of a value that is no number; arrays and objects as compact JSON."""
    if type_ in NESTED:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    assert type(value) is str, (type_, value)
    return value


def compare(rows: Rows, cells: Cells, same: Same) -> None:
    """Every cell of every entity."""
    wrong: list[str] = []
    for entity, content in rows.items():
        wrong += islice(differences(entity, content, cells[entity], same), 5)
    assert not wrong, "\n".join(wrong)
