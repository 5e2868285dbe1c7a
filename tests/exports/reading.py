"""An export as programs that are not ours read it: csv, json, openpyxl, calamine."""

from __future__ import annotations

import csv
import hashlib
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import openpyxl
from python_calamine import CalamineWorkbook

from tests.exports.spec import TABLES

_ESCAPE: Final = re.compile("_x([0-9A-Fa-f]{4})_")
_NONCHARACTERS: Final = {"_xFFFE_": "\ufffe", "_xFFFF_": "\uffff"}

Cells = Mapping[str, Iterator[Sequence[Any]]]
"""By entity, the header first."""


def csv_cells(directory: Path) -> Cells:
    """Of the folder of CSV files; the comment lines before the header are left out."""
    (folder,) = (path for path in directory.iterdir() if path.is_dir())
    csv.field_size_limit(1 << 27)

    def cells(entity: str) -> Iterator[Sequence[Any]]:
        with (folder / f"{entity}.csv").open(encoding="utf-8", newline="") as file:
            for _ in range(7):
                assert file.readline().startswith("# ")
            yield from csv.reader(file, strict=True)

    return {entity: cells(entity) for entity in TABLES}


def document(directory: Path) -> dict[str, Any]:
    """The JSON document."""
    (path,) = directory.glob("buddy_export_*.json")
    found: dict[str, Any] = json.loads(path.read_bytes())
    return found


def workbook(directory: Path) -> Path:
    """Where the workbook lies."""
    (path,) = directory.glob("*.xlsx")
    return path


def openpyxl_cells(path: Path) -> Cells:
    """As openpyxl reads them in its streaming mode.

    It leaves the escapes of inline strings alone, so they are undone here, by the words of
    ECMA-376, 22.9.2.19 (ST_Xstring): `_xHHHH_` is the character of that number.
    """
    book = openpyxl.load_workbook(path, read_only=True)

    def cells(sheet: str) -> Iterator[Sequence[Any]]:
        for row in book[sheet].iter_rows(values_only=True):
            yield [unescaped(cell) if isinstance(cell, str) else cell for cell in row]

    return {entity: cells(table.sheet) for entity, table in TABLES.items()}


def calamine_cells(path: Path) -> Cells:
    """As calamine reads them: it undoes the escapes itself, but for U+FFFE and U+FFFF.

    An empty cell is None here, as elsewhere: calamine makes it an empty text.
    """
    book = CalamineWorkbook.from_path(path)

    def cells(sheet: str) -> Iterator[Sequence[Any]]:
        for row in book.get_sheet_by_name(sheet).iter_rows():
            yield [_of_calamine(cell) for cell in row]

    return {entity: cells(table.sheet) for entity, table in TABLES.items()}


def unescaped(text: str) -> str:
    """The text without Excel's escapes."""
    return _ESCAPE.sub(lambda match: chr(int(match[1], 16)), text) if "_x" in text else text


def formula_elements(path: Path) -> int:
    """How many cells of the workbook are formulas."""
    with zipfile.ZipFile(path) as archive:
        return sum(
            len(re.findall(b"<f[ >/]", archive.read(name)))
            for name in archive.namelist()
            if name.startswith("xl/worksheets/")
        )


def file_faults(directory: Path) -> Iterator[str]:
    """Where the files of an export are not what its manifest says: names, sizes, SHA-256."""
    try:
        listed = json.loads((directory / "manifest.json").read_bytes())["files"]
    except (OSError, ValueError, KeyError) as error:
        yield f"{directory.name}: no manifest ({type(error).__name__})"
        return
    expected = {file["path"]: (file["bytes"], file["sha256"]) for file in listed}
    found = {}
    for path in directory.rglob("*"):
        if path.is_file() and path.name != "manifest.json":
            with path.open("rb") as content:
                digest = hashlib.file_digest(content, "sha256").hexdigest()
            found[path.relative_to(directory).as_posix()] = (path.stat().st_size, digest)
    for path_name in sorted(expected.keys() | found.keys()):
        if expected.get(path_name) != found.get(path_name):
            there, wanted = found.get(path_name), expected.get(path_name)
            yield f"{directory.name}/{path_name}: {there} instead of {wanted}"


def _of_calamine(cell: Any) -> Any:
    if cell == "":
        return None
    if isinstance(cell, str) and "_xFFF" in cell:
        for escape, character in _NONCHARACTERS.items():
            cell = cell.replace(escape, character)
    return cell
