"""Spool files: the rows of an export, canonical, filtered and in order.

One file an entity, one row a line; a canonical row holds no raw newline. An incremental export
has a file of deletions as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

BLOCK: Final = 1 << 18
"""Bytes, about a thousand rows: a writer's step then holds the interpreter for milliseconds."""


class Spool(msgspec.Struct, frozen=True):
    """The files of one export: rows by entity, and deletions in the form of deletions.ndjson."""

    rows: Mapping[str, Path]
    deletions: Path | None = None


def read_blocks(path: Path, size: int = BLOCK) -> Iterator[list[bytes]]:
    """The lines of a spool file in non-empty blocks of about `size` bytes.

    Blocking: iterate in a thread. Memory is bounded by the block and the longest row.
    """
    rest = b""
    with path.open("rb", buffering=0) as file:
        while data := file.read(size):
            lines = (rest + data).split(b"\n")
            rest = lines.pop()
            if lines:
                yield lines
    if rest:
        yield [rest]
