r"""Patterns for JSON Schema: what the rules of `worker.core.rules` mean, in every dialect alike.

Validators bring their own regular expressions: ECMA-262, Python, Java, RE2 (Go), Rust. So there
is no look-around, no back-reference and no class such as `\s` or `\d`, whose characters differ;
characters beyond Latin-1 stand for themselves, since the dialects escape them differently.
`$` also matches before a line break at the end of the text in Python and Java: schemas with an
anchored pattern of open length exclude `LINE_BREAK` besides.
"""

from __future__ import annotations

from typing import Final

_WIDE_SPACES: Final = (
    r"\x85\xa0" + "\N{OGHAM SPACE MARK}\N{EN QUAD}-\N{HAIR SPACE}\N{LINE SEPARATOR}"
    "\N{PARAGRAPH SEPARATOR}\N{NARROW NO-BREAK SPACE}\N{MEDIUM MATHEMATICAL SPACE}"
    "\N{IDEOGRAPHIC SPACE}"
)
_SPACES: Final = r"\x09-\x0d\x1c-\x20" + _WIDE_SPACES
"""What `str.isspace` calls white space."""

NOT_BLANK: Final = f"[^{_SPACES}]"
LINE_BREAK: Final = r"[\n\r\x85" + "\N{LINE SEPARATOR}\N{PARAGRAPH SEPARATOR}]"


def _uuid(digit: str, variant: str) -> str:
    return f"{digit}{{8}}-{digit}{{4}}-4{digit}{{3}}-{variant}{digit}{{3}}-{digit}{{12}}"


UUID: Final = _uuid("[0-9a-fA-F]", "[89abAB]")
"""A UUID of version 4, in any case; not anchored, since keys consist of several."""
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
"""The canonical form."""
DAY: Final = f"^{_DATE}$"


def _email(upper: str, inner: str) -> str:
    # Of a label: all but ASCII that is no letter or digit, and white space beyond ASCII.
    one = rf"[^\x00-/:-{inner}\x7b-\x7f{_WIDE_SPACES}]"
    label = f"{one}+(?:-+{one}+)*"
    return rf"^[^@{upper}{_SPACES}]{{1,64}}@{label}(?:\.{label})*$"


EMAIL: Final = _email("", r"@\[-`")
LOWER_EMAIL: Final = _email("A-Z", "`")
"""Without upper-case letters, as far as ASCII goes."""


def anchored(pattern: str) -> str:
    """The pattern for the whole of a text."""
    return f"^{pattern}$"
