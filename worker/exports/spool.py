"""Spool files: the rows that an export is made of, canonical, filtered and in order.

One file an entity, one row a line; a canonical row holds no raw newline. With an incremental export
a file of deletions.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec

BLOCK: Final = 1 << 18
"""About a thousand rows: a step of a writer then holds the interpreter for few milliseconds."""


class Spool(msgspec.Struct, frozen=True):
    """The files of one export: rows by entity, and deletions as deletions.ndjson will hold them."""

    rows: Mapping[str, Path]
    deletions: Path | None = None


def read_blocks(path: Path, size: int = BLOCK) -> Iterator[list[bytes]]:
    """The lines of a spool file in blocks of about `size` bytes, none of them empty.

    Blocking: call it from a thread. Memory is bounded by the block and the longest row.
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
