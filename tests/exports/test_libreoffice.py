"""LibreOffice, where it is installed, opens the workbook and saves it again: the same cells.

As CSV, which shows each text exactly as LibreOffice has read it, and as a workbook, which shows
that numbers are numbers. LibreOffice itself has one kind of line end (CR, CRLF and LFCR become LF),
knows no U+FFFE and U+FFFF, saves 15 digits of a number, and in a workbook that it saves it does
not escape a literal `_x0041_` behind another: such texts are compared in its CSV only.
"""

from __future__ import annotations

import csv
import re
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.exports import expected, hostile, reading
from tests.exports.spec import TABLES
from tests.unit.export_kit import export_to

ROWS = 4_000
SEED = 6
SECONDS = 200.0
EVERY_SHEET = "csv:Text - txt - csv (StarCalc):44,34,76,1,,0,true,false,false,false,false,-1"
"""Commas, quotes around every text, UTF-8, numbers as they are and not as they are shown."""

if shutil.which("soffice") is None:
    pytest.skip("no LibreOffice here (no soffice on PATH)", allow_module_level=True)

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 60)]


@pytest.fixture(scope="module")
def rows() -> expected.Rows:
    found: dict[str, list[expected.Row]] = {}
    for entity, record in hostile.Records(SEED).make(ROWS):
        found.setdefault(entity, []).append(record)
    return found


@pytest.fixture(scope="module")
def workbook(rows: expected.Rows, tmp_path_factory: pytest.TempPathFactory) -> Path:
    lines = {entity: [hostile.encoded(row) for row in content] for entity, content in rows.items()}
    return reading.workbook(export_to(tmp_path_factory.mktemp("libreoffice"), lines, "xlsx"))


def converted(workbook: Path, to: str, folder: Path) -> Path:
    """Where LibreOffice has put what it makes of the workbook."""
    subprocess.run(
        ["soffice", f"-env:UserInstallation=file://{folder}/profile", "--headless",
         "--convert-to", to, "--outdir", folder / "back", workbook],
        check=True, capture_output=True, timeout=SECONDS,
    )  # fmt: skip
    return folder / "back"


def as_kept(text: str) -> str:
    """A text as LibreOffice can hold it."""
    text = re.sub("_x(fff[ef])_", lambda match: chr(int(match[1], 16)), text, flags=re.IGNORECASE)
    return re.sub("\r\n|\n\r|\r", "\n", text)


def csv_cell(type_: str, value: Any, found: Any) -> bool:
    if value is None:
        return bool(found == "")
    if type_ in ("Integer", "Decimal"):
        return float(found) == pytest.approx(value, rel=1e-14, abs=0)
    text = expected.cut(expected.text_of(type_, value))
    return as_kept(found) == as_kept(text)


def sheet_cell(type_: str, value: Any, found: Any) -> bool:
    if value is None:
        return found is None
    if type_ in ("Integer", "Decimal"):
        return type(found) in (int, float) and found == pytest.approx(value, rel=1e-14, abs=0)
    text = expected.cut(expected.text_of(type_, value))
    return type(found) is str and ("_x" in text or as_kept(found) == as_kept(text))


def test_texts_are_what_they_were(rows: expected.Rows, workbook: Path, tmp_path: Path) -> None:
    folder = converted(workbook, EVERY_SHEET, tmp_path)

    def cells(sheet: str) -> Iterator[Sequence[str]]:
        with (folder / f"{workbook.stem}-{sheet}.csv").open(encoding="utf-8", newline="") as file:
            yield from csv.reader(file, strict=True)

    csv.field_size_limit(1 << 27)
    expected.compare(
        rows, {entity: cells(table.sheet) for entity, table in TABLES.items()}, csv_cell
    )


def test_numbers_are_numbers_and_texts_texts(
    rows: expected.Rows, workbook: Path, tmp_path: Path
) -> None:
    folder = converted(workbook, "xlsx", tmp_path)
    expected.compare(rows, reading.calamine_cells(folder / workbook.name), sheet_cell)
