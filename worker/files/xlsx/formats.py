"""Number formats that show a number as a date or a duration (ECMA-376, 18.8.30)."""

from __future__ import annotations

import re
from enum import Enum
from typing import Final


class Shown(Enum):
    """How a format shows a number, if not as a number."""

    DATE = "date"
    DURATION = "duration"


_DATES: Final = (*range(14, 23), *range(27, 37), 45, 47, *range(50, 59), *range(71, 82))
"""Built-in date formats; from 27 those of East Asia, from 71 those of Thailand."""
_DURATIONS: Final = (46, 79)
BUILT_IN: Final = dict.fromkeys(_DATES, Shown.DATE) | dict.fromkeys(_DURATIONS, Shown.DURATION)

_LITERAL: Final = re.compile(
    r'"[^"]*"?|\\.|_.|\*.'  # quoted, escaped, as wide as a character, filled with it
    r"|\[(?!(?:h+|m+|s+)\])[^\]]*\]"  # colours, conditions, locales, currencies
    r"|general|standard|e[+-]",
    re.IGNORECASE | re.DOTALL,
)
_DURATION: Final = re.compile(r"\[(?:h+|m+|s+)\]", re.IGNORECASE)
_DATE: Final = re.compile(r"[dmyhsgeb]", re.IGNORECASE)
"""Days, months, years, hours, seconds; Japanese and Taiwanese eras and years; Thai years."""


def shown_as(code: str) -> Shown | None:
    """How a format code shows a positive number; None if as a number."""
    first = _LITERAL.sub("", code).split(";", 1)[0]
    if _DURATION.search(first):
        return Shown.DURATION
    return Shown.DATE if _DATE.search(first) else None
