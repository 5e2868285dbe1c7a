"""Workbooks as records, hostile ones too."""

from __future__ import annotations

import zipfile
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import openpyxl
import pytest

from schemas import ENTITIES
from tests.unit.export_kit import export_to, user
from worker.errors import UsageError
from worker.files import FileRecord
from worker.files.workbook import read_workbook

FEEDBACK = [column.name for column in ENTITIES["feedback"].columns]


def records(path: Path, entity: str | None = None, limit: int = 1 << 20) -> list[FileRecord]:
    chosen = None if entity is None else ENTITIES[entity]
    return list(read_workbook(path, chosen, limit=limit))


def workbook(path: Path, sheets: dict[str, list[list[Any]]]) -> Path:
    book = openpyxl.Workbook()
    book.remove(book.worksheets[0])
    for title, rows in sheets.items():
        sheet = book.create_sheet(title)
        for row in rows:
            sheet.append(row)
    book.save(path)
    return path


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    directory = export_to(
        tmp_path, {"users": [user(first_name=str(n)) for n in range(4)]}, "xlsx", max_sheet_rows=3
    )
    return directory / "buddy_export_2025-11-22.xlsx"


def replaced(path: Path, part: str, content: bytes) -> Path:
    """The workbook with another content of one part."""
    other = path.parent.parent / "other.xlsx"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(other, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, content if name == part else old.read(name))
    return other


def test_continued_sheets(exported: Path) -> None:
    found = records(exported)
    assert [(r.entity, r.sheet, r.line) for r in found] == [
        ("users", "Users", 2),
        ("users", "Users", 3),
        ("users", "Users (2)", 2),
        ("users", "Users (2)", 3),
    ]
    with pytest.raises(UsageError, match="sheet Users: left out, it is of users; 1 more"):
        records(exported, "feedback")
    assert len(records(exported, "users")) == 4


def test_a_workbook_made_by_hand(tmp_path: Path) -> None:
    path = workbook(
        tmp_path / "x.xlsx",
        {
            "Feedback": [
                ["rating", None, "feedback_id", "from_role", "submitted_at", "feedback_text"],
                [0.5, None, "a", "buddy", datetime(2024, 1, 15, 10), 42],  # noqa: DTZ001
                [],
                [True, None, "b", None, None, "=1+1"],
                [1, None, "_x0041_", None, None, None],
                ["0.5", None, "c"],
            ],
            "Empty": [],
        },
    )
    assert [(r.line, msgspec.json.decode(r.value)) for r in records(path)] == [
        (
            2,
            {
                "feedback_id": "a",
                "from_role": "buddy",
                "rating": 0.5,
                "feedback_text": "42",
                "submitted_at": "2024-01-15T10:00:00",
            },
        ),
        (4, {"feedback_id": "b", "rating": True, "feedback_text": "=1+1"}),
        (5, {"feedback_id": "A", "rating": 1}),
        (6, {"feedback_id": "c", "rating": 0.5}),
    ]


def test_a_sheet_of_another_name_is_known_by_its_columns_or_the_given_entity(
    tmp_path: Path,
) -> None:
    path = workbook(tmp_path / "a.xlsx", {"Sheet1": [FEEDBACK, ["a"]]})
    assert [record.entity for record in records(path)] == ["feedback"]
    path = workbook(tmp_path / "b.xlsx", {"Sheet1": [["rating"], [0.5]]})
    assert [record.entity for record in records(path, "feedback")] == ["feedback"]
    with pytest.raises(UsageError, match="no sheet of it can be read"):
        records(path)


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([["a", "b"]], "not one column of feedback"),
        ([["rating", "rating"]], "a column is named twice"),
    ],
)
def test_sheets_that_make_no_sense(tmp_path: Path, rows: list[list[Any]], fault: str) -> None:
    path = workbook(tmp_path / "x.xlsx", {"Feedback": rows})
    with pytest.raises(UsageError, match=fault):
        records(path)


def test_a_row_over_the_limit(tmp_path: Path) -> None:
    path = workbook(tmp_path / "x.xlsx", {"Feedback": [["feedback_text"], ["a" * 100]]})
    (record,) = records(path, limit=50)
    assert (len(record.value), record.oversize) == (50, 120)


@pytest.mark.parametrize("cut", [0, 10, -1, -30])
def test_what_is_no_workbook(exported: Path, cut: int) -> None:
    exported.write_bytes(exported.read_bytes()[:cut])
    with pytest.raises(UsageError, match="not an XLSX workbook"):
        records(exported)


@pytest.mark.parametrize(
    "part", ["[Content_Types].xml", "xl/workbook.xml", "xl/styles.xml", "xl/worksheets/sheet2.xml"]
)
@pytest.mark.parametrize("content", [b"", b"<x>", b"\xff", b"<x/>"])
def test_broken_parts(exported: Path, part: str, content: bytes) -> None:
    try:
        records(replaced(exported, part, content))
    except UsageError as error:
        assert "\n" not in str(error)  # noqa: PT017, some parts can be done without


LONG = "cannot be read beyond row 1: more than 16 MiB without the end of a row"
SHEET = (
    '<worksheet xmlns="http://schemas.openxmlformats.org/spreadsheetml/2006/main"><sheetData>'
    '<row r="1"><c t="inlineStr"><is><t>id</t></is></c></row>{}</sheetData></worksheet>'
)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        ("<!DOCTYPE x [<!ENTITY a 'aaaa'>]>" + SHEET.format(""), "declaration"),
        (SHEET.format("<row><c><v><![CDATA[" + "<row>" * (4 << 20)), "end of a row"),
        (SHEET.format("<!--" + "</row>" * (3 << 20)), "end of a row"),
        (SHEET.format('<row r="2"><c t="str"><v>' + "a" * (17 << 20) + "</v></c></row>"), LONG),
        (SHEET.format('<row r="2">' + "<c/>" * (5 << 20) + "</row>"), LONG),
    ],
    ids=["entities", "cdata", "comment", "huge cell", "many cells"],
)
def test_what_would_not_fit_into_memory_is_refused(
    exported: Path, content: str, fault: str
) -> None:
    path = replaced(exported, "xl/worksheets/sheet2.xml", content.encode())
    assert path.stat().st_size < 1 << 20
    with pytest.raises(UsageError, match=fault):
        records(path)


@pytest.mark.parametrize("row", ["<row/>", '<row r="2"/>', '<row r="2"></row>'])
def test_rows_are_counted(exported: Path, monkeypatch: pytest.MonkeyPatch, row: str) -> None:
    monkeypatch.setattr("worker.files.xlsx.rows.MAX_ROWS", 50)
    path = replaced(exported, "xl/worksheets/sheet2.xml", SHEET.format(row * 50).encode())
    with pytest.raises(UsageError, match="sheet Users: cannot be read beyond row"):
        records(path)


@pytest.mark.parametrize("number", ["0", "-1", "1048577", "9" * 5000, "x"])
def test_rows_where_no_sheet_has_any(exported: Path, number: str) -> None:
    far = SHEET.format(f'<row r="{number}"><c t="inlineStr"><is><t>a</t></is></c></row>')
    path = replaced(exported, "xl/worksheets/sheet2.xml", far.encode())
    with pytest.raises(UsageError, match="sheet Users: cannot be read beyond row 1"):
        records(path)


def test_a_wrong_dimension_hides_nothing(exported: Path) -> None:
    with zipfile.ZipFile(exported) as archive:
        sheet = archive.read("xl/worksheets/sheet2.xml")
    path = replaced(exported, "xl/worksheets/sheet2.xml", sheet.replace(b"A1:I3", b"A1"))
    assert len(records(path)) == 4
