"""NDJSON: one record a line, passed on unchanged. Rules: docs/contract.md, "Command line"."""

from __future__ import annotations

from collections.abc import Iterator

from worker.files.encodings import Readable
from worker.files.lines import read_lines
from worker.files.records import READ_LIMIT, FileRecord


def read_ndjson(
    stream: Readable, entity: str, name: str, *, limit: int = READ_LIMIT
) -> Iterator[FileRecord]:
    """The records of a stream (`name` is its path, or `-`). Blank lines are skipped but numbered.

    Any line is a record, which other code validates. Raises nothing of its own.
    """
    for line in read_lines(stream, limit):
        if line.oversize or line.data.strip(b" \t\r"):
            yield FileRecord(
                entity,
                name,
                line.number,
                line.data,
                oversize=line.oversize,
                sha256=line.sha256,
            )
