"""The XLSX writer, read by openpyxl and as XML."""

from __future__ import annotations

import io
import zipfile
from typing import Any
from xml.etree import ElementTree as ET

import msgspec
import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES, Kind
from tests.unit.export_kit import FEWER, HOSTILE, drained, exports, feedback, metadata_of, user
from worker.exports.formats.xlsx import XlsxOutcome, xlsx_chunks
from worker.exports.formats.xlsx_parts import column_letters
from worker.exports.formats.xlsx_text import shorten, to_xml, units
from worker.exports.manifest import CutCell
from worker.files.xlsx.escapes import from_excel

LONGEST = 32_767


def written(
    tables: dict[str, list[bytes]], *, block: int = 2, **options: int
) -> tuple[bytes, XlsxOutcome]:
    chunks = xlsx_chunks(
        metadata_of(tables),
        [
            (ENTITIES[name], [rows[n : n + block] for n in range(0, len(rows), block)])
            for name, rows in tables.items()
        ],
        **options,
    )
    return drained(chunks)


def cells_of(data: bytes) -> dict[str, list[tuple[Any, ...]]]:
    workbook = openpyxl.load_workbook(io.BytesIO(data))
    return {sheet.title: list(sheet.values) for sheet in workbook.worksheets}


def test_the_sheet_of_metadata_comes_first() -> None:
    data, outcome = written({"users": [user()], "feedback": []})
    sheets = cells_of(data)
    assert list(sheets) == ["Export Metadata", "Users", "Feedback"]
    assert sheets["Export Metadata"] == [
        ("Field", "Value"),
        ("export_id", "550e8400-e29b-41d4-a716-446655440000"),
        ("export_date", "2025-11-22T10:30:00Z"),
        ("date_range.start", "2024-01-01"),
        ("date_range.end", "2025-11-22"),
        ("program_name", "Buddy Program"),
        ("version", "1.0.0"),
        ("record_counts.users", 1),
        ("record_counts.feedback", 0),
    ]
    assert outcome == XlsxOutcome({"users": 1, "feedback": 0}, ())


def test_the_header_is_bold_frozen_and_filtered() -> None:
    data, _ = written({"users": [user(), user()]})
    sheet = openpyxl.load_workbook(io.BytesIO(data))["Users"]
    assert all(cell.font.b for cell in sheet[1])
    assert not sheet["A2"].font.b
    assert sheet.freeze_panes == "A2"
    assert sheet.auto_filter.ref == "A1:I3"
    assert sheet.dimensions == "A1:I3"


def test_numbers_are_numbers_and_all_else_is_text() -> None:
    data, _ = written({"feedback": [feedback(rating=0.855, communication=1.0, helpfulness=1e-7)]})
    sheet = openpyxl.load_workbook(io.BytesIO(data))["Feedback"]
    rating, communication, helpfulness = sheet["D2"], sheet["G2"], sheet["H2"]
    assert (rating.value, communication.value, helpfulness.value) == (0.855, 1, 1e-7)
    assert {rating.data_type, communication.data_type} == {"n"}
    assert rating.number_format.startswith("0.00#")
    assert sheet["A2"].data_type == "s"
    assert sheet["I2"].value is None


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_is_text_and_kept(text: str) -> None:
    data, _ = written({"users": [user(first_name=text, interests=[text])]})
    sheet = openpyxl.load_workbook(io.BytesIO(data))["Users"]
    assert sheet["C2"].data_type == "s"
    assert from_excel(sheet["C2"].value) == text
    assert msgspec.json.decode(from_excel(sheet["H2"].value)) == [text]


@pytest.mark.parametrize(
    ("text", "xml"),
    [
        ("\x01", "_x0001_"),
        ("\r", "_x000D_"),
        ("\t\n", "\t\n"),
        ("_x0041_", "_x005F_x0041_"),
        ("_x0041_x0042_", "_x005F_x0041_x005F_x0042_"),
        ("_x0041\x01", "_x005F_x0041_x0001_"),
        ("_x004_", "_x004_"),
        ("\ufffe\uffff", "_xFFFE__xFFFF_"),
        ("a<b>&c", "a&lt;b&gt;&amp;c"),
    ],
)
def test_escapes(text: str, xml: str) -> None:
    assert to_xml(text) == xml


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("_x0041\x01\r")))
def test_escapes_can_be_undone(text: str) -> None:
    parsed = ET.fromstring(f"<t>{to_xml(text)}</t>").text or ""  # noqa: S314, our own
    assert from_excel(parsed) == text


def test_surrogates_of_other_programs_are_joined() -> None:
    assert from_excel("_xD83D__xDE00_") == "😀"
    assert from_excel("_xD83D_") == "\ud83d"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a" * LONGEST, LONGEST),
        ("a" * (LONGEST + 1), LONGEST),
        ("a" + "😀" * (LONGEST // 2), LONGEST),
        ("a" + "😀" * (LONGEST // 2) + "b", LONGEST),
        ("😀" * (LONGEST // 2 + 1), LONGEST - 1),  # half an emoji would not do
        ("\x01" * (LONGEST + 1), LONGEST),
        ("_x0041_" * 5000, LONGEST),
        ("é" * 20_000, 20_000),
    ],
    ids=range(8),
)
def test_what_is_too_long_is_cut_and_listed(text: str, kept: int) -> None:
    data, outcome = written({"users": [user(), user(location=text)]})
    read = from_excel(cells_of(data)["Users"][2][8])
    assert read == shorten(text)
    assert text.startswith(read)
    assert units(read) == kept
    listed = CutCell("users", "550e8400-e29b-41d4-a716-446655440000", "location", units(text))
    assert outcome.cut_cells == ((listed,) if units(text) > LONGEST else ())


def test_a_cut_cell_names_a_composite_key() -> None:
    row = msgspec.json.encode(
        {
            "milestone_id": 42,
            "user_id": "550e8400-e29b-41d4-a716-446655440000",
            "milestone_title": "a" * 40_000,
        }
    )
    _, outcome = written({"milestones": [row]})
    assert outcome.cut_cells[0].key == "42:550e8400-e29b-41d4-a716-446655440000"


@pytest.mark.parametrize(
    ("rows", "sheets"), [(0, [0]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (7, [3, 3, 1])]
)
@pytest.mark.parametrize("block", [1, 2, 10])
def test_too_many_rows_continue_on_another_sheet(rows: int, sheets: list[int], block: int) -> None:
    users = [user(first_name=str(n)) for n in range(rows)]
    data, outcome = written({"users": users, "feedback": [feedback()]}, max_rows=4, block=block)
    read = cells_of(data)
    titles = ["Users", "Users (2)", "Users (3)"][: len(sheets)]
    assert list(read) == ["Export Metadata", *titles, "Feedback"]
    assert [len(read[title]) - 1 for title in titles] == sheets
    assert [row[2] for title in titles for row in read[title][1:]] == [str(n) for n in range(rows)]
    assert outcome.rows == {"users": rows, "feedback": 1}


def test_a_sheet_of_too_many_bytes_continues_on_another() -> None:
    data, outcome = written({"users": [user()] * 5}, max_sheet_bytes=1)
    assert [len(rows) for rows in cells_of(data).values()][1:] == [3, 3, 2]
    assert outcome.rows == {"users": 5}


def test_the_archive_needs_no_zip64_and_carries_no_clock() -> None:
    data, _ = written({"users": [user()]})
    assert data == written({"users": [user()]})[0]
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        for member in archive.infolist():
            assert member.extract_version < 45
            assert member.date_time == (1980, 1, 1, 0, 0, 0)
            ET.fromstring(archive.read(member))  # noqa: S314, our own


def test_a_writer_that_is_given_up_leaves_nothing_open() -> None:
    chunks = xlsx_chunks(metadata_of({"users": [b""]}), [(ENTITIES["users"], [[user()]])])
    next(chunks)
    chunks.close()


@FEWER
@given(exports)
def test_openpyxl_reads_the_same_cells(tables: dict[str, list[bytes]]) -> None:
    read = cells_of(written(tables)[0])
    for name, rows in tables.items():
        entity = ENTITIES[name]
        header, *body = read[entity.sheet]
        assert header == tuple(column.name for column in entity.columns)
        assert len(body) == len(rows)
        for cells, row in zip(body, rows, strict=True):
            values = msgspec.json.decode(row, type=dict[str, msgspec.Raw])
            for column, cell in zip(entity.columns, cells, strict=True):
                if column.name not in values:
                    assert cell is None
                    continue
                raw = bytes(values[column.name]).decode()
                if column.kind in (Kind.INTEGER, Kind.RATING):
                    assert cell == float(raw)
                else:
                    text = msgspec.json.decode(raw) if raw.startswith('"') else raw
                    assert from_excel(cell) == text


def test_column_letters() -> None:
    assert [column_letters(n) for n in (1, 26, 27, 52, 53, 702, 703)] == [
        "A",
        "Z",
        "AA",
        "AZ",
        "BA",
        "ZZ",
        "AAA",
    ]
