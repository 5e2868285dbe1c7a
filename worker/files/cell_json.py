"""From cells to JSON: the kind of its column decides what a CSV or XLSX cell means.

Nothing is guessed. If a column requires a number, array or object and the cell holds none, the
cell becomes a JSON string, and validation reports it.
"""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

from schemas import Kind

Filled = str | bool
Cell = Filled | None
"""The content of a cell. None or an empty text is an empty cell."""

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\Z")
_NUMBERS: Final = frozenset({Kind.INTEGER, Kind.RATING})
_NESTED: Final = frozenset({Kind.TEXTS, Kind.INTEGERS, Kind.OBJECT})
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)


def json_value(kind: Kind, cell: Filled) -> bytes:
    """A non-empty cell as the JSON that its column's kind requires, else as a string."""
    if isinstance(cell, bool):
        return b"true" if cell else b"false"
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

    Bytes that were not UTF-8 (decoded with surrogateescape) are restored. Other lone surrogates
    become escapes. Validation then finds the record malformed.
    """
    try:
        return msgspec.json.encode(text)
    except UnicodeEncodeError:
        try:
            return json.dumps(text, ensure_ascii=False).encode("utf-8", "surrogateescape")
        except UnicodeEncodeError:
            return json.dumps(text).encode()
