"""What the cells of a sheet mean: numbers, dates, booleans, errors, formulas, text.

The value of a cell counts, not its display: a percentage is its fraction. Decisions:
docs/decisions.md, "Files".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Final

import msgspec

from worker.files.cell_json import Cell
from worker.files.xlsx.escapes import from_excel
from worker.files.xlsx.formats import Shown
from worker.files.xlsx.strings import SharedStrings

EPOCH_1900: Final = datetime(1899, 12, 30)  # noqa: DTZ001, a sheet knows no time zones
EPOCH_1904: Final = datetime(1904, 1, 1)  # noqa: DTZ001
_WHOLE: Final = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0*)?\Z", re.ASCII)
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?\Z", re.ASCII)
_BOOLEANS: Final = {"0": False, "1": True, "false": False, "true": True}
_SHORT_DATE: Final = re.compile(
    r"([0-9]{4}-[0-9]{2}-[0-9]{2})(?:T([0-9]{2}:[0-9]{2})(Z|[+-][0-9]{2}:?[0-9]{2})?)?\Z"
)
"""A day, or a time without seconds: a date cell may omit what is zero."""
_MIDNIGHT: Final = "T00:00:00"
_WRITTEN_OUT: Final = 1e21
"""Whole numbers below this are written without an exponent."""
_MILLISECONDS_A_DAY: Final = 86_400_000


class CellReader(msgspec.Struct, frozen=True):
    """Reads the cells of one workbook, by its shared strings, date styles and epoch."""

    shared: SharedStrings
    styles: Mapping[str, Shown]
    """By the number of the style, as a cell spells it."""
    epoch: datetime

    def read(
        self,
        kind: str,
        style: str,
        value: str | None,
        formula: str | None = None,
        inline: str | None = None,
    ) -> Cell:
        """The content of a cell of type `kind`, given the texts of its elements.

        Raises BrokenPart if it refers to a shared string that does not exist.
        """
        if not value or (kind == "inlineStr" and inline is not None):
            if inline is not None:
                return from_excel(inline) or None
            if formula is not None and not (kind == "str" and value == ""):
                return f"={formula}"  # the result was never saved
            return None
        match kind:
            case "s":
                return self.shared[value]
            case "" | "n":
                return self._number(value, style)
            case "b":
                return _BOOLEANS.get(value.lower(), value)
            case "d":
                return _in_full(value.strip())
            case _:  # text of a formula, an error, inline text
                return from_excel(value)

    def _number(self, text: str, style: str) -> str:
        text = text.strip()
        if style in self.styles and _NUMBER.match(text):
            return self._moment(float(text), self.styles[style]) or number_text(text)
        return number_text(text)

    def _moment(self, serial: float, shown: Shown) -> str | None:
        """A timestamp without an offset, a time or a duration; None if the number is no date."""
        first_days = self.epoch == EPOCH_1900 and 0 <= serial < 61
        if first_days and serial >= 60:
            return f"1900-02-29{_MIDNIGHT}"  # a day that exists in Excel only
        try:
            since = timedelta(milliseconds=round(serial * _MILLISECONDS_A_DAY))
            if shown is Shown.DURATION:
                return str(since)
            moment = self.epoch + since + timedelta(days=first_days)
        except (OverflowError, ValueError):
            return None
        text = moment.isoformat()
        if serial >= 0 and not since.days:
            text = text[11:]  # a time without a date
        return text.rstrip("0") if "." in text else text


def _in_full(moment: str) -> str:
    """The text of a date cell completed by time and seconds; any other text unchanged."""
    found = _SHORT_DATE.match(moment)
    if found is None:
        return moment
    day, minutes, offset = found.groups()
    return f"{day}T{minutes}:00{offset or ''}" if minutes else day + _MIDNIGHT


def number_text(text: str) -> str:
    """A number as Excel shows it with all its digits: `120.0` is 120, `0.28999999999999998` 0.29.

    Any other text stays unchanged.
    """
    whole = _WHOLE.match(text)
    if whole is not None:
        return whole[1]
    if not _NUMBER.match(text):
        return text
    number = float(text)
    if abs(number) < _WRITTEN_OUT and number.is_integer():
        return f"{int(Decimal(repr(number)))}"  # int(number) may have digits that nobody wrote
    return repr(number) if abs(number) != float("inf") else text
