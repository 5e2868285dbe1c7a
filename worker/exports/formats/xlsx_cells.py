"""Cells of a workbook as XML, a column at a time: numbers as numbers, all else inline strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas import Kind
from worker.exports.formats.table import FREE_TEXT, NESTED
from worker.exports.formats.xlsx_parts import RATING
from worker.exports.formats.xlsx_text import LONGEST_CELL, is_plain, shorten, to_xml, units

TooLong = list[tuple[int, int]]
"""Places in the column, and full lengths, of the cells that had to be cut."""


def column_xml(
    kind: Kind, letters: str, numbers: Sequence[str], cells: Sequence[Any], too_long: TooLong
) -> list[str]:
    """The XML of a column's cells in the rows of these numbers; absent cells are empty.

    What is longer than Excel allows is cut and added to `too_long`.
    """
    if kind is Kind.INTEGER:
        return [
            "" if cell is None else f'<c r="{letters}{n}"><v>{cell}</v></c>'
            for n, cell in zip(numbers, cells, strict=True)
        ]
    if kind is Kind.RATING:
        return [  # + 0.0 makes 0.0 of -0.0
            "" if cell is None else f'<c r="{letters}{n}" s="{RATING}"><v>{cell + 0.0!r}</v></c>'
            for n, cell in zip(numbers, cells, strict=True)
        ]
    if kind in FREE_TEXT or kind in NESTED or not _all_plain(cells):
        return [
            ""
            if not cell
            else f'<c r="{letters}{n}" t="inlineStr"><is><t>{cell}</t></is></c>'
            if is_plain(cell)
            else text_cell(f"{letters}{n}", _fitting(row, cell, too_long))
            for row, (n, cell) in enumerate(zip(numbers, cells, strict=True))
        ]
    return [
        f'<c r="{letters}{n}" t="inlineStr"><is><t>{cell}</t></is></c>' if cell else ""
        for n, cell in zip(numbers, cells, strict=True)
    ]


def text_cell(reference: str, text: str) -> str:
    """One cell of any text that is not too long."""
    return (
        f'<c r="{reference}" t="inlineStr"><is><t xml:space="preserve">{to_xml(text)}</t></is></c>'
    )


def number_cell(reference: str, number: int) -> str:
    """One cell that holds a number."""
    return f'<c r="{reference}"><v>{number}</v></c>'


def _all_plain(cells: Sequence[str | None]) -> bool:
    """One look at a whole column: ids, timestamps and enums hold nothing to escape.

    Spaces and length need no look there; a stray row that breaks its schema only costs them.
    """
    text = "-".join(filter(None, cells))
    return (
        text.isprintable()
        and "&" not in text
        and "<" not in text
        and ">" not in text
        and "_x" not in text
    )


def _fitting(row: int, text: str, too_long: TooLong) -> str:
    length = units(text)
    if length <= LONGEST_CELL:
        return text
    too_long.append((row, length))
    return shorten(text)
