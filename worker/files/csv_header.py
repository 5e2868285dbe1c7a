"""Finds the header of a CSV file, and the separator of its cells.

Comments, a line `sep=;` and titles may precede the header. The header is the first line that names
two columns of any entity; failing that, one column. The separator is the one that yields the most
column names. The content of rows plays no role.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from operator import itemgetter
from typing import Final

import msgspec

from worker.files.cell_json import Cell
from worker.files.tabular import COLUMNS, column_names

_SEPARATORS: Final = ",;\t|"
_BLANK: Final = f"{_SEPARATORS} \r\n\ufeff"
_COMMENT: Final = ("#", '"#')
"""Spreadsheets quote a comment line that contains a separator."""
_TOTAL: Final = re.compile(r'"?#\s*total records\s*:\s*([0-9]{1,15})"?[\s,;|]*', re.IGNORECASE)
"""The comment in which an export states its records. Spreadsheets append separators."""
_DECLARATION: Final = "sep="
_MOST_ABOVE: Final = 20
"""Lines allowed above a header, not counting comments and blank lines."""
_LONGEST_LOOKED_AT: Final = 64 * 1024

NumberedText = tuple[int, str]


class NoSeparator(Exception):
    """A line `sep=…` declares something that cannot separate cells."""


class Header(msgspec.Struct, frozen=True):
    """The header of a file. `lines` are the lines of the file from the header on."""

    number: int
    separator: str
    lines: Iterator[NumberedText]
    above: tuple[int, ...] = ()
    """The numbers of the lines above the header, without blank lines and comments."""
    stated: int | None = None
    """The number of records that a comment above the header states; None if there is no one."""


def find_header(lines: Iterator[NumberedText]) -> Header | None:
    """The header of a file; None if none of the first lines names a column.

    A line that starts with `#` can be the header, too (`#,id,email` or `#id,email`). It must name
    more columns than the line that follows the comments. Raises NoSeparator.
    """
    totals: set[int] = set()
    header = _find(lines, totals)
    if header is None or len(totals) != 1:
        return header
    return msgspec.structs.replace(header, stated=totals.pop())


def _find(lines: Iterator[NumberedText], totals: set[int]) -> Header | None:
    """The header. The numbers of records that comments above it state are added to `totals`."""
    declared = ""
    marked: tuple[int, NumberedText, str] | None = None
    above: list[int] = []
    for line in lines:
        number, text = line
        if not text.strip(_BLANK):
            continue
        if not declared and (declared := _declared(text)):
            continue
        count, separator = _most_names(text, declared)
        if text.startswith(_COMMENT):
            _add_total(text, totals)
            if count > (marked[0] if marked else 1):
                marked = (count, line, separator)
        elif count >= (marked[0] if marked else 2):
            return Header(number, separator, chain([line], lines), tuple(above))
        elif marked:
            return Header(marked[1][0], marked[2], chain([marked[1], line], lines), tuple(above))
        elif count:
            return _or_further_on(line, separator, lines, (declared, above, totals))
        elif len(above) == _MOST_ABOVE:
            return None
        else:
            above.append(number)
    return None if marked is None else Header(marked[1][0], marked[2], iter([marked[1]]))


def _or_further_on(
    line: NumberedText,
    separator: str,
    lines: Iterator[NumberedText],
    so_far: tuple[str, Sequence[int], set[int]],
) -> Header:
    """The header if `line`, the first with a name, has one only: it may be a title (`Role,all`)."""
    declared, above, totals = so_far
    behind = list(islice(lines, _MOST_ABOVE))
    titles = [*above, line[0]]
    below: set[int] = set()
    for place, (number, text) in enumerate(behind):
        if text.startswith(_COMMENT):
            _add_total(text, below)
        elif text.strip(_BLANK):
            count, better = _most_names(text[:_LONGEST_LOOKED_AT], declared)
            if count > 1:
                totals |= below
                return Header(number, better, chain(behind[place:], lines), tuple(titles))
            titles.append(number)
    return Header(line[0], separator, chain([line], behind, lines), tuple(above))


def _add_total(text: str, totals: set[int]) -> None:
    if found := _TOTAL.fullmatch(text):
        totals.add(int(found[1]))


def header_names(cells: Sequence[Cell]) -> list[str]:
    """The names in the cells of a header, without a `#` before the first one."""
    names = column_names(cells)
    if names and names[0].startswith("#"):
        first, *_ = column_names([names[0].lstrip("#")]) or [""]
        if first in COLUMNS and first not in names:
            names[0] = first
    return names


def _declared(text: str) -> str:
    """The separator that a line `sep=;` declares, as in Excel; empty if the line is another."""
    text = text.strip('"\r\n \ufeff')
    if not text.lower().startswith(_DECLARATION):
        return ""
    declared = text[len(_DECLARATION) :].replace('"', "")
    # Excel appends separators when it saves the line.
    separator = declared[:1]
    if not separator or declared.strip(separator) or separator.isalnum() or separator > "~":
        raise NoSeparator
    return separator


def _most_names(text: str, declared: str) -> tuple[int, str]:
    """The number of columns a line names, and the best separator: `declared`, if there is one."""
    found = ((_count(text, separator), separator) for separator in declared or _SEPARATORS)
    return max(found, key=itemgetter(0))


def _count(text: str, separator: str) -> int:
    """The number of columns of any entity that a line names."""
    try:
        cells = next(csv.reader([text], delimiter=separator), [])
    except csv.Error:
        return 0
    return len(COLUMNS.intersection(header_names(cells)))
