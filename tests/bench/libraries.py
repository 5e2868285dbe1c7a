"""Other writers of the same rows. Those that are not installed here are not mentioned.

`make bench` installs the fastest of each format (the extra `bench`); of JSON that is msgspec. Into
the same environment `pip install XlsxWriter pyexcelerate` brings the rest. Nothing of the product
uses them. Each decodes the rows itself, as ours do.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
from openpyxl import Workbook

from schemas import Entity
from worker.exports.formats.table import TableReader

Blocks = list[list[bytes]]
Write = Callable[[Entity, Blocks, Path], object]
"""Writes the rows of an entity; the folder is for those that insist on a file."""


def csv_writers() -> dict[str, Write]:
    """By name."""
    return {"csv.writer": _csv_writer, **_there({"polars": _polars})}


def json_writers() -> dict[str, Write]:
    """By name."""
    return {"msgspec, rows as they are": _raw, "msgspec, decoded and encoded": _decoded}


def xlsx_writers() -> dict[str, Write]:
    """By name."""
    others: dict[str, Write] = {
        "xlsxwriter": _xlsxwriter, "pyexcelerate": _pyexcelerate, "rustpy_xlsxwriter": _rustpy,
    }  # fmt: skip
    return {"openpyxl, write-only": _openpyxl, **_there(others)}


def _there(writers: dict[str, Write]) -> dict[str, Write]:
    return {name: write for name, write in writers.items() if find_spec(name) is not None}


def _rows(entity: Entity, blocks: Blocks) -> Iterator[tuple[Any, ...]]:
    table = TableReader(entity)
    for block in blocks:
        yield from zip(*table.columns(block), strict=True)


def _names(entity: Entity) -> list[str]:
    return [column.name for column in entity.columns]


def _csv_writer(entity: Entity, blocks: Blocks, _folder: Path) -> object:
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_names(entity))
    writer.writerows(_rows(entity, blocks))
    return text.getvalue().encode()


def _polars(entity: Entity, blocks: Blocks, _folder: Path) -> object:
    polars: Any = import_module("polars")
    lines = b"\n".join(b"\n".join(block) for block in blocks)
    frame = polars.read_ndjson(lines, infer_schema_length=1_000)
    file = io.BytesIO()
    frame.write_csv(file)
    return file


def _raw(entity: Entity, blocks: Blocks, _folder: Path) -> object:
    rows = [msgspec.Raw(row) for block in blocks for row in block]
    return msgspec.json.encode({entity.name: rows})


def _decoded(entity: Entity, blocks: Blocks, _folder: Path) -> object:
    decode = msgspec.json.Decoder(entity.struct).decode
    return msgspec.json.encode({entity.name: [decode(row) for block in blocks for row in block]})


def _openpyxl(entity: Entity, blocks: Blocks, _folder: Path) -> object:
    book = Workbook(write_only=True)
    sheet = book.create_sheet(entity.sheet)
    sheet.append(_names(entity))
    for row in _rows(entity, blocks):
        sheet.append(row)
    file = io.BytesIO()
    book.save(file)
    return file


def _xlsxwriter(entity: Entity, blocks: Blocks, folder: Path) -> object:
    xlsxwriter: Any = import_module("xlsxwriter")
    options = {"constant_memory": True, "strings_to_urls": False, "strings_to_formulas": False}
    book = xlsxwriter.Workbook(folder / "xlsxwriter.xlsx", options)
    sheet = book.add_worksheet(entity.sheet)
    sheet.write_row(0, 0, _names(entity))
    for number, row in enumerate(_rows(entity, blocks), 1):
        sheet.write_row(number, 0, row)
    book.close()
    return book


def _pyexcelerate(entity: Entity, blocks: Blocks, folder: Path) -> object:
    pyexcelerate: Any = import_module("pyexcelerate")
    book = pyexcelerate.Workbook()
    book.new_sheet(entity.sheet, data=[_names(entity), *map(list, _rows(entity, blocks))])
    book.save(str(folder / "pyexcelerate.xlsx"))
    return book


def _rustpy(entity: Entity, blocks: Blocks, folder: Path) -> object:
    rustpy: Any = import_module("rustpy_xlsxwriter")
    names = _names(entity)
    records = (dict(zip(names, row, strict=True)) for row in _rows(entity, blocks))
    return rustpy.write_worksheet(records, str(folder / "rustpy.xlsx"), sheet_name=entity.sheet)
