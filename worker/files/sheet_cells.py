"""What the cells of a sheet mean: numbers, dates, booleans, errors, formulas, text.

A cell is what it holds, not how it is shown: a percentage is its fraction. Decisions:
docs/decisions.md, "Files".
"""

from __future__ import annotations

import re
from collections.abc import Container
from datetime import datetime, time
from typing import Final

import msgspec
from openpyxl.utils.datetime import CALENDAR_WINDOWS_1900
from openpyxl.utils.datetime import from_excel as from_serial

from worker.exports.xlsx_text import from_excel
from worker.files.cells import Cell
from worker.files.sheet_xml import BrokenSheet, RawCell, SharedStrings

_INTEGER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)\Z", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z", re.ASCII)
_DAY: Final = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}\Z", re.ASCII)
_MIDNIGHT: Final = "T00:00:00"
_WRITTEN_OUT: Final = 1e21
"""Whole numbers below this are written without an exponent."""


class CellReader(msgspec.Struct, frozen=True):
    """Reads the cells of one workbook: by its shared strings, styles that show dates, and epoch."""

    shared: SharedStrings
    dates: Container[int]
    durations: Container[int]
    epoch: datetime

    def read(self, cell: RawCell) -> Cell:
        """What a cell holds. Raises BrokenSheet where it refers to a shared string that is none."""
        value = cell.value
        if cell.kind == "inlineStr":
            return from_excel(cell.inline or "")
        if cell.formula is not None and not value and not (cell.kind == "str" and value == ""):
            return f"={cell.formula}"  # its result was never saved
        if value is None or value == "":
            return None
        match cell.kind:
            case "s":
                if _INTEGER.match(value) is None or len(value) > 9:
                    raise BrokenSheet("a cell refers to a shared string that is not there")
                return self.shared[int(value)]
            case "b":
                return {"0": False, "1": True, "false": False, "true": True}.get(value, value)
            case "d":
                return value + _MIDNIGHT if _DAY.match(value) else value
            case "n":
                return self._number(value, cell.style)
            case _:  # the text of a formula or an error
                return from_excel(value)

    def _number(self, text: str, style: int) -> str:
        text = text.strip()
        if style in self.dates and _NUMBER.match(text):
            return self._moment(float(text), style) or number_text(text)
        return number_text(text)

    def _moment(self, serial: float, style: int) -> str | None:
        """A timestamp without an offset; None if the number is no date at all."""
        windows = self.epoch == CALENDAR_WINDOWS_1900
        if windows and 60 <= serial < 61:
            return f"1900-02-29{_MIDNIGHT}"  # a day that only Excel knows
        try:
            moment = from_serial(serial, self.epoch, timedelta=style in self.durations)
        except (OverflowError, ValueError):
            return None
        if isinstance(moment, datetime | time):
            text = moment.isoformat()
            return text.rstrip("0") if "." in text else text
        return None if moment is None else str(moment)


def number_text(text: str) -> str:
    """A number as Excel shows it with all its digits: `120.0` is 120, `0.28999999999999998` 0.29.

    What is no number stays as it is.
    """
    if _INTEGER.match(text) or not _NUMBER.match(text):
        return text
    number = float(text)
    if abs(number) < _WRITTEN_OUT and number.is_integer():
        return f"{int(number)}"
    return repr(number) if abs(number) != float("inf") else text
