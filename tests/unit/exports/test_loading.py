"""The calls of docs/loading.md give every cell of the golden export as it is.

Each block of the page runs as it stands there, and once more for each other entity.
"""

from __future__ import annotations

import json
import re
import runpy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.exports.expected import Row, csv_cell, cut, differences, text_of
from tests.exports.spec import NUMBERS, TABLES
from tests.paths import ROOT
from tests.unit.export_kit import export_to
from tests.unit.exports.golden_kit import golden_rows

pytestmark = pytest.mark.thorough

PAGE = (ROOT / "docs" / "loading.md").read_text("utf-8")
SECTION = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = {
    (name, block.split()[1]): block
    for name, text in SECTION.findall(PAGE)
    for block in BLOCK.findall(text)
}
CSV = ("pandas", "polars", "duckdb")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_to(tmp_path_factory.mktemp("loading"), golden_rows())


def rows_of(entity: str) -> list[Row]:
    return [json.loads(line) for line in golden_rows()[entity]]


def load(block: str, entity: str, folder: Path) -> Any:
    """What a block calls `users`, or the other entity instead."""
    script = folder / "block.py"
    script.write_text(
        block.replace("users", entity).replace("Users", TABLES[entity].sheet), "utf-8"
    )
    return runpy.run_path(str(script))[entity]


def table(frame: Any) -> list[Sequence[Any]]:
    """The header and the rows of a frame; an absent cell is an empty text."""
    for give in ("fetchall", "rows"):  # DuckDB, polars
        if hasattr(frame, give):
            cells = getattr(frame, give)()
            break
    else:
        cells = frame.to_numpy().tolist()
    return [list(frame.columns), *(["" if c is None else c for c in row] for row in cells)]


def test_the_page_shows_a_call_for_each_format_and_library() -> None:
    assert set(BLOCKS) == {*(("CSV", name) for name in CSV), ("JSON", "json"), ("XLSX", "pandas")}


@pytest.mark.parametrize("entity", TABLES)
@pytest.mark.parametrize("library", CSV)
def test_csv(library: str, entity: str, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(export / "buddy_export_2025-11-22")
    found = table(load(BLOCKS["CSV", library], entity, export))
    assert list(differences(entity, rows_of(entity), found, csv_cell)) == []


@pytest.mark.parametrize("entity", TABLES)
def test_json(entity: str, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(export)
    assert load(BLOCKS["JSON", "json"], entity, export) == rows_of(entity)


@pytest.mark.parametrize("entity", TABLES)
def test_xlsx(entity: str, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def same(type_: str, value: Any, found: str) -> bool:
        if value is None:
            return found == ""
        found = found.replace("_xFFFE_", "\ufffe").replace("_xFFFF_", "\uffff")
        return float(found) == value if type_ in NUMBERS else found == cut(text_of(type_, value))

    monkeypatch.chdir(export)
    found = table(load(BLOCKS["XLSX", "pandas"], entity, export))
    assert list(differences(entity, rows_of(entity), found, same)) == []
