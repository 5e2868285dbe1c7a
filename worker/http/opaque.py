"""Cursors as opaque text that needs no quoting in a URL. Pure."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from typing import TypeVar

import msgspec

T = TypeVar("T")


def encode(cursor: msgspec.Struct) -> str:
    """The cursor as text."""
    return urlsafe_b64encode(msgspec.json.encode(cursor)).rstrip(b"=").decode()


def decode(text: str, kind: type[T]) -> T | None:
    """The cursor in a text; None if there is none of this kind. Clients may send any text."""
    try:
        padded = text.encode("ascii") + b"=" * (-len(text) % 4)
        return msgspec.json.decode(urlsafe_b64decode(padded), type=kind)
    except (ValueError, msgspec.MsgspecError, RecursionError):
        return None
