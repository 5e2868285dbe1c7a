"""Spool files: the rows of an export, canonical, filtered and in order.

One file an entity, one row a line; a canonical row holds no raw newline. An incremental export
has a file of deletions as well. Each file is read back against a checksum: a byte that the disk
changes would otherwise become a wrong row in an export whose own checksums are right.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

import msgspec

from worker.errors import StateError

BLOCK: Final = 1 << 18
"""Bytes, about a thousand rows: a writer's step then holds the interpreter for milliseconds."""


class SpoolFile(NamedTuple):
    """A file, and the CRC-32 of what was written into it."""

    path: Path
    crc32: int

    def changed(self) -> StateError:
        """The error for a file that holds something else."""
        return StateError(
            f"{self.path} does not hold what was written: the disk has changed it; request the"
            " export again, and check the disk"
        )


class Spool(msgspec.Struct, frozen=True):
    """The files of one export: rows by entity, and deletions in the form of deletions.ndjson."""

    rows: Mapping[str, SpoolFile]
    deletions: SpoolFile | None = None


def read_blocks(spooled: SpoolFile, size: int = BLOCK) -> Iterator[list[bytes]]:
    """The lines of a spool file in non-empty blocks of about `size` bytes.

    Blocking: iterate in a thread. Memory is bounded by the block and the longest row. Raises
    `StateError` at the end if the file does not hold what was written.
    """
    rest = b""
    crc32 = 0
    with spooled.path.open("rb", buffering=0) as file:
        while data := file.read(size):
            crc32 = zlib.crc32(data, crc32)
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            if lines:
                yield lines
    if rest:
        yield [rest]
    if crc32 != spooled.crc32:
        raise spooled.changed()
