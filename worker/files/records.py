"""What the readers of files yield: records, each with its place in the file."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from schemas import ENTITIES

BOM: Final = b"\xef\xbb\xbf"
READ_LIMIT: Final = 8 << 20
"""Bytes of one record that are kept in memory: far more than a broker accepts."""

ENTITY_ORDER: Final = {name: n for n, name in enumerate(ENTITIES)}
"""The position of each entity in the order of the specification."""

Notice = Callable[[str], None]
"""Called with one line about anything that is left out: a sheet, a column."""


def printable(path: Path) -> str:
    """The name of a file; bytes that are not UTF-8 show as the replacement character."""
    return os.fsencode(path).decode(errors="replace")


class Place(msgspec.Struct, frozen=True, omit_defaults=True, gc=False):
    """Where a record stands in a file."""

    path: str
    line: int
    sheet: str | None = None


class FileRecord(msgspec.Struct, frozen=True, gc=False):
    """One record of a file.

    `value` is the JSON object to validate: from an NDJSON file or a JSON document the original,
    byte for byte. `line` is the line (in NDJSON and JSON ended by LF alone) or the row (XLSX) where
    the record starts, from 1.
    """

    entity: str
    path: str
    line: int
    value: bytes
    sheet: str | None = None
    oversize: int = 0
    """The true size in bytes of a record over the reader's limit, else 0. Then `value` has only
    the start, and the record must be rejected as `malformed_record` unseen."""
    sha256: str | None = None
    """The SHA-256 of the whole record, if `oversize` is set."""
    fault: str | None = None
    """What is wrong with the row as such. Then `value` is not a record but the row's cells as a
    JSON array, and the record must be rejected as `malformed_record` with this text."""

    @property
    def place(self) -> Place:
        """The place of the record, as rejections contain it."""
        return Place(self.path, self.line, self.sheet)

    @property
    def where(self) -> str:
        """The place of the record, in words."""
        sheet = "" if self.sheet is None else f", sheet {self.sheet}"
        return f"{self.path}{sheet}, line {self.line}"


class Collector:
    """Collects the bytes of one record: in memory up to a limit, beyond it only size and hash."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._pieces: list[bytes] = []
        self._hash: Any = None
        """Of what was added so far, once that is over the limit."""
        self.size = 0

    def add(self, piece: bytes) -> None:
        """Add the next bytes of the record."""
        if self.size + len(piece) > self._limit:
            if self._hash is None:
                self._hash = hashlib.sha256(self.value)
            self._hash.update(piece)
        if (room := self._limit - self.size) > 0:
            self._pieces.append(piece[:room])
        self.size += len(piece)

    @property
    def value(self) -> bytes:
        """The record, or its start if it is over the limit."""
        return b"".join(self._pieces)

    @property
    def oversize(self) -> int:
        """The true size if it is over the limit, else 0."""
        return self.size if self.size > self._limit else 0

    @property
    def sha256(self) -> str | None:
        """The SHA-256 of the whole record if it is over the limit, else None."""
        return self._hash.hexdigest() if self.oversize else None
