"""A set of many ids: added in any order, read in ascending order, in little memory.

An export can refer to as many ids as there are users. The ids are sorted in runs, one file each,
and reading merges the runs. As text, canonical UUIDs sort in the same order as the rows.
"""

from __future__ import annotations

import heapq
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.errors import StateError
from worker.exports.spool import SpoolFile
from worker.sink.store import rocks

_LENGTH: Final = 36
_RUN: Final = 100_000
"""Ids in memory at once: 15 MB."""
_READ: Final = 1_000 * _LENGTH


class Ids:
    """A set of UUIDs in canonical form. Blocking; its files lie in the caller's directory."""

    def __init__(self, directory: Path, name: str, run: int = _RUN) -> None:
        self._directory = directory
        self._name = name
        self._most = run
        self._held: set[str] = set()
        self._runs: list[SpoolFile] = []

    def add(self, id_: str) -> None:
        """Add an id; adding it again is harmless. Raises `StateError`."""
        self._held.add(id_)
        if len(self._held) >= self._most:
            self._spill()

    def ascending(self) -> Iterator[str]:
        """All ids in order; an id may repeat. Add none meanwhile. Raises `StateError`."""
        yield from heapq.merge(*map(self._read, self._runs), sorted(self._held))

    def _spill(self) -> None:
        path = self._directory / f"{self._name}.{len(self._runs)}.ids"
        try:
            path.touch(mode=0o600, exist_ok=False)
            path.write_bytes(data := "".join(sorted(self._held)).encode())
        except OSError as error:
            raise StateError(rocks.in_one_line(self._directory, error)) from None
        self._runs.append(SpoolFile(path, zlib.crc32(data)))
        self._held.clear()

    def _read(self, run: SpoolFile) -> Iterator[str]:
        crc32 = 0
        try:
            with run.path.open("rb") as file:
                while data := file.read(_READ):
                    crc32 = zlib.crc32(data, crc32)
                    text = data.decode("ascii", "replace")
                    for start in range(0, len(text), _LENGTH):
                        yield text[start : start + _LENGTH]
        except OSError as error:
            raise StateError(rocks.in_one_line(self._directory, error)) from None
        if crc32 != run.crc32:
            raise run.changed()
