"""Canonical rows as columns of cells, for the CSV and the XLSX writer.

A block of rows is decoded at once into a Struct derived from the entity's columns, then
transposed. Both writers work a column at a time, which makes them fast.
"""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache
from operator import attrgetter
from typing import Any, Final

import msgspec

from schemas import Entity, Kind

_TYPES: Final[dict[Kind, Any]] = {
    Kind.INTEGER: int | None,
    Kind.RATING: float | None,
    Kind.TEXTS: msgspec.Raw,
    Kind.INTEGERS: msgspec.Raw,
    Kind.OBJECT: msgspec.Raw,
}
NESTED: Final = frozenset({Kind.TEXTS, Kind.INTEGERS, Kind.OBJECT})
FREE_TEXT: Final = frozenset({Kind.TEXT, Kind.EMAIL})
"""Kinds of columns that hold any text the sender wrote."""

_FORMULA_STARTS: Final = "=+-@\t\r"


class TableReader:
    """Turns blocks of canonical rows of one entity into columns."""

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self._nested = [n for n, c in enumerate(entity.columns) if c.kind in NESTED]
        self._get = attrgetter(*(column.name for column in entity.columns))
        cells = msgspec.defstruct(
            f"{entity.name}_cells",
            [(column.name, _TYPES.get(column.kind, str | None), None) for column in entity.columns],
            gc=False,
        )
        self._decoder = msgspec.json.Decoder(cells)

    def columns(self, block: list[bytes]) -> list[Sequence[Any]]:
        """The cells of a block: one sequence a column, in column order.

        A cell is None (absent), an int, a float (ratings) or a str. Arrays and objects are their
        JSON text, unchanged. Raises msgspec.MsgspecError if a line is not a canonical row.
        """
        if not block:
            return [()] * len(self.entity.columns)
        rows = self._decoder.decode_lines(b"\n".join(block))
        columns: list[Sequence[Any]] = list(zip(*map(self._get, rows), strict=True))
        for n in self._nested:
            columns[n] = [None if cell is None else str(cell, "utf-8") for cell in columns[n]]
        return columns

    def key(self, columns: Sequence[Sequence[Any]], row: int) -> str:
        """The key of one row of a block, as the contract writes it (`a:b` where composite)."""
        names = [column.name for column in self.entity.columns]
        return ":".join(str(columns[names.index(part)][row]) for part in self.entity.key)


def formula_cells(cells: Sequence[str]) -> list[int]:
    """The indexes of the cells that a spreadsheet would run as a formula."""
    return [n for n, cell in enumerate(cells) if cell and cell[0] in _FORMULA_STARTS]


@lru_cache(maxsize=4096)
def rating_text(rating: float) -> str:
    """A rating in decimal notation: at least two decimals, no exponent, nothing rounded."""
    if rating == 0:
        return "0.00"
    text = format(Decimal(repr(rating)), "f")
    whole, _, decimals = text.partition(".")
    return f"{whole}.{decimals.ljust(2, '0')}"
