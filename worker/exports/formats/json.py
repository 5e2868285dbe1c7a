"""The JSON document: one object, metadata first, then an array an entity, one row a line.

Rows are copied unchanged: a canonical row is JSON already.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable

import msgspec

from schemas import Entity
from worker.exports.metadata import Metadata, json_object


def json_chunks(
    metadata: Metadata, tables: Iterable[tuple[Entity, Iterable[list[bytes]]]]
) -> Generator[bytes, None, dict[str, int]]:
    """The document in chunks, about one for each block of rows; returns the rows by entity."""
    counts: dict[str, int] = {}
    yield b'{"export_metadata": ' + msgspec.json.encode(json_object(metadata))
    for entity, blocks in tables:
        rows = 0
        yield f',\n"{entity.name}": ['.encode()
        for block in blocks:
            if block:
                yield (b",\n" if rows else b"\n") + b",\n".join(block)
                rows += len(block)
        yield b"\n]"
        counts[entity.name] = rows
    yield b"}\n"
    return counts
