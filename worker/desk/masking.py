"""What may be seen of a record whose values are hidden: the shape of each value. Pure."""

from __future__ import annotations

from typing import Any

import msgspec


class Masked(msgspec.Struct, frozen=True):
    """What may be seen of a value: its shape."""

    text: str


def masked(value: Any) -> Any:
    """The shape of a JSON value: of a text its first letter and its length, of a list its length.

    The names of a record's own fields stay, and so do null, true and false.
    """
    match value:
        case None | bool():
            return value
        case dict():
            return {name: _shape(inner) for name, inner in value.items()}
    return _shape(value)


def _shape(value: Any) -> Any:
    match value:
        case None | bool():
            return value
        case str():
            length = "1 character" if len(value) == 1 else f"{len(value)} characters"
            first = value[:1] if value[:1].isalpha() else ""
            return Masked(f'"{first}{"•" * min(5, len(value) - len(first))}" {length}')
        case int() | float():
            return Masked("a number")
        case list():
            return Masked("a list of " + ("1 value" if len(value) == 1 else f"{len(value)} values"))
    return Masked("an object")
