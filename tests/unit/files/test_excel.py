"""Workbooks as Excel writes them, imitated part by part: strings, dates, formulas, sheets."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import msgspec
import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.export_kit import HOSTILE
from tests.unit.files.excel_kit import DATE, DURATION, OWN_DATE, PERCENT, TEXT, excel, row, strings
from worker.errors import UsageError
from worker.exports.formats.xlsx_text import to_xml
from worker.files import FileRecord, in_entity_order, input_file
from worker.files.workbook import read_workbook
from worker.files.xlsx.cells import EPOCH_1900, CellReader, number_text
from worker.files.xlsx.rows import read_rows
from worker.files.xlsx.strings import SharedStrings


def read(path: Path, entity: str | None = None) -> list[FileRecord]:
    return list(read_workbook(path, None if entity is None else ENTITIES[entity]))


def values(path: Path) -> list[Any]:
    return [msgspec.json.decode(record.value) for record in read(path)]


def test_shared_strings(tmp_path: Path) -> None:
    shared = [
        "<t>feedback_id</t>",
        "<t>feedback_text</t>",
        '<t xml:space="preserve"> a </t>',
        '<r><t>bo</t></r><r><rPr><b/></rPr><t>ld</t></r><rPh sb="0" eb="1"><t>ボ</t></rPh>',
        "<t>a_x000D_\nb_x005F_x0041_ _xD83D__xDE00_</t>",
        "<t>x005F_ and x0041_</t>",
        "<t/>",
    ]
    rows = row(1, '<c r="A1" t="s"><v>0</v></c><c r="B1" t="s"><v>1</v></c>')
    for n in range(2, 7):
        rows += row(n, f'<c r="A{n}" s="5" t="s"><v>2</v></c><c r="B{n}" t="s"><v>{n}</v></c>')
    found = values(excel(tmp_path / "x.xlsx", {"Feedback": rows}, shared))
    assert [one.get("feedback_text") for one in found] == [
        " a ",
        "bold",
        "a\r\nb_x0041_ 😀",
        "x005F_ and x0041_",
        None,
    ]
    assert {one["feedback_id"] for one in found} == {" a "}


@pytest.mark.parametrize("index", ["7", "-1", "x", "1" * 5000, "1.0"])
def test_a_shared_string_that_is_not_there(tmp_path: Path, index: str) -> None:
    rows = strings(1, "feedback_id") + row(2, f'<c r="A2" t="s"><v>{index}</v></c>')
    with pytest.raises(UsageError, match="sheet Feedback: cannot be read beyond row 1"):
        read(excel(tmp_path / "x.xlsx", {"Feedback": rows}, ["<t>a</t>"]))


@given(st.lists(st.sampled_from(HOSTILE) | st.text(st.characters(codec="utf-8"), max_size=9)))
def test_any_text_is_the_same_shared_and_inline(texts: list[str]) -> None:
    class Part:
        def __init__(self, text: str) -> None:
            self.data = text.encode()

        def read(self, size: int, /) -> bytes:
            piece, self.data = self.data[:7], self.data[7:]
            return piece

    shared = SharedStrings(
        Part(f"<sst>{''.join(f'<si><t>{to_xml(t)}</t></si>' for t in texts)}</sst>")
    )
    cells = "".join(f'<c t="inlineStr"><is><t>{to_xml(t)}</t></is></c>' for t in texts)
    sheet = f"<x:worksheet><x:sheetData><row>{cells}</row></x:sheetData></x:worksheet>"
    reader = CellReader(shared, {}, EPOCH_1900)
    found = dict(read_rows(Part(sheet), reader)).get(1, {})
    assert [found.get(n, "") for n in range(len(texts))] == texts
    assert [shared[str(n)] for n in range(len(texts))] == texts


def serial(moment: datetime, *, epoch_1904: bool) -> str:
    """The number that Excel stores for a moment."""
    epoch = datetime(1904, 1, 1) if epoch_1904 else datetime(1899, 12, 30)  # noqa: DTZ001
    return repr((moment - epoch) / timedelta(days=1))


@pytest.mark.parametrize("epoch_1904", [False, True])
def test_dates_in_both_systems(tmp_path: Path, epoch_1904: bool) -> None:
    moments = [
        datetime(2024, 1, 15, 10),  # noqa: DTZ001
        datetime(2024, 2, 29),  # noqa: DTZ001
        datetime(2025, 12, 31, 23, 59, 59),  # noqa: DTZ001
        datetime(2024, 1, 15, 10, 30, 0, 250_000),  # noqa: DTZ001
        datetime(9999, 12, 31),  # noqa: DTZ001
    ]
    rows = strings(1, "submitted_at", "feedback_text")
    for n, moment in enumerate(moments, 2):
        value = serial(moment, epoch_1904=epoch_1904)
        rows += row(
            n,
            *(
                f'<c r="{c}{n}" s="{s}"><v>{value}</v></c>'
                for c, s in (("A", DATE), ("B", OWN_DATE))
            ),
        )
    found = values(excel(tmp_path / "x.xlsx", {"Feedback": rows}, epoch_1904=epoch_1904))
    expected = [
        "2024-01-15T10:00:00",
        "2024-02-29T00:00:00",
        "2025-12-31T23:59:59",
        "2024-01-15T10:30:00.25",
        "9999-12-31T00:00:00",
    ]
    assert [one["submitted_at"] for one in found] == expected
    assert [one["feedback_text"] for one in found] == expected


CELLS = [
    ("<v>120</v>", "120"),
    ("<v>120.0</v>", "120"),
    ("<v>1.2E2</v>", "120"),
    ("<v>0.28999999999999998</v>", "0.29"),
    ("<v>1E-7</v>", "1e-07"),
    ("<v>1E+300</v>", "1e+300"),
    ("<v>1e999</v>", "1e999"),
    ("<v>12345678901234567</v>", "12345678901234567"),
    ("<v>12345678901234567890.0</v>", "12345678901234567890"),
    ("<v>1.2345678901234567E+19</v>", "12345678901234567000"),
    ("<v>+5</v>", "5"),
    ("<v> 5 </v>", "5"),
    ("<is><t>a</t></is>", "a"),
    ("<v>nan</v>", "nan"),
    ("<v>-0</v>", "-0"),
    ("<v></v>", None),
    ("", None),
    ("<f>1+1</f><v>2</v>", "2"),
    ("<f>1+1</f><v/>", "=1+1"),
    ("<f>1+1</f>", "=1+1"),
    ('<f t="shared" si="0"/><v>0.5</v>', "0.5"),
]


@pytest.mark.parametrize(("content", "text"), CELLS)
def test_numbers_and_formulas(tmp_path: Path, content: str, text: str | None) -> None:
    rows = strings(1, "feedback_id", "feedback_text")
    rows += row(2, f'<c t="str"><v>k</v></c><c r="B2">{content}</c>')
    (found,) = values(excel(tmp_path / "x.xlsx", {"Feedback": rows}))
    assert found.get("feedback_text") == text


@pytest.mark.parametrize(
    ("cell", "value"),
    [
        ('<c r="A2" t="b"><v>1</v></c>', True),
        ('<c r="A2" t="b"><v>0</v></c>', False),
        ('<c r="A2" t="e"><v>#N/A</v></c>', "#N/A"),
        ('<c r="A2" t="e"><f>1/0</f><v>#DIV/0!</v></c>', "#DIV/0!"),
        ('<c r="A2" t="str"><f>x</f><v>a_x000D_</v></c>', "a\r"),
        ('<c r="A2" t="str"><f>x</f><v></v></c>', None),
        ('<c r="A2" t="d"><v>2024-01-15</v></c>', "2024-01-15T00:00:00"),
        ('<c r="A2" t="d"><v>2024-01-15T10:00:00Z</v></c>', "2024-01-15T10:00:00Z"),
        ('<c r="A2" t="d"><v>2024-01-15T10:00</v></c>', "2024-01-15T10:00:00"),
        ('<c r="A2" t="d"><v>2024-01-15T10:00+0100</v></c>', "2024-01-15T10:00:00+0100"),
        ('<c r="A2" t="d"><v>10:00:00</v></c>', "10:00:00"),
        ('<c r="A2" t="inlineStr"><v>a</v></c>', "a"),
        ('<c r="A2" t="inlineStr"><is><t>a</t></is><v>0</v></c>', "a"),
        ('<c r="A2" t="inlineStr"><v>0</v><is><t>a</t></is></c>', "a"),
        ('<c r="A2" t=""><v>1.50</v></c>', "1.5"),
        ('<c r="a2" s=""><v>1</v></c>', "1"),
        ('<c r="$A$2" s="x"><v>1</v></c>', "1"),
        ('<c r="A2"><v><![CDATA[1]]></v><!-- one --></c>', "1"),
        (f'<c r="A2" s="{DATE}"><v>0.5</v></c>', "12:00:00"),
        (f'<c r="A2" s="{DATE}"><v>1</v></c>', "1900-01-01T00:00:00"),
        (f'<c r="A2" s="{DATE}"><v>59</v></c>', "1900-02-28T00:00:00"),
        (f'<c r="A2" s="{DATE}"><v>60</v></c>', "1900-02-29T00:00:00"),
        (f'<c r="A2" s="{DATE}"><v>61</v></c>', "1900-03-01T00:00:00"),
        (f'<c r="A2" s="{DATE}"><v>1e9</v></c>', "1000000000"),
        (f'<c r="A2" s="{DATE}"><v>-1e300</v></c>', "-1e+300"),
        (f'<c r="A2" s="{DATE}"><v>1e999</v></c>', "1e999"),
        (f'<c r="A2" s="{DATE}"><v>x</v></c>', "x"),
        (f'<c r="A2" s="{DURATION}"><v>1.5</v></c>', "1 day, 12:00:00"),
        (f'<c r="A2" s="{TEXT}"><v>45306</v></c>', "45306"),
    ],
)
def test_other_cells(tmp_path: Path, cell: str, value: object) -> None:
    rows = strings(1, "feedback_text", "feedback_id") + row(2, cell, '<c r="B2"><v>7</v></c>')
    (found,) = values(excel(tmp_path / "x.xlsx", {"Feedback": rows}))
    assert found.get("feedback_text") == value
    assert found["feedback_id"] == "7"


def test_a_percentage_is_its_fraction_and_a_number_no_date(tmp_path: Path) -> None:
    rows = strings(1, "rating", "submitted_at")
    rows += row(2, f'<c r="A2" s="{PERCENT}"><v>0.85</v></c><c r="B2"><v>45306.5</v></c>')
    assert values(excel(tmp_path / "x.xlsx", {"Feedback": rows})) == [
        {"rating": 0.85, "submitted_at": "45306.5"}
    ]


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_keeps_its_value(number: float) -> None:
    assert float(number_text(f"{number:.17g}")) == number
    assert float(number_text(repr(number))) == number


def test_empty_rows_and_columns_and_merged_cells(tmp_path: Path) -> None:
    rows = row(2) + strings(4, "feedback_id", "", "feedback_text", "", "")
    rows += row(5, '<c r="C5" t="inlineStr"><is><t>a</t></is></c>', '<c r="XFD5" s="1"/>')
    rows += row(6, '<c r="A6" s="1"/>') + row(8, '<c r="A8"><v>8</v></c>')
    rows += row(9, '<c r="C9" t="inlineStr"><is><t> </t></is></c>') + row(1_048_576)
    found = read(excel(tmp_path / "x.xlsx", {"Feedback": rows}))
    assert [(r.line, r.value) for r in found] == [
        (5, b'{"feedback_text":"a"}'),
        (8, b'{"feedback_id":"8"}'),
    ]


def test_a_value_under_no_name_is_its_rows_fault(tmp_path: Path) -> None:
    rows = strings(1, "feedback_id", "", "rating") + strings(2, "a", "", "0.5", "", "x")
    rows += strings(3, "b", "y") + strings(4, "c")
    found = read(excel(tmp_path / "x.xlsx", {"Feedback": rows}))
    assert [(r.line, r.fault) for r in found] == [
        (2, "expected nothing in column E, which has no name"),
        (3, "expected nothing in column B, which has no name"),
        (4, None),
    ]
    assert found[0].value == b'["a",null,"0.5",null,"x"]'
    assert found[0].where.endswith("x.xlsx, sheet Feedback, line 2")


def test_a_value_far_to_the_right_makes_no_long_record(tmp_path: Path) -> None:
    rows = strings(1, "feedback_id", "rating")
    for number, column in enumerate(("CX", "CY", "XFD"), 2):
        far = f'<c r="{column}{number}"><v>7</v></c>'
        rows += row(number, f'<c r="A{number}"><v>1</v></c>{far}<c r="C{number}" t="str"/>')
    found = read(excel(tmp_path / "x.xlsx", {"Feedback": rows}))
    assert [(msgspec.json.decode(r.value), r.fault) for r in found] == [
        (
            ["1", *[None] * ((101 if column == "CX" else 102) - 1), "7"],
            f"expected nothing in column {column}, which has no name",
        )
        for column in ("CX", "CY", "XFD")
    ]


def test_sheets_that_are_left_out_and_said_so(tmp_path: Path) -> None:
    columns = [column.name.upper() for column in ENTITIES["feedback"].columns]
    path = excel(
        tmp_path / "x.xlsx",
        {
            "Notes": strings(1, "call Ben"),
            "Empty": "",
            "Mine": strings(3, *columns) + strings(4, "a"),
            "Old": strings(1, *columns) + strings(2, "b"),
            "users": strings(1, "Id") + strings(2, "c"),
            " check-INS (2)": strings(1, "note") + strings(1, "d"),
        },
        states={"Old": "hidden"},
    )
    lines: list[str] = []
    with pytest.raises(
        UsageError,
        match=r"sheet  check-INS \(2\), row 1: not one column of checkins .* no title",
    ):
        for _ in read_workbook(path, None, notice=lines.append):
            pass
    assert lines[:3] == [
        f"{path}, sheet Notes: left out, its name and its columns are of no entity",
        f"{path}, sheet Empty: left out, it is empty",
        f"{path}, sheet Old: left out, it is hidden",
    ]
    lines.clear()
    assert [r.sheet for r in read_workbook(path, ENTITIES["feedback"], notice=lines.append)] == [
        "Mine"
    ]
    assert f"{path}, sheet users: left out, it is of users" in lines
    assert [(r.sheet, r.line) for r in read(path, "users")] == [("users", 2)]


def test_a_workbook_without_any_sheet_of_ours(tmp_path: Path) -> None:
    path = excel(tmp_path / "x.xlsx", {"Notes": strings(1, "call Ben")})
    for entity in (None, "users"):
        with pytest.raises(UsageError, match="no sheet of it can be read") as error:
            read(path, entity)
        assert "sheet Notes: left out, its name and its columns are of no entity" in str(
            error.value
        )
    with pytest.raises(UsageError, match="sheet Users: left out, it is empty"):
        read(excel(tmp_path / "y.xlsx", {"Users": "", "Sheet2": ""}))
    with pytest.raises(UsageError, match=r"of users, .*sheet Matches: left out, it is of matches"):
        read(excel(tmp_path / "z.xlsx", {"Matches": strings(1, "match_id")}), "users")


def test_sheets_out_of_order_are_judged_in_the_order_of_entities(tmp_path: Path) -> None:
    sheets = {
        "Feedback": strings(1, "feedback_id") + strings(2, "a"),
        "Users": strings(1, "id") + strings(2, "b"),
    }
    lines: list[str] = []
    one = input_file(excel(tmp_path / "x.xlsx", sheets), None)
    found = in_entity_order([one], notice=lines.append)
    assert [record.entity for record in found] == ["users", "feedback"]
    assert any("no column email, first_name" in line for line in lines)


def test_parts_without_rows_may_be_of_any_kind(tmp_path: Path) -> None:
    rows = strings(1, "feedback_id") + strings(2, "a")
    parts = {
        "customXml/item1.xml": "<!DOCTYPE x><x/>".encode("utf-16"),
        "docProps/core.xml": b"<broken",
        "xl/media/image1.png": bytes(17 << 20),
        "other.bin": bytes(17 << 20),
    }
    assert len(read(excel(tmp_path / "x.xlsx", {"Feedback": rows}, parts=parts))) == 1


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ('<row r="1"><c r="1A"/></row>', "a cell without a place"),
        ('<row r="2"><c r="XFE2"><v>1</v></c></row>', "row 1: column 16385 of at most 16384"),
        ("<row>" + "<c/>" * 16_384 + "<c><v>1</v></c></row>", "row 1: column 16385"),
        ('<row r="1"><c r="A1"', "cannot be read"),
        ("<row><c><v>&undefined;</v></c></row>", "cannot be read"),
        ("<row>" + "<x>" * 60, "cannot be read beyond row 1"),
        ("<!-- <row>", "row 1: broken XML .unclosed token"),
        ("\0", "row 1: broken XML .not well-formed"),
    ],
)
def test_rows_that_no_spreadsheet_writes(tmp_path: Path, rows: str, fault: str) -> None:
    path = excel(tmp_path / "x.xlsx", {"Feedback": strings(1, "feedback_id") + rows})
    with pytest.raises(UsageError, match=fault) as error:
        read(path)
    assert "\n" not in str(error.value)


def test_an_encrypted_workbook(tmp_path: Path) -> None:
    path = tmp_path / "x.xlsx"
    path.write_bytes(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    with pytest.raises(UsageError, match="an old workbook"):
        read(path)


def test_cells_that_openpyxl_writes(tmp_path: Path) -> None:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.title = "Feedback"
    sheet.append(["feedback_id", "rating", "submitted_at", "feedback_text"])
    sheet.append([1, 1.0, date(2024, 1, 15), "=1+1"])
    sheet.append([2.0, 0.25, datetime(2024, 1, 15, 10, tzinfo=UTC).replace(tzinfo=None), True])
    sheet.append(["3", None, time(10), "#N/A"])
    sheet["B3"].number_format = "0%"
    book.save(tmp_path / "x.xlsx")
    assert values(tmp_path / "x.xlsx") == [
        {
            "feedback_id": "1",
            "rating": 1,
            "submitted_at": "2024-01-15T00:00:00",
            "feedback_text": "=1+1",
        },
        {
            "feedback_id": "2",
            "rating": 0.25,
            "submitted_at": "2024-01-15T10:00:00",
            "feedback_text": True,
        },
        {"feedback_id": "3", "submitted_at": "10:00:00", "feedback_text": "#N/A"},
    ]
