"""Makes foreign text safe for a terminal, a log line or a message."""

from __future__ import annotations


def shown(text: str, longest: int | None = None) -> str:
    r"""The text with every non-printable character escaped: `\x1b`, `\n`, `\u202e`, `\udc80`.

    A name can then neither move the cursor nor imitate another line. The result has at most
    `longest` characters; truncated text ends in "…".
    """
    if longest is not None:
        text = text[: longest + 1]
    if not text.isprintable():
        text = "".join(map(_escaped, text))
    if longest is not None and len(text) > longest:
        text = text[: longest - 1] + "…"
    return text


def _escaped(character: str) -> str:
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode()
