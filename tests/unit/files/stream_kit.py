"""Bytes that arrive a few at a time."""

from __future__ import annotations

import io

BOM = b"\xef\xbb\xbf"


class Trickle(io.BytesIO):
    """A stream that gives a few bytes at a time."""

    def __init__(self, data: bytes, size: int) -> None:
        super().__init__(data)
        self._size = size

    def read1(self, size: int | None = -1, /) -> bytes:
        return super().read(self._size)
