"""Foreign text as it can be shown: on a terminal, in a log line, in a message."""

from __future__ import annotations


def shown(text: str, longest: int | None = None) -> str:
    r"""The text with everything that does not print escaped: `\x1b`, `\n`, `\u202e`, `\udc80`.

    So a name can neither move a cursor nor pretend to be another line. Of a text over `longest`
    characters the start, ending in "…".
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
