"""The store frozen at one moment: an export reads it while consumption goes on."""

from __future__ import annotations

import shutil
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, cast

from rocksdict import Rdict

from schemas import ENTITIES
from worker.errors import StateError, StateLost
from worker.sink.store import rocks
from worker.stream import Partition

ROW: Final = b"r"
"""First byte of a row's key; the entity's number and the canonical key follow."""
ID: Final = b"i"
"""First byte of the key of a user's or match's id; the value holds the ids of users it refers to.

Users and matches stand here a second time, without their rows. Look-ups are three times as fast
as in the rows (400k against 140k a second with 1M ids), and take no memory of their own.
"""
BOOKMARK: Final = b"h"
"""First byte of the key of a bookmark's head; the bookmark's name follows."""
DELIVERED: Final = b"k"
"""First byte of the key of a delivered row; generation, entity's number and row's key follow."""
ROW_HEADER: Final = struct.Struct(">IQq")
"""The header of a stored row: the record's input partition, then offset and time (ms) of the
accepted message."""

SNAPSHOTS: Final = "snapshots"
"""The directory of open snapshots, below the store's directory."""


class Snapshot:
    """A consistent view. Any thread may use it, one at a time; close it after use.

    Its methods raise `StateError`, or `StateLost` if the store turns out to be damaged.
    """

    def __init__(
        self,
        directory: Path,
        frozen: Rdict,
        room: Path,
        positions: Mapping[Partition, int],
        counts: Mapping[str, int],
        on_damage: Callable[[str], None],
    ) -> None:
        self.positions = positions
        """The next offset of each accepted partition: the snapshot holds everything before it."""
        self.counts = counts
        """The number of rows of each entity."""
        self._directory = directory
        self._room = room
        self._on_damage = on_damage
        self._frozen: Rdict | None = frozen
        self._tags = {name: number.to_bytes() for number, name in enumerate(ENTITIES)}

    def blocks(self, entity: str, size: int = 1024 * 1024) -> Iterator[list[bytes]]:
        """All rows of an entity in byte order of their canonical keys, in blocks of `size` bytes.

        A block ends with the row that reaches `size`. Raises `StateLost` if the number of rows is
        not that in `counts`, since this means damage.
        """
        start = ROW + self._tags[entity]
        block: list[bytes] = []
        held = seen = 0
        with self._guard():
            options = rocks.until(rocks.after(start))
            for value in self._open().values(from_key=start, read_opt=options):
                row = value[ROW_HEADER.size :]
                block.append(row)
                held += len(row)
                if held >= size:
                    yield block
                    seen += len(block)
                    block, held = [], 0
        self._check(entity, seen + len(block))
        if block:
            yield block

    def keyed_blocks(
        self, entity: str, size: int = 1024 * 1024
    ) -> Iterator[tuple[list[bytes], list[bytes]]]:
        """As `blocks`, but each block is a pair: the canonical keys, and their rows."""
        start = ROW + self._tags[entity]
        keys: list[bytes] = []
        rows: list[bytes] = []
        held = seen = 0
        with self._guard():
            options = rocks.until(rocks.after(start))
            for key, value in self._open().items(from_key=start, read_opt=options):
                row = value[ROW_HEADER.size :]
                keys.append(cast("bytes", key)[len(start) :])
                rows.append(row)
                held += len(row)
                if held >= size:
                    yield keys, rows
                    seen += len(rows)
                    keys, rows, held = [], [], 0
        self._check(entity, seen + len(rows))
        if rows:
            yield keys, rows

    def delivered(self, generation: int, entity: str) -> Iterator[tuple[bytes, bytes]]:
        """Key and digest of each row of an entity that a generation holds, in key order."""
        start = delivered_prefix(generation) + self._tags[entity]
        with self._guard():
            options = rocks.until(rocks.after(start))
            for key, value in self._open().items(from_key=start, read_opt=options):
                yield cast("bytes", key)[len(start) :], value

    def users_of(self, entity: str, id_: bytes) -> bytes | None:
        """The joined 16-byte ids of users that a user or match refers to; None for an unknown id.

        A user refers to no other user, so the result for a known user is empty.
        """
        with self._guard():
            return cast("bytes | None", self._open().get(ID + self._tags[entity] + id_))

    def close(self) -> None:
        """Release the snapshot; closing twice is harmless."""
        if self._frozen is not None:
            rocks.close(self._frozen)
            self._frozen = None
            shutil.rmtree(self._room, ignore_errors=True)

    def _check(self, entity: str, seen: int) -> None:
        if seen != self.counts[entity]:
            with self._guard():
                what = f"{seen} of {self.counts[entity]} {entity} were found"
                raise StateLost(rocks.damage(self._directory, what))

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            with rocks.guard(self._directory):
                yield
        except StateLost as error:
            self._on_damage(str(error))
            raise

    def _open(self) -> Rdict:
        if self._frozen is None:
            raise StateError(f"the snapshot of the store in {self._directory} is closed")
        return self._frozen


def delivered_prefix(generation: int) -> bytes:
    """The common prefix of the keys of all rows that a generation holds."""
    return DELIVERED + generation.to_bytes(8, "big")
