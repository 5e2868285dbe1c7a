"""Which files a path means, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from schemas import ENTITIES
from tests.unit.test_export_csv import user
from tests.unit.test_export_samples import export_to
from tests.unit.test_export_xlsx import feedback
from worker.errors import UsageError
from worker.exports.layout import Format
from worker.files import Source, expand, read, source

TABLES = {"users": [user()], "feedback": [feedback()]}
FEEDBACK = ",".join(column.name for column in ENTITIES["feedback"].columns)


def put(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("name", "entity", "expected"),
    [
        ("users.ndjson", None, ("users", "ndjson")),
        ("users.NDJSON", None, ("users", "ndjson")),
        ("users.ndjson", "matches", ("matches", "ndjson")),
        ("records.txt", "matches", ("matches", "ndjson")),
        ("records", "matches", ("matches", "ndjson")),
        ("skill_sessions.csv", None, ("skill_sessions", "csv")),
        ("buddy_event_attendance_2025-11-22.csv", None, ("event_attendance", "csv")),
        ("anything.csv", None, ("feedback", "csv")),
        ("anything.csv", "feedback", ("feedback", "csv")),
        ("buddy_export_2025-11-22.json", None, (None, "json")),
        ("x.json", "users", ("users", "json")),
        ("x.xlsx", None, (None, "xlsx")),
        ("x.XLSM", None, (None, "xlsx")),
        ("members.tsv", None, ("feedback", "csv")),
        ("members.txt", None, ("feedback", "csv")),
        ("members.TXT.gz", "feedback", ("feedback", "csv")),
        ("users.json.gz", None, ("users", "json")),
        ("feedback.ndjson.gz", None, ("feedback", "ndjson")),
        ("buddy_users_2025-11-22.csv.gz", None, ("users", "csv")),
    ],
)
def test_a_file_is_told_by_its_name(
    tmp_path: Path, name: str, entity: str | None, expected: tuple[str | None, str]
) -> None:
    found = source(put(tmp_path / name, FEEDBACK), entity)
    assert (found.entity, found.format) == expected


@pytest.mark.parametrize(
    ("name", "text", "entity", "fault"),
    [
        ("pets.ndjson", "", None, "--entity"),
        ("users.txt", "", None, "--entity"),
        ("x.csv", "a,b", None, "--entity"),
        ("x.csv", "", None, "--entity"),
        ("users.ndjson", "", "pets", "pets is no entity; there are users, "),
        ("missing/", "", None, "nothing to read"),
        ("x.xls", "", None, "save it as .xlsx"),
        ("x.xlsx.gz", "", None, "--entity"),
        ("x.txt", "a,b", None, "--entity"),
    ],
)
def test_what_cannot_be_told_is_one_line(
    tmp_path: Path, name: str, text: str, entity: str | None, fault: str
) -> None:
    path = tmp_path / name
    path.mkdir() if name.endswith("/") else put(path, text)
    with pytest.raises(UsageError, match=fault) as error:
        expand([path], entity)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "entity", "expected"),
    [
        ("users.json", "[{}]", None, "users"),
        ("users.json", ' {\n "id": 1}', None, "users"),
        ("users.json", "[{}]", "matches", "matches"),
        ("users.json", '{"users": []}', None, None),
        ("users.json", '{"users": []}', "users", "users"),
        ("x.json", "[{}]", "users", "users"),
        ("x.json", "[{}]", None, None),
    ],
)
def test_what_a_json_document_says_of_itself(
    tmp_path: Path, name: str, text: str, entity: str | None, expected: str | None
) -> None:
    found = source(put(tmp_path / name, text), entity)
    assert (found.entity, found.format) == (expected, "json")


def test_lock_files_of_excel_are_none_of_ours(tmp_path: Path) -> None:
    put(tmp_path / "a" / "~$members.xlsx")
    put(tmp_path / "a" / "members.xlsx")
    assert [one.path.name for one in expand([tmp_path / "a"], None)] == ["members.xlsx"]


def test_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"users\.ndjson: no such file"):
        expand([tmp_path / "users.ndjson"], None)
    with pytest.raises(UsageError, match="no such file"):
        list(read(tmp_path / "x.json", None))
    for kind in ("ndjson", "csv", "json", "xlsx"):
        gone = Source(tmp_path / "gone", "users", kind)
        with pytest.raises(UsageError, match="gone: cannot be read: No such file"):
            list(gone.read())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_what_may_not_be_read(tmp_path: Path) -> None:
    path = put(tmp_path / "users.ndjson")
    path.chmod(0)
    with pytest.raises(UsageError, match="Permission denied"):
        list(read(path, None))


def test_files_come_in_the_order_of_entities_then_of_names(tmp_path: Path) -> None:
    names = ["b/users.ndjson", "a/users.ndjson", "milestones.ndjson", "matches.csv", "x.json"]
    found = expand([put(tmp_path / name) for name in names], None)
    order = ["x.json", "a/users.ndjson", "b/users.ndjson", "matches.csv", "milestones.ndjson"]
    assert [one.path for one in found] == [tmp_path / name for name in order]
    given = expand([put(tmp_path / name) for name in ("z.txt", "y.txt")], "users")
    assert [one.path.name for one in given] == ["y.txt", "z.txt"]


def test_a_directory_of_ndjson(tmp_path: Path) -> None:
    for name in ("feedback.ndjson", "users.ndjson", "README.md", ".hidden.ndjson", "sub/x.ndjson"):
        put(tmp_path / name, "{}\n")
    found = expand([tmp_path], None)
    assert [one.path.name for one in found] == ["users.ndjson", "feedback.ndjson"]
    put(tmp_path / "pets.ndjson")
    with pytest.raises(UsageError, match=r"pets\.ndjson"):
        expand([tmp_path], None)


def test_a_directory_of_two_kinds_is_ambiguous(tmp_path: Path) -> None:
    put(tmp_path / "users.ndjson")
    put(tmp_path / "users.csv")
    with pytest.raises(UsageError, match="holds csv and ndjson files"):
        expand([tmp_path], None)


@pytest.mark.parametrize(
    ("formats", "names"),
    [
        (("csv", "json", "xlsx"), ["buddy_export_2025-11-22.json"]),
        (("csv", "xlsx"), ["users.csv", "feedback.csv"]),
        (("xlsx",), ["buddy_export_2025-11-22.xlsx"]),
    ],
)
def test_a_finished_export_is_read_once(
    tmp_path: Path, formats: tuple[Format, ...], names: list[str]
) -> None:
    directory = export_to(tmp_path, TABLES, *formats)
    found = expand([directory], None)
    assert [one.path.name for one in found] == names
    assert [r.entity for one in found for r in one.read()] == ["users", "feedback"]
    only = [r.entity for one in expand([directory], "feedback") for r in one.read()]
    assert only == ["feedback"]


def test_the_folder_of_csv_files_of_an_export(tmp_path: Path) -> None:
    directory = export_to(tmp_path, TABLES, "csv") / "buddy_export_2025-11-22"
    assert [one.path.name for one in expand([directory], None)] == ["users.csv", "feedback.csv"]
