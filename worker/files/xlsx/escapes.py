"""Decodes Excel's escapes in the text of cells. `worker.exports.formats.xlsx_text` writes them."""

from __future__ import annotations

import re
from typing import Final

_ESCAPE: Final = re.compile("_x([0-9A-Fa-f]{4})_")
_SURROGATES: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def from_excel(text: str) -> str:
    """The text of a cell, with each `_xHHHH_` replaced by the character that it stands for.

    A lone surrogate, which only foreign programs write, is left alone.
    """
    if "_x" not in text:
        return text
    text = _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text)
    return _SURROGATES.sub(_join_surrogates, text)


def _join_surrogates(pair: re.Match[str]) -> str:
    return pair[0].encode("utf-16-le", "surrogatepass").decode("utf-16-le")
