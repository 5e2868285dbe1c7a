"""The XLSX workbook: "Export Metadata", then a sheet an entity, streamed into a zip archive.

Rules: docs/contract.md, "Exports". Integers and ratings are numbers. Everything else is text in
canonical form, as an inline string, so that nothing is ever a formula. The XML is written by hand:
that is several times faster than the libraries that keep text exact.

Zip members stay below the size that requires zip64, since Excel warns of zip64. A sheet that grows
too large continues on the next one, as does a sheet with too many rows.
"""

from __future__ import annotations

import zipfile
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from schemas import Entity, Kind
from worker.exports.formats import xlsx_parts as parts
from worker.exports.formats.table import TableReader
from worker.exports.formats.xlsx_cells import TooLong, column_xml, number_cell, text_cell
from worker.exports.formats.xlsx_text import shorten
from worker.exports.manifest import CutCell
from worker.exports.metadata import Metadata, sheet_rows

MAX_ROWS: Final = 1_048_576
"""Rows that a sheet can hold, the header row included."""
_MAX_SHEET_BYTES: Final = 1_900_000_000
_COMPRESSION_LEVEL: Final = 3
_METADATA_SHEET: Final = "Export Metadata"
_WIDTHS: Final = {
    Kind.UUID: 38,
    Kind.TIMESTAMP: 22,
    Kind.INTEGER: 12,
    Kind.RATING: 10,
    Kind.ENUM: 16,
}


class XlsxOutcome(msgspec.Struct, frozen=True):
    """What was written: rows by entity, and the truncated cells, too long for Excel."""

    rows: dict[str, int]
    cut_cells: tuple[CutCell, ...]


def xlsx_chunks(
    metadata: Metadata,
    tables: Iterable[tuple[Entity, Iterable[list[bytes]]]],
    *,
    max_rows: int = MAX_ROWS,
    max_sheet_bytes: int = _MAX_SHEET_BYTES,
) -> Generator[bytes, None, XlsxOutcome]:
    """The workbook in chunks, one for each block of rows; some are empty, as zlib buffers.

    Memory does not grow with the rows, apart from the list of truncated cells. The same rows and
    metadata give the same bytes with the same zlib. `max_rows` counts the header row.
    """
    if max_rows < 2:
        raise ValueError("a sheet needs room for a header and a row")
    sink = _Sink()
    sheets: list[parts.FinishedSheet] = []
    counts: dict[str, int] = {}
    cut: list[CutCell] = []
    with zipfile.ZipFile(
        sink, "w", zipfile.ZIP_DEFLATED, compresslevel=_COMPRESSION_LEVEL
    ) as archive:
        _add(archive, "_rels/.rels", parts.PACKAGE_RELATIONS)
        _add(archive, "xl/styles.xml", parts.STYLES)
        about = sheet_rows(metadata)
        sheets.append(parts.FinishedSheet(_METADATA_SHEET, 2, len(about) + 1, filtered=False))
        _add(archive, parts.sheet_path(1), _metadata_sheet(about, sheets[0]))
        for entity, blocks in tables:
            writer = _EntityWriter(entity, metadata.counts[entity.name], cut)
            pieces = _Pieces(blocks)
            part = 1
            while part == 1 or pieces.waiting:
                path = parts.sheet_path(len(sheets) + 1)
                rows = 1  # the header's
                with archive.open(path, "w") as member:
                    size = member.write(writer.start(max_rows).encode())
                    while rows == 1 or (rows < max_rows and size < max_sheet_bytes):
                        piece = pieces.take(max_rows - rows)
                        if not piece:
                            break
                        size += member.write(writer.rows(piece, rows + 1).encode())
                        rows += len(piece)
                        yield sink.take()
                    title = entity.sheet if part == 1 else f"{entity.sheet} ({part})"
                    sheet = parts.FinishedSheet(title, len(entity.columns), rows, filtered=True)
                    member.write(parts.sheet_end(sheet).encode())
                sheets.append(sheet)
                part += 1
            counts[entity.name] = writer.written
        _add(archive, "xl/workbook.xml", parts.workbook(sheets))
        _add(archive, "xl/_rels/workbook.xml.rels", parts.workbook_relations(sheets))
        _add(archive, "[Content_Types].xml", parts.content_types(sheets))
    yield sink.take()
    return XlsxOutcome(counts, tuple(cut))


class _Sink:
    """The output of the archive. It cannot seek, so bytes once written never change."""

    def __init__(self) -> None:
        self._data: list[bytes] = []

    def write(self, data: bytes) -> int:
        self._data.append(bytes(data))
        return len(data)

    def flush(self) -> None:
        """Do nothing; zipfile calls it."""

    def close(self) -> None:
        """Do nothing; zipfile may call it."""

    def take(self) -> bytes:
        """The bytes written since the last call."""
        self._data, data = [], self._data
        return b"".join(data)


class _Pieces:
    """Splits blocks of rows into pieces of a bounded number of rows."""

    def __init__(self, blocks: Iterable[list[bytes]]) -> None:
        self._blocks: Iterator[list[bytes]] = iter(blocks)
        self._rest: list[bytes] = []

    @property
    def waiting(self) -> bool:
        """Whether there is another row."""
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                return False
            self._rest = block
        return True

    def take(self, most: int) -> list[bytes]:
        """The next rows, at least one and at most `most`; empty only at the end."""
        if not self.waiting:
            return []
        piece, self._rest = self._rest[:most], self._rest[most:]
        return piece


class _EntityWriter:
    """Renders the rows of one entity, a column at a time."""

    def __init__(self, entity: Entity, expected: int, cut: list[CutCell]) -> None:
        self._entity = entity
        self._expected = expected
        self._table = TableReader(entity)
        self._cut = cut
        self.written = 0

    def start(self, max_rows: int) -> str:
        """The XML of a sheet before its first row of data."""
        columns = self._entity.columns
        left = max(self._expected - self.written, 0)
        widths = [_WIDTHS.get(column.kind, 24) for column in columns]
        return parts.sheet_start(widths, min(left + 1, max_rows)) + parts.header_row(
            [column.name for column in columns]
        )

    def rows(self, piece: list[bytes], first: int) -> str:
        """The XML of some rows. `first` is the number of the first row."""
        columns = self._table.columns(piece)
        numbers = [str(n) for n in range(first, first + len(piece))]
        cells: list[Sequence[str]] = [[f'<row r="{n}">' for n in numbers]]
        for at, column in enumerate(self._entity.columns):
            too_long: TooLong = []
            letters = parts.column_letters(at + 1)
            cells.append(column_xml(column.kind, letters, numbers, columns[at], too_long))
            self._cut.extend(
                CutCell(self._entity.name, self._table.key(columns, row), column.name, length)
                for row, length in too_long
            )
        cells.append(["</row>"] * len(piece))
        self.written += len(piece)
        return "".join(map("".join, zip(*cells, strict=True)))


def _add(archive: zipfile.ZipFile, path: str, text: str) -> None:
    # Not writestr, which stamps the current time on the member.
    with archive.open(path, "w") as member:
        member.write(text.encode())


def _metadata_sheet(rows: list[tuple[str, str | int]], sheet: parts.FinishedSheet) -> str:
    body = "".join(
        f'<row r="{n}">{text_cell(f"A{n}", name)}'
        + (
            number_cell(f"B{n}", value)
            if isinstance(value, int)
            else text_cell(f"B{n}", shorten(value))
        )
        + "</row>"
        for n, (name, value) in enumerate(rows, 2)
    )
    start = parts.sheet_start([32, 44], sheet.rows) + parts.header_row(["Field", "Value"])
    return start + body + parts.sheet_end(sheet)
