"""The header of a CSV file: which line it is, and what separates its cells.

Comments, a line `sep=;` and a title may stand above it. The header is the first line that names a
column of any entity; the separator is what makes most column names of it. What rows hold is never
looked at.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import Final

import msgspec

from worker.files.cells import Cell
from worker.files.table import COLUMNS, column_names

_SEPARATORS: Final = ",;\t|"
_BLANK: Final = f"{_SEPARATORS} \r\n\ufeff"
_COMMENT: Final = ("#", '"#')
"""A spreadsheet quotes a comment line that holds a separator."""
_DECLARATION: Final = "sep="
_MOST_ABOVE: Final = 20
"""Lines that may stand above a header, comments and blank lines apart."""

NumberedText = tuple[int, str]


class NoSeparator(Exception):
    """A line `sep=…` declares what cannot separate cells."""


class Header(msgspec.Struct, frozen=True):
    """The header of a file. `lines` are its lines from the header on."""

    number: int
    separator: str
    lines: Iterator[NumberedText]
    above: tuple[int, ...] = ()
    """The numbers of the lines above it that are neither blank nor comments."""


def find_header(lines: Iterator[NumberedText]) -> Header | None:
    """The header of a file; None where none of the first lines names a column.

    A line that starts with `#` may be the header as well (`#,id,email` or `#id,email`), if it
    names more columns than the line that follows the comments. Raises NoSeparator.
    """
    declared = ""
    marked: tuple[int, NumberedText, str] | None = None
    above: list[int] = []
    for line in lines:
        number, text = line
        if not text.strip(_BLANK):
            continue
        if not declared and (declared := _declared(text)):
            continue
        count, separator = max(
            ((_count(text, one), one) for one in declared or _SEPARATORS), key=lambda most: most[0]
        )
        if text.startswith(_COMMENT):
            if count > (marked[0] if marked else 1):
                marked = (count, line, separator)
        elif count >= (marked[0] if marked else 1):
            return Header(number, separator, chain([line], lines), tuple(above))
        elif marked:
            return Header(marked[1][0], marked[2], chain([marked[1], line], lines), tuple(above))
        elif len(above) == _MOST_ABOVE:
            return None
        else:
            above.append(number)
    return None if marked is None else Header(marked[1][0], marked[2], iter([marked[1]]))


def header_names(cells: Sequence[Cell]) -> list[str]:
    """The names in the cells of a header; a `#` before the first one is no part of it."""
    names = column_names(cells)
    if names and names[0].startswith("#"):
        first, *_ = column_names([names[0].lstrip("#")]) or [""]
        if first in COLUMNS and first not in names:
            names[0] = first
    return names


def _declared(text: str) -> str:
    """The separator that a line `sep=;` declares, which Excel heeds; else none."""
    text = text.strip('"\r\n \ufeff')
    if not text.lower().startswith(_DECLARATION):
        return ""
    declared = text[len(_DECLARATION) :].replace('"', "")
    # Excel saves the line with separators at its end.
    separator = declared[:1]
    if not separator or declared.strip(separator) or separator.isalnum() or separator > "~":
        raise NoSeparator
    return separator


def _count(text: str, separator: str) -> int:
    """How many columns of any entity a line names."""
    try:
        cells = next(csv.reader([text], delimiter=separator), [])
    except csv.Error:
        return 0
    return len(COLUMNS.intersection(header_names(cells)))
