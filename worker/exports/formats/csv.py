"""The CSV file of one entity: UTF-8, RFC 4180 quoting, LF at the end of a line.

Rules: docs/contract.md, "Exports". A cell holds the value of the row; an absent value is empty.
Arrays and objects are JSON text. Ratings have at least two decimals and no exponent. A cell that
contains `#` is quoted, so that readers that skip comments do not take it for one.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from typing import Any

import msgspec

from schemas import Entity, Kind
from worker.exports.formats.table import FREE_TEXT, TableReader, formula_cells, rating_text
from worker.exports.metadata import Metadata, csv_comment


class CsvOutcome(msgspec.Struct, frozen=True):
    """What was written. `formula_cells` counts cells that a spreadsheet would run as a formula."""

    rows: int
    formula_cells: int


def csv_chunks(
    entity: Entity,
    metadata: Metadata,
    blocks: Iterable[list[bytes]],
    *,
    guard_formulas: bool = False,
) -> Generator[bytes, None, CsvOutcome]:
    """The file in chunks, one for the header and one for each block of canonical rows.

    The same rows give the same bytes on every Python version. `guard_formulas` puts an apostrophe
    before each cell that a spreadsheet would run: safer to open, but no longer faithful.
    """
    table = TableReader(entity)
    kinds = [column.kind for column in entity.columns]
    header = ",".join(column.name for column in entity.columns)
    yield f"{csv_comment(metadata, metadata.counts[entity.name])}{header}\n".encode()

    rows = formulas = 0
    for block in blocks:
        columns = table.columns(block)
        texts = [_texts(kind, cells) for kind, cells in zip(kinds, columns, strict=True)]
        for n, kind in enumerate(kinds):
            if kind in FREE_TEXT and (hits := formula_cells(texts[n])):
                formulas += len(hits)
                if guard_formulas:
                    for hit in hits:
                        texts[n][hit] = "'" + texts[n][hit]
        lines = map(",".join, zip(*map(_quoted, texts), strict=True))
        rows += len(block)
        yield "".join([f"{line}\n" for line in lines]).encode()
    return CsvOutcome(rows, formulas)


def _texts(kind: Kind, cells: Sequence[Any]) -> list[str]:
    if kind is Kind.INTEGER:
        return ["" if cell is None else str(cell) for cell in cells]
    if kind is Kind.RATING:
        return ["" if cell is None else rating_text(cell) for cell in cells]
    return [cell or "" for cell in cells]


def _quoted(texts: list[str]) -> list[str]:
    """Quote cells with a comma, a quote, CR or LF, as RFC 4180 says, and cells with `#`.

    csv.writer takes three times as long, and before Python 3.13 does not quote a lone CR. Most
    columns need no quotes at all, which one check of the joined column shows.
    """
    if not _needs_quotes("".join(texts)):
        return texts
    return ['"' + text.replace('"', '""') + '"' if _needs_quotes(text) else text for text in texts]


def _needs_quotes(text: str) -> bool:
    return "," in text or '"' in text or "\n" in text or "\r" in text or "#" in text
