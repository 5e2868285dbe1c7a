"""From cells to JSON: what a CSV or XLSX cell means is settled by its column's kind.

Nothing is guessed. A cell that is no number, array or object where its column wants one becomes
a JSON string, so that validation says what is wrong with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Final

import msgspec

from schemas import ENTITIES, Entity, Kind

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\Z")
_NUMBERS: Final = frozenset({Kind.INTEGER, Kind.RATING})
_NESTED: Final = frozenset({Kind.TEXTS, Kind.INTEGERS, Kind.OBJECT})
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)


class RowEncoder:
    """Turns rows of cells, in the order of a header, into JSON objects in the entity's order."""

    def __init__(self, entity: Entity, header: Sequence[str]) -> None:
        kinds = {column.name: column.kind for column in entity.columns}
        order = {name: n for n, name in enumerate(kinds)}
        columns = [
            (order.get(name, len(order)), n, json_string(name) + b":", kinds.get(name, Kind.TEXT))
            for n, name in enumerate(header)
            if name
        ]
        self._columns = [column[1:] for column in sorted(columns)]

    def encode(self, cells: Sequence[str | None]) -> bytes:
        """One JSON object; empty cells are left out."""
        return (
            b"{"
            + b",".join(
                [
                    name + json_value(kind, cell)
                    for n, name, kind in self._columns
                    if (cell := cells[n])
                ]
            )
            + b"}"
        )


def json_value(kind: Kind, cell: str) -> bytes:
    """A cell that is not empty, as the JSON that its column's kind asks for, or else a string."""
    if kind in _NUMBERS and _NUMBER.match(cell):
        return cell.encode()
    if kind in _NESTED and cell[0] in "[{ \t\r\n":
        try:
            return bytes(_RAW.decode(cell))
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            pass
    return json_string(cell)


def json_string(text: str) -> bytes:
    """A JSON string.

    Bytes that were no UTF-8 (decoded with surrogateescape) come out as they were, and other half
    surrogate pairs as escapes: validation then finds the record malformed.
    """
    try:
        return msgspec.json.encode(text)
    except UnicodeEncodeError:
        try:
            return json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return json.dumps(text).encode()


def recognise(header: Sequence[str]) -> Entity | None:
    """The one entity that a header can belong to: all required columns, and most others too."""
    names = {name for name in header if name}
    fitting = [
        (sum(column.name in names for column in entity.columns), entity.name)
        for entity in ENTITIES.values()
        if all(column.name in names for column in entity.columns if column.required)
    ]
    fitting.sort(reverse=True)
    if not fitting or (len(fitting) > 1 and fitting[0][0] == fitting[1][0]):
        return None
    return ENTITIES[fitting[0][1]]
