"""Text in XLSX cells: Excel's escapes and Excel's length limit.

XML cannot hold most control characters, nor U+FFFE and U+FFFF, and it turns CR into LF. Excel
writes such a character as `_xHHHH_`. If a text contains that form literally, Excel writes its first
`_` as `_x005F_`.
"""

from __future__ import annotations

import re
from typing import Final

LONGEST_CELL: Final = 32_767
"""In UTF-16 code units, as Excel counts."""

_UNHOLDABLE: Final = "[\x00-\x08\x0b-\x1f\ufffe\uffff]"
# A `_` also opens a false escape if escaping the next character supplies the closing `_`.
_TO_ESCAPE: Final = re.compile(f"{_UNHOLDABLE}|_(?=x[0-9A-Fa-f]{{4}}(?:_|{_UNHOLDABLE}))")


def is_plain(text: str) -> bool:
    """Whether a non-empty text needs no escaping in XML and certainly is not too long."""
    return (
        text.isprintable()
        and "&" not in text
        and "<" not in text
        and ">" not in text
        and "_x" not in text
        and text[0] != " "
        and text[-1] != " "
        and len(text) <= LONGEST_CELL // 2
    )


def to_xml(text: str) -> str:
    """The text escaped twice: for Excel, then for XML element content."""
    text = _TO_ESCAPE.sub(lambda match: f"_x{ord(match[0]):04X}_", text)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def units(text: str) -> int:
    """The length as Excel counts it."""
    return len(text.encode("utf-16-le")) // 2


def shorten(text: str, longest: int = LONGEST_CELL) -> str:
    """The text truncated to `longest` units, never inside a surrogate pair."""
    return text.encode("utf-16-le")[: 2 * longest].decode("utf-16-le", "ignore")
