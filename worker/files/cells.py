"""From cells to JSON: what a CSV or XLSX cell means is settled by its column's kind.

Nothing is guessed. A cell that is no number, array or object where its column wants one becomes
a JSON string, so that validation says what is wrong with it.
"""

from __future__ import annotations

import json
import re
from typing import Final

import msgspec

from schemas import Kind

Filled = str | bool
Cell = Filled | None
"""What a cell holds; None or the empty text is an empty cell."""

_NUMBER: Final = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?\Z")
_NUMBERS: Final = frozenset({Kind.INTEGER, Kind.RATING})
_NESTED: Final = frozenset({Kind.TEXTS, Kind.INTEGERS, Kind.OBJECT})
_RAW: Final = msgspec.json.Decoder(msgspec.Raw)


def json_value(kind: Kind, cell: Filled) -> bytes:
    """A cell that is not empty, as the JSON that its column's kind asks for, or else a string."""
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
