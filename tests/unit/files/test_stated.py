"""Files that hold other records than they, or the export around them, state."""

from __future__ import annotations

import gzip
import json
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.export_kit import FEWER, drained, export_to, exports, feedback, metadata_of, user
from worker.exports.formats.csv import csv_chunks
from worker.exports.formats.json import json_chunks
from worker.exports.formats.xlsx import xlsx_chunks
from worker.exports.layout import Format
from worker.exports.manifest import encode, read_manifest
from worker.files import Mismatch, expand, in_entity_order
from worker.files.sources import InputFile

USERS = [user(id=f"550e8400-e29b-41d4-a716-44665544000{n}") for n in range(5)]
TABLES = {"users": USERS, "feedback": [feedback()]}
HEADER = "id,email,first_name,last_name,role,joined_at,language_preference,interests,location\n"
ROW = "1,a@example.org,Ada,Moe,buddy,2024-01-15T10:00:00Z,,,Oslo\n"
BASE = "buddy_export_2025-11-22"


def read(*paths: Path, entity: str | None = None) -> tuple[list[Mismatch], list[str]]:
    """The mismatches and notices of reading these paths as `check` does."""
    found: list[Mismatch] = []
    lines: list[str] = []
    sources = expand(paths, entity, lines.append, found.append)
    for _ in in_entity_order(sources, notice=lines.append, mismatch=found.append):
        pass
    return found, lines


def told(*paths: Path, entity: str | None = None) -> list[str]:
    """The lines of the mismatches, with the names of files for their paths."""
    found, _ = read(*paths, entity=entity)
    return [one.message.replace(one.path, Path(one.path).name) for one in found]


def put(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, newline="")
    return path


Lossy = dict[str, tuple[list[bytes], list[bytes]]]


@st.composite
def lossy(draw: st.DrawFn) -> Lossy:
    """By entity, all rows, and those that are left after any of them were removed."""
    tables = draw(exports)
    return {
        name: (rows, [row for row in rows if draw(st.integers(0, 2))])
        for name, rows in tables.items()
    }


def mismatches(tables: Lossy, path: Path, *, of: bool) -> Iterator[Mismatch]:
    for name, (rows, left) in tables.items():
        if len(rows) != len(left):
            records = "1 record" if len(rows) == 1 else f"{len(rows)} records"
            records += f" of {name}" if of else ""
            text = f"{path} says {records} and holds {len(left)}"
            yield Mismatch(str(path), text, name, len(rows), len(left))


@FEWER
@given(tables=lossy())
def test_every_removed_row_is_counted(tables: Lossy) -> None:
    stated = metadata_of({name: rows for name, (rows, _) in tables.items()})
    kept = [(ENTITIES[name], [left]) for name, (_, left) in tables.items()]
    with tempfile.TemporaryDirectory() as folder:
        for entity, blocks in kept:
            path = Path(folder, f"{entity.name}.csv")
            path.write_bytes(drained(csv_chunks(entity, stated, blocks))[0])
            one = {entity.name: tables[entity.name]}
            assert read(path) == ([*mismatches(one, path, of=False)], [])
        document, workbook = Path(folder, "x.json"), Path(folder, "x.xlsx")
        document.write_bytes(drained(json_chunks(stated, kept))[0])
        workbook.write_bytes(drained(xlsx_chunks(stated, kept, max_rows=3))[0])
        for path in (document, workbook) if tables else (document,):
            assert read(path)[0] == [*mismatches(tables, path, of=True)]
            for name in tables:
                one = {name: tables[name]}
                assert read(path, entity=name)[0] == [*mismatches(one, path, of=False)]


@FEWER
@given(tables=exports, guard=st.booleans())
def test_no_export_of_ours_has_a_mismatch(tables: dict[str, list[bytes]], guard: bool) -> None:
    for kind in ("csv", "json", "xlsx"):
        with tempfile.TemporaryDirectory() as folder:
            directory = export_to(
                Path(folder), tables, kind, guard_formulas=guard, max_sheet_rows=4
            )
            if tables:
                (line,) = read(directory)[1]
                assert read(directory) == ([], [line])
                assert line.endswith("left out: SHA256SUMS")
            if tables and kind == "csv":
                assert read(directory / BASE) == ([], [])


@pytest.mark.parametrize(
    ("comments", "stated"),
    [
        ("# Total Records: 3\n", 3),
        ("# Total Records: 0\n", 0),
        ("#total records:3\r\n", 3),
        ("# Total Records: 3,,,,,,,,\n", 3),
        ('"# Total Records: 3";;\n', 3),
        ("# Total Records: 3\n# Total Records: 3\n", 3),
        ("Users of 2024\n\n# Total Records: 3\n", 3),
        ("role\n# Total Records: 3\n", 3),
        ("# Total Records: 3\nrole\n", 3),
        ("# Total Records: 2\n", None),
        ("# Total Records: 1 500\n", None),
        ("# Total Records: 1.500\n", None),
        ("# Total Records: many\n", None),
        ("# Total Records: -3\n", None),
        ("# Total Records: ٣\n", None),
        ("# Total Records: " + "9" * 5000 + "\n", None),
        ("# Total Records:\n", None),
        ("# Sum of Total Records: 3\n", None),
        ("# Total Records: 3\n# Total Records: 4\n", None),
        ("Total Records: 3\n", None),
        ("", None),
    ],
)
def test_the_comment_of_a_csv_file(tmp_path: Path, comments: str, stated: int | None) -> None:
    path = put(tmp_path / "users.csv", comments + HEADER + ROW * 2)
    lines = [] if stated is None else [f"users.csv says {stated} records and holds 2"]
    assert told(path) == lines


def test_a_comment_below_the_header_states_nothing(tmp_path: Path) -> None:
    """Two exports in one file: the comments of the second one are rows, which are rejected."""
    one = f"# Buddy Program Export\n# Total Records: 2\n{HEADER}{ROW * 2}"
    path = put(tmp_path / "users.csv", one + one)
    assert told(path) == ["users.csv says 2 records and holds 7"]
    path = put(tmp_path / "users.csv", f"# Total Records: 3\n{HEADER}{ROW * 2}# Total Records: 9\n")
    assert told(path) == []


def test_a_row_that_is_cut_off(tmp_path: Path) -> None:
    """Cells may be missing, and the last line end may be; not both of them in an export."""
    text = f"# Total Records: 2\n{HEADER}{ROW * 2}"
    assert told(put(tmp_path / "users.csv", text[:-1])) == []
    assert told(put(tmp_path / "users.csv", text[: -len(",,Oslo\n")])) == [
        "users.csv ends within a row: its last record is cut off"
    ]
    assert told(put(tmp_path / "users.csv", text[: -len(",,Oslo\n")] + "\r")) == []
    assert told(put(tmp_path / "users.csv", (HEADER + ROW)[: -len(",,Oslo\n")])) == []


@pytest.mark.parametrize(
    ("metadata", "lines"),
    [
        ({"record_counts": {"users": 1}}, []),
        ({"record_counts": {"users": 2}}, ["x.json says 2 records of users and holds 1"]),
        ({"record_counts": {"matches": 1}}, ["x.json says 1 record of matches and holds 0"]),
        ({"record_counts": {"matches": 0, "pets": 7}}, []),
        ({"record_counts": {"users": "2"}}, []),
        ({"record_counts": {"users": True}}, []),
        ({"record_counts": {"users": -2}}, []),
        ({"record_counts": {"users": 1e3}}, []),
        ({"record_counts": [2]}, []),
        ({"record_counts": {"users": 2}, "note": "x" * (1 << 20)}, []),
        ({}, []),
        (["users"], []),
        (None, []),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_the_metadata_of_a_document(
    tmp_path: Path, metadata: Any, lines: list[str], first: bool
) -> None:
    about: dict[str, Any] = {"export_metadata": metadata}
    rows: dict[str, Any] = {"users": [{}]}
    document = about | rows if first else rows | about
    assert told(put(tmp_path / "x.json", json.dumps(document))) == lines


def test_metadata_that_is_no_json_states_nothing(tmp_path: Path) -> None:
    for metadata in (
        '{"record_counts": {"users": 2, }}',
        '{"record_counts": 1e}',
        "[" * 9 + "]" * 9,
    ):
        text = f'{{"export_metadata": {metadata}, "users": []}}'
        assert told(put(tmp_path / "x.json", text)) == []


def workbook(folder: Path, change: Callable[[openpyxl.Workbook], object]) -> Path:
    """The workbook of an export with three parts of users, saved by another program."""
    path = export_to(folder, TABLES, "xlsx", max_sheet_rows=3) / f"{BASE}.xlsx"
    book = openpyxl.load_workbook(path)
    assert book.sheetnames[1:4] == ["Users", "Users (2)", "Users (3)"]
    change(book)
    book.save(folder / "x.xlsx")
    return folder / "x.xlsx"


def hide(book: openpyxl.Workbook, title: str) -> None:
    book[title].sheet_state = "hidden"


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        (lambda book: None, []),
        (lambda book: book["Users"].delete_rows(2), ["5 records of users and holds 4"]),
        (lambda book: book.remove(book["Users (2)"]), ["5 records of users and holds 3"]),
        (lambda book: book.remove(book["Feedback"]), ["1 record of feedback and holds 0"]),
        (lambda book: hide(book, "Export Metadata"), []),
        (lambda book: book["Export Metadata"].delete_cols(2), []),
        (lambda book: book["Export Metadata"].insert_rows(1, 200), []),
    ],
)
def test_the_sheet_of_metadata(
    tmp_path: Path, change: Callable[[openpyxl.Workbook], object], lines: list[str]
) -> None:
    assert told(workbook(tmp_path, change)) == [f"x.xlsx says {line}" for line in lines]


def test_a_hidden_sheet_is_left_out_in_one_line(tmp_path: Path) -> None:
    path = workbook(tmp_path, lambda book: hide(book, "Users (2)"))
    found, lines = read(path)
    assert not found
    assert set(lines) == {f"{path}, sheet Users (2): left out, it is hidden"}


def test_a_missing_part_of_a_continued_sheet(tmp_path: Path) -> None:
    """Without the metadata, the numbers of the sheets are all there is to go by."""

    def change(book: openpyxl.Workbook) -> None:
        book.remove(book["Export Metadata"])
        book.remove(book["Users (2)"])
        book["Feedback"].title = "Feedback (2024)"

    path = workbook(tmp_path, change)
    found, lines = read(path)
    assert not found
    assert set(lines) == {f"{path}: sheet Users (3) is there, but no sheet Users (2)"}
    assert read(path, entity="feedback")[1] == [
        f"{path}, sheet {title}: left out, it is of users" for title in ("Users", "Users (3)")
    ]


def cut_rows(path: Path) -> None:
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-2]))


def cut_rows_and_comment(path: Path) -> None:
    cut_rows(path)
    path.write_text(path.read_text().replace("Total Records: 5", "Total Records: 3"))


def without_rows(path: Path) -> None:
    document = json.loads(path.read_text())
    document["users"] = document["users"][:2]
    document["export_metadata"]["record_counts"]["users"] = 2
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("kind", "name", "change", "lines"),
    [
        ("csv", f"{BASE}/users.csv", cut_rows, ["users.csv says 5 records and holds 3"]),
        (
            "csv",
            f"{BASE}/users.csv",
            cut_rows_and_comment,
            ["users.csv holds 3 records, and manifest.json says 5"],
        ),
        (
            "csv",
            f"{BASE}/users.csv",
            lambda path: path.write_text(path.read_text().replace("Alice", "Ada")),
            ["users.csv has 803 bytes, and manifest.json says 813"],
        ),
        (
            "csv",
            f"{BASE}/users.csv",
            lambda path: path.write_text(path.read_text().replace("Alice", "Elise")),
            ["users.csv has changed since the export: manifest.json says another SHA-256"],
        ),
        (
            "json",
            f"{BASE}.json",
            without_rows,
            [f"{BASE}.json holds 2 records of users, and manifest.json says 5"],
        ),
        (
            "xlsx",
            f"{BASE}.xlsx",
            lambda path: path.write_bytes(path.read_bytes() + b"\0"),
            [f"{BASE}.xlsx has … bytes, and manifest.json says …"],
        ),
    ],
)
def test_the_manifest_of_an_export(
    tmp_path: Path, kind: Format, name: str, change: Callable[[Path], object], lines: list[str]
) -> None:
    directory = export_to(tmp_path, TABLES, kind)
    change(directory / name)
    found = told(directory)
    if kind == "xlsx":  # its size depends on zlib
        assert [re.sub(r" [0-9]+(?= bytes|$)", " …", line) for line in found] == lines
    else:
        assert found == lines
    only = told(directory, entity="users")
    assert only == [line.replace(" of users", "") for line in found]
    others = told(directory, entity="feedback")
    assert others == [] if kind == "csv" else len(others) == 1, "a document is one file"


def test_an_export_that_is_not_complete(tmp_path: Path) -> None:
    directory = export_to(tmp_path, TABLES, "csv")
    made = read_manifest(directory)
    pending = {"users": {0: 2, 1: 1}}
    changed = json.loads(encode(made)) | {"complete": False, "pending": pending}
    (directory / "manifest.json").write_text(json.dumps(changed))
    found, lines = read(directory)
    assert not found
    assert lines[1] == (
        f"{directory}: the export is not complete: when it was made, 3 records of the inputs were "
        "not judged"
    )


def test_the_metadata_beside_csv_files(tmp_path: Path) -> None:
    folder = export_to(tmp_path, TABLES, "csv") / BASE
    users = folder / "users.csv"
    text = users.read_text()
    users.write_text(text.partition("# Version: 1.0.0\n")[2].rpartition("550e")[0])
    assert told(folder) == ["users.csv holds 4 records, and metadata.json says 5"]
    assert told(folder, entity="feedback") == []
    (folder / "users.csv.gz").write_bytes(gzip.compress(users.read_bytes()))
    users.unlink()
    assert told(folder) == ["users.csv.gz holds 4 records, and metadata.json says 5"]
    (folder / "users.csv.gz").unlink()
    found, _ = read(folder)
    path = str(folder / "metadata.json")
    text = f"{path} says 5 records of users, and no file beside it holds any"
    assert found == [Mismatch(path, text, "users", 5, 0)]
    assert told(folder, entity="feedback") == []
    put(folder / "users.ndjson", "{}\n")
    assert told(folder) == []
    (folder / "users.ndjson").unlink()
    put(folder / "x.json", '{"users": []}')
    assert told(folder) == []


def test_metadata_that_is_a_pipe_is_not_opened(tmp_path: Path) -> None:
    put(tmp_path / "users.csv", HEADER + ROW)
    os.mkfifo(tmp_path / "metadata.json")
    found, lines = read(tmp_path)
    assert not found
    assert lines == [f"left out: {tmp_path / 'metadata.json'}: no file"]


def test_a_file_that_is_not_read_to_its_end_is_not_judged(tmp_path: Path) -> None:
    found: list[Mismatch] = []
    path = put(tmp_path / "users.csv", f"# Total Records: 5\n{HEADER}{ROW * 2}")
    records = InputFile(path, "users", "csv").read(mismatch=found.append)
    next(records)
    records.close()  # type: ignore[attr-defined]
    assert not found
