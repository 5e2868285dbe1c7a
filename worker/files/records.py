"""What readers of files give: one record after the other, with the place where it stands."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

BOM: Final = b"\xef\xbb\xbf"
READ_LIMIT: Final = 8 << 20
"""Bytes of one record that are held in memory; far above what a broker takes."""

Notice = Callable[[str], None]
"""Takes one line about what is passed over: a sheet, a column."""


def printable(path: Path) -> str:
    """The name of a file; bytes of it that are no UTF-8 are shown as such."""
    return os.fsencode(path).decode(errors="replace")


class FileRecord(msgspec.Struct, frozen=True, gc=False):
    """One record of a file.

    `value` is the JSON object to be validated; of an NDJSON file or a JSON document it is the
    original, byte for byte. `line` is the line (CSV, NDJSON, JSON: ending at LF alone) or row
    (XLSX) where the record starts, from 1.
    """

    entity: str
    path: str
    line: int
    value: bytes
    sheet: str | None = None
    oversize: int = 0
    """The true size in bytes of a record over the reader's limit, of which `value` has only the
    start: to be rejected as `malformed_record` without looking at it. Else 0."""
    sha256: str | None = None
    """Of the whole record, where `oversize` is set."""
    fault: str | None = None
    """What is wrong with the row as such: `value` is then no record but the row's cells as a JSON
    array, and the record is to be rejected as `malformed_record` with these words."""

    @property
    def where(self) -> str:
        """The place in words."""
        sheet = "" if self.sheet is None else f", sheet {self.sheet}"
        return f"{self.path}{sheet}, line {self.line}"


class Collector:
    """Collects the bytes of one record: up to a limit in memory, beyond it only size and hash."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._hash = hashlib.sha256()
        self.size = 0

    def add(self, piece: bytes) -> None:
        """The next bytes of the record."""
        if self.size <= self._limit < self.size + len(piece):
            for earlier in self._pieces:
                self._hash.update(earlier)
        if self.size + len(piece) > self._limit:
            self._hash.update(piece)
        if (room := self._limit - self.size) > 0:
            self._pieces.append(piece[:room])
        self.size += len(piece)

    @property
    def value(self) -> bytes:
        """The record, or its start."""
        return b"".join(self._pieces)

    @property
    def oversize(self) -> int:
        """The true size if it is over the limit, else 0."""
        return self.size if self.size > self._limit else 0

    @property
    def sha256(self) -> str | None:
        """Of the whole record if it is over the limit."""
        return self._hash.hexdigest() if self.oversize else None
