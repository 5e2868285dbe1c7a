r"""Patterns for JSON Schema with the meaning of `worker.core.rules` in every regex dialect.

Validators use their own regex engines: ECMA-262, Python, Java, RE2 (Go), Rust. The patterns
therefore avoid look-around, back-references and classes such as `\s` or `\d`, whose characters
differ. Characters beyond Latin-1 appear literally, since the dialects escape them differently. In
Python and Java, `$` also matches before a line break at the end of the text. Schemas with an
anchored pattern of open length therefore also exclude `LINE_BREAK`.
"""

from __future__ import annotations

from typing import Final

_WIDE_SPACES: Final = (
    r"\x85\xa0" + "\N{OGHAM SPACE MARK}\N{EN QUAD}-\N{HAIR SPACE}\N{LINE SEPARATOR}"
    "\N{PARAGRAPH SEPARATOR}\N{NARROW NO-BREAK SPACE}\N{MEDIUM MATHEMATICAL SPACE}"
    "\N{IDEOGRAPHIC SPACE}"
)
_SPACES: Final = r"\x09-\x0d\x1c-\x20" + _WIDE_SPACES
"""The white space of `str.isspace`."""

NOT_BLANK: Final = f"[^{_SPACES}]"
LINE_BREAK: Final = r"[\n\r\x85" + "\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}]"


def _uuid(digit: str, variant: str) -> str:
    return f"{digit}{{8}}-{digit}{{4}}-4{digit}{{3}}-{variant}{digit}{{3}}-{digit}{{12}}"


UUID: Final = _uuid("[0-9a-fA-F]", "[89abAB]")
"""A UUID of version 4, in any case. Not anchored: composite keys join several patterns."""
LOWER_UUID: Final = _uuid("[0-9a-f]", "[89ab]")

_YEAR: Final = "(?:[0-9]{3}[1-9]|[0-9]{2}[1-9][0-9]|[0-9][1-9][0-9]{2}|[1-9][0-9]{3})"
"""0001 to 9999."""
_LEAP_YEAR: Final = (
    "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
)
_DATE: Final = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])"
    "|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME: Final = "(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
TIMESTAMP: Final = (
    rf"^{_DATE}[Tt ]{_TIME}(?:\.[0-9]+)?(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9])?$"
)
UTC_TIMESTAMP: Final = rf"^{_DATE}T{_TIME}(?:\.[0-9]{{6}})?Z$"
"""The canonical form of a timestamp."""
DAY: Final = f"^{_DATE}$"


def _email(upper: str, inner: str) -> str:
    # A character of a host label: ASCII letter, ASCII digit, or non-ASCII except white space.
    one = rf"[^\x00-/:-{inner}\x7b-\x7f{_WIDE_SPACES}]"
    label = f"{one}+(?:-+{one}+)*"
    return rf"^[^@{upper}{_SPACES}]{{1,64}}@{label}(?:\.{label})*$"


EMAIL: Final = _email("", r"@\[-`")
LOWER_EMAIL: Final = _email("A-Z", "`")
"""As `EMAIL`, without ASCII upper-case letters."""


def anchored(pattern: str) -> str:
    """The pattern, anchored at both ends of the text."""
    return f"^{pattern}$"
