"""Many ids, given in any order, taken in ascending order, in little memory.

What an export refers to can be as many ids as there are users. They are sorted in runs, which lie
in files; taking them merges the runs. UUIDs in canonical form sort as text like the rows do.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.errors import StateError
from worker.sink.store import rocks

_LENGTH: Final = 36
_RUN: Final = 100_000
"""Ids in memory at once: 15 MB."""
_READ: Final = 1_000 * _LENGTH


class Ids:
    """A set of UUIDs in canonical form. Blocking; its files lie in a directory of the caller's."""

    def __init__(self, directory: Path, name: str, run: int = _RUN) -> None:
        self._directory = directory
        self._name = name
        self._most = run
        self._held: set[str] = set()
        self._runs: list[Path] = []

    def add(self, id_: str) -> None:
        """One more, or one that is there already. Raises `StateError`."""
        self._held.add(id_)
        if len(self._held) >= self._most:
            self._spill()

    def ascending(self) -> Iterator[str]:
        """All ids; one may come more than once. Add none meanwhile. Raises `StateError`."""
        yield from heapq.merge(*map(self._read, self._runs), sorted(self._held))

    def _spill(self) -> None:
        path = self._directory / f"{self._name}.{len(self._runs)}.ids"
        try:
            path.touch(mode=0o600, exist_ok=False)
            path.write_bytes("".join(sorted(self._held)).encode())
        except OSError as error:
            raise StateError(rocks.in_one_line(self._directory, error)) from None
        self._runs.append(path)
        self._held.clear()

    def _read(self, path: Path) -> Iterator[str]:
        try:
            with path.open("rb") as file:
                while data := file.read(_READ):
                    text = data.decode()
                    for start in range(0, len(text), _LENGTH):
                        yield text[start : start + _LENGTH]
        except OSError as error:
            raise StateError(rocks.in_one_line(self._directory, error)) from None
