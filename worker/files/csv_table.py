"""CSV files: those that we export, and plain ones with a header line of column names.

A comment header and a BOM may come first, lines end in LF or CRLF, columns stand in any order.
The csv module parses; lines are cut at LF here, so that a line number is what an editor shows.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from schemas import Entity
from worker.errors import UsageError
from worker.files.cells import RowEncoder, recognise
from worker.files.lines import read_lines
from worker.files.records import READ_LIMIT, FileRecord


def read_csv(
    stream: BinaryIO, entity: Entity | None, name: str, *, limit: int = READ_LIMIT
) -> Iterator[FileRecord]:
    """The records of a CSV stream; without an entity it is recognised by the header.

    UsageError, naming file and line, where the file is no CSV or a row is not as long as the
    header. A row of bytes that are no UTF-8 is a record all the same: a malformed one.
    """
    rows = _rows(stream, name, limit)
    number, header = next(rows, (1, []))
    entity = entity or recognise(header)
    if entity is None:
        raise UsageError(
            f"{name}:{number}: these columns are of no one entity; say which with --entity"
        )
    if len(set(header)) < len(header):
        raise UsageError(f"{name}:{number}: a column is named twice")
    if not {column.name for column in entity.columns} & set(header):
        raise UsageError(f"{name}:{number}: not one column of {entity.name} in the header line")
    encoder = RowEncoder(entity, header)
    for number, cells in rows:
        if len(cells) != len(header):
            raise UsageError(
                f"{name}:{number}: {len(cells)} cells where the header has {len(header)}"
            )
        yield FileRecord(entity.name, name, number, encoder.encode(cells))


def entity_of_csv(path: Path) -> Entity | None:
    """The entity that the header of a file tells, if any. OSError, UsageError."""
    with path.open("rb") as stream:
        _, header = next(_rows(stream, str(path), READ_LIMIT), (1, []))
    return recognise(header)


def _rows(stream: BinaryIO, name: str, limit: int) -> Iterator[tuple[int, list[str]]]:
    """Header and rows with the numbers of their first lines; blank lines are left out."""
    start = 0

    def texts() -> Iterator[str]:
        nonlocal start
        comments = True
        for line in read_lines(stream, limit):
            start = start or line.number
            if line.oversize:
                raise UsageError(f"{name}:{line.number}: a line of {line.oversize} bytes")
            comments = comments and line.data.startswith(b"#")
            if comments:
                start = 0
            else:
                yield line.data.decode("utf-8", "surrogateescape") + "\n"

    # The module's limit is the process's: it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), limit))
    reader = csv.reader(texts(), strict=True)
    while True:
        start = 0
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise UsageError(f"{name}:{start}: not CSV ({error})") from error
        if cells is None:
            return
        if cells:
            yield start, cells
