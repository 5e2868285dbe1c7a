"""`buddy check` on files made by hand: what it prints, and what it says beside."""

from __future__ import annotations

import gzip
import io
import json
import sys
from datetime import datetime
from pathlib import Path

import openpyxl
import pytest

from tests.unit.core_kit import uid
from worker.cli.main import run

HEADER = ("Id", " email ", "First_Name", "last_name", "role", "joined_at", "Shoe size")


@pytest.fixture
def members(tmp_path: Path) -> Path:
    book = openpyxl.Workbook()
    sheet = book.worksheets[0]
    sheet.title = "Members 2024"
    sheet.append(HEADER)
    joined = datetime(2024, 1, 15, 10)  # noqa: DTZ001
    sheet.append((uid(1), "Ada@example.org", "Ada", "Moe", "participant", joined, 38))
    sheet.append(())
    sheet.append((uid(2), "ben@", "Ben", "Roy", "mentor", joined, 44))
    sheet.append((uid(3), "c@example.org", "Cy", "Lee", "buddy", "15.1.2024", None, "late"))
    sheet.append((uid(4), "d@example.org", True, "Poe", "buddy", joined))
    book.create_sheet("Notes").append(("call Ben",))
    path = tmp_path / "members.xlsx"
    book.save(path)
    return path


def cells(output: str) -> list[list[str]]:
    """The rows of the tables in an output."""
    return [
        [cell.strip() for cell in line.strip("│┃").split("│" if "│" in line else "┃")]
        for line in output.splitlines()
        if line.startswith(("│", "┃"))
    ]


def test_what_is_left_out_of_a_directory_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "users.ndjson").write_text("")
    (tmp_path / "matches.jsonl").write_text("bad\n")
    (tmp_path / "events.txt").write_text("event_id\tmatch_id\tevent_type\tevent_date\nbad\t\t\t\n")
    (tmp_path / "feedback.xls").write_text("x\n")
    (tmp_path / "sub").mkdir()
    assert run(["check", str(tmp_path), "--json"]) == 1
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["rejected"] == {"matches": 1, "events": 1}
    xls, sub = found["notices"]
    assert str(tmp_path / "feedback.xls") in xls
    assert str(tmp_path / "sub") in sub
    assert printed.err == f"buddy: {xls}\nbuddy: {sub}\n"


def test_a_spreadsheet_with_faults(
    members: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(members.parent)
    assert run(["check", "members.xlsx"]) == 1
    printed = capsys.readouterr()
    assert "Wrong in members.xlsx, sheet Members 2024" in printed.out
    address = "expected an address such as name@example.org"
    assert cells(printed.out)[:7] == [
        ["line", "column", "code", "expected"],
        ["4", "email", "invalid_email", address],
        ["", "role", "invalid_enum", "expected one of participant, buddy"],
        ["", "joined_at", "naive_timestamp", "has no UTC offset: read as UTC"],
        ["5", "", "malformed_record", "expected nothing in column H, which has no name"],
        ["6", "first_name", "wrong_type", "expected a string"],
        ["", "joined_at", "naive_timestamp", "has no UTC offset: read as UTC"],
    ]
    assert "1 accepted with the warning naive_timestamp: --warnings FILE lists it." in printed.out
    assert printed.out.endswith("1 accepted, 3 rejected.\n")
    assert printed.err.splitlines() == [
        "buddy: members.xlsx, sheet Notes: left out, its name and its columns are of no entity",
        "buddy: members.xlsx, sheet Members 2024, row 1: no column of users, left out: Shoe size",
    ]


def test_a_workbook_of_other_entities(members: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["check", str(members), "--entity", "feedback"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "sheet Members 2024: left out, it is of users" in printed.err


def test_the_place_of_a_rejection_and_of_a_warning(members: Path, tmp_path: Path) -> None:
    rejected, warned = tmp_path / "rejected.ndjson", tmp_path / "warned.ndjson"
    options = ["--rejected", str(rejected), "--warnings", str(warned), "--json"]
    assert run(["check", str(members), *options]) == 1
    place = {"path": str(members), "sheet": "Members 2024"}
    told = [json.loads(line)["source"] for line in rejected.read_bytes().splitlines()]
    assert told == [place | {"line": line} for line in (4, 5, 6)]
    (warning,) = [json.loads(line) for line in warned.read_bytes().splitlines()]
    assert warning["source"] == place | {"line": 2}


def test_what_a_header_lacks_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "users.csv.gz"
    path.write_bytes(gzip.compress(b"id;rating\n1;2\n"))
    assert run(["check", str(path)]) == 1
    printed = capsys.readouterr()
    assert [line.partition("users.csv.gz:1: ")[2] for line in printed.err.splitlines()] == [
        "no column email, first_name, last_name, role, joined_at, which users must have",
        "no column of users, left out: rating",
    ]


def test_rejections_stay_one_a_line_where_records_take_several(tmp_path: Path) -> None:
    path, rejected = tmp_path / "users.json", tmp_path / "rejected.ndjson"
    path.write_text('[{\n  "id": "1",\r\n  "email":\n"a\\nb"\n}, {\n"id\n": 1}]')
    assert run(["check", str(path), "--rejected", str(rejected), "--json"]) == 1
    first, second = [json.loads(line) for line in rejected.read_bytes().splitlines()]
    assert first["record"] == {"id": "1", "email": "a\nb"}
    assert first["source"] == {"path": str(path), "line": 1}
    assert second["record"] is None
    assert second["source"] == {"path": str(path), "line": 5}


def test_standard_input_may_be_packed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = gzip.compress(b"\xff\xfe" + "{}\n".encode("utf-16-le"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run(["check", "-", "--entity", "users", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["rejected"] == {"users": 1}


@pytest.mark.parametrize(
    ("name", "data", "fault"),
    [
        ("x.xlsx", b"PK\x03\x04", "not an XLSX workbook that can be read"),
        ("x.xls", b"\xd0\xcf\x11\xe0", "save it as .xlsx"),
        ("users.csv", b"PK\x03\x04", "is a ZIP archive"),
        ("users.csv", b"\xff\xfe\0\0i\0\0\0", "is UTF-32"),
        ("users.ndjson.gz", b"\x1f\x8b\0\0", "its gzip is broken"),
        ("users.csv", b"\xe9\xe8,\xe7\n", "not one column of users"),
        ("x.json", b"[{}]", "an array does not tell its entity"),
    ],
)
def test_a_hostile_file_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, data: bytes, fault: str
) -> None:
    path = tmp_path / name
    path.write_bytes(data)
    assert run(["check", str(path)]) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(f"buddy: {path}")
    assert fault in printed.err
    assert not printed.out


@pytest.fixture
def cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a file of users whose last row is gone."""
    monkeypatch.chdir(tmp_path)
    row = f"{uid(1)},a@example.org,Ada,Moe,buddy,2024-01-15T10:00:00Z"
    header = "id,email,first_name,last_name,role,joined_at"
    (tmp_path / "users.csv").write_text(f"# Total Records: 2\n{header}\n{row}\n")
    return tmp_path


def test_a_file_that_holds_less_than_it_states(
    cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = "users.csv says 2 records and holds 1"
    assert run(["check", "users.csv"]) == 1
    printed = capsys.readouterr()
    assert printed.err == f"buddy: {line}\n"
    assert printed.out.endswith(
        "1 accepted, 0 rejected.\n"
        "1 mismatch between files and what is stated of them: see standard error.\n"
    )
    assert run(["check", "users.csv", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert (found["accepted"], found["rejected"]) == ({"users": 1}, {})
    assert found["notices"] == [line]
    mismatch = {"path": "users.csv", "message": line, "entity": "users", "stated": 2, "held": 1}
    assert found["mismatches"] == [mismatch]
    assert run(["check", "users.csv", "--github"]) == 1
    assert capsys.readouterr().out == f"::error file=users.csv,title=mismatch::{line}\n"


def test_a_document_that_is_read_several_times_is_told_once(
    cut: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    document = {"export_metadata": {"record_counts": {"users": 5}}, "matches": [], "users": []}
    (cut / "x.json").write_text(json.dumps(document))
    assert run(["check", "users.csv", "x.json", "x.json", "--json"]) == 1
    found = json.loads(capsys.readouterr().out)["mismatches"]
    assert [one["message"] for one in found] == [
        "x.json says 5 records of users and holds 0",
        "users.csv says 2 records and holds 1",
    ]


def test_files_that_hold_what_they_state(cut: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (cut / "users.csv").read_text()
    (cut / "users.csv").write_text(text.replace("Records: 2", "Records: 1"))
    assert run(["check", "users.csv", "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out)["mismatches"] == []
    assert printed.err == ""
