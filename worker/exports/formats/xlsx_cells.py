"""Cells of a workbook as XML, a column at a time: numbers as numbers, all else inline strings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from schemas import Kind
from worker.exports.formats.table import FREE_TEXT, NESTED
from worker.exports.formats.xlsx_parts import RATING
from worker.exports.formats.xlsx_text import LONGEST_CELL, is_plain, shorten, to_xml, units

TooLong = list[tuple[int, int]]
"""The index in the column, and the full length, of each truncated cell."""


def column_xml(
    kind: Kind, letters: str, numbers: Sequence[str], cells: Sequence[Any], too_long: TooLong
) -> list[str]:
    """The XML of a column's cells in the rows with these numbers; absent cells are empty.

    A cell longer than Excel allows is truncated and added to `too_long`.
    """
    if kind is Kind.INTEGER:
        return [
            "" if cell is None else f'<c r="{letters}{n}"><v>{cell}</v></c>'
            for n, cell in zip(numbers, cells, strict=True)
        ]
    if kind is Kind.RATING:
        return [  # adding 0.0 turns -0.0 into 0.0
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
    """One cell with any text that Excel's limit allows."""
    return (
        f'<c r="{reference}" t="inlineStr"><is><t xml:space="preserve">{to_xml(text)}</t></is></c>'
    )


def number_cell(reference: str, number: int) -> str:
    """One cell that holds a number."""
    return f'<c r="{reference}"><v>{number}</v></c>'


def _all_plain(cells: Sequence[str | None]) -> bool:
    """Check a whole column at once: ids, timestamps and enums hold nothing to escape.

    Spaces and length are not checked: only in a row that breaks its schema could they matter.
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
