"""Which files a path means, and in which order."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from schemas import ENTITIES
from tests.unit.export_kit import export_to, feedback, user
from worker.errors import UsageError
from worker.exports.layout import Format
from worker.files import InputFile, expand, in_entity_order, input_file, read

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
        ("records.txt", "matches", ("matches", "csv")),
        ("records.txt", "users", ("users", "ndjson")),
        ("Users.JSONL", None, ("users", "ndjson")),
        ("matches.jsonl.gz", None, ("matches", "ndjson")),
        ("buddy_users_2025-11-22.ndjson", None, ("users", "ndjson")),
        ("matches.txt", None, ("feedback", "csv")),
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
    content = {"users.json.gz": '{"id": 1}', "buddy_export_2025-11-22.json": "{}"}.get(
        name, FEEDBACK
    )
    found = input_file(put(tmp_path / name, content), entity)
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
        ("x.json", "", None, "--entity"),
        ("x.json", " [{}]", None, "an array does not tell its entity"),
        ("x.json", '{"a":1}', None, "say --entity, or name the file <entity>.json"),
        ("x.json", "<!doctype html>", None, "is an HTML page"),
        ("x.xls", "<html><table>", None, "is an HTML page: open it in a spreadsheet"),
        ("x.xls", "id\tname", None, "or name a text"),
        ("x.xls", "PK\3\4", None, r"a workbook is named \*.xlsx"),
        ("x.xlsx", '<?xml version="1.0"?><Workbook>', None, "is a spreadsheet in XML"),
        ("x.xlsx", "<table>", "users", "is an HTML page"),
        ("x.xls", "<table>", "users", "is an HTML page"),
        ("x.ods", "PK\3\4", None, "save it as .xlsx"),
        ("x.csv", "%PDF-1.7", None, "x.csv: is a PDF"),
        ("x.txt", "<html>", None, "x.txt: is an HTML page"),
        ("users.json", '{"data": [{"id": 1}]}', None, "in its field data"),
        (
            "x.json",
            '{"ok": true, "page": {"n": 1}, "items": [{}], "x": [',
            "users",
            "in its field items",
        ),
        ("users.json", '{"response": {"users": []}}', None, "stand deeper in it"),
        ("users.json", '{"Users\u200b": [{"id": 1}]}', None, r"in its field Users\\u200b"),
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
        ("users.json", '{"tags": [{}], "id": 1}', None, "users"),
        ("users.json", '{"a": 1}', None, "users"),
    ],
)
def test_what_a_json_document_says_of_itself(
    tmp_path: Path, name: str, text: str, entity: str | None, expected: str | None
) -> None:
    found = input_file(put(tmp_path / name, text), entity)
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
        gone = InputFile(tmp_path / "gone", "users", kind)
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
    found = expand([put(tmp_path / name, "{}") for name in names], None)
    order = ["x.json", "a/users.ndjson", "b/users.ndjson", "matches.csv", "milestones.ndjson"]
    assert [one.path for one in found] == [tmp_path / name for name in order]
    given = expand([put(tmp_path / name) for name in ("z.txt", "y.txt")], "users")
    assert [one.path.name for one in given] == ["y.txt", "z.txt"]


def test_everything_in_a_directory_is_read_or_named(tmp_path: Path) -> None:
    contents = {
        "users.ndjson": "{}",
        "matches.jsonl": "{}",
        "events.TXT": "event_id\tmatch_id\tevent_type\tevent_date",
        "checkins.txt": ' {"checkin_id": 1}',
        "feedback.csv": FEEDBACK,
        "export.json": '{"milestones": []}',
        "skill_sessions.tsv": "session_id",
        "feedback.xls": "x",
        "pets.ndjson": "{}",
        "notes.txt": "hello",
        "package.json": '{"name": "x"}',
        "README.md": "",
        ".hidden.ndjson": "{}",
        "~$members.xlsx": "",
        "sub/users.ndjson": "{}",
        "users": "{}",
    }
    for name, text in contents.items():
        put(tmp_path / name, text)
    (tmp_path / "gone.csv").symlink_to("nowhere")
    os.mkfifo(tmp_path / "users.csv")
    told: list[str] = []
    found = [one.path.name for one in expand([tmp_path], None, told.append)]
    assert found == [
        "export.json",
        "users.ndjson",
        "matches.jsonl",
        "events.TXT",
        "skill_sessions.tsv",
        "checkins.txt",
        "feedback.csv",
    ]
    named = {line.removeprefix(f"left out: {tmp_path}/").partition(":")[0]: line for line in told}
    assert named.keys() | set(found) == {*contents, "gone.csv", "users.csv", "sub"} - {
        "sub/users.ndjson"
    }
    assert "a directory in a directory" in named["sub"]
    assert "hidden" in named[".hidden.ndjson"]
    assert "--entity" in named["pets.ndjson"]


def test_an_entity_chooses_among_the_files_of_a_directory(tmp_path: Path) -> None:
    for name in ("users.ndjson", "matches.ndjson", "members.ndjson", "notes.txt", "x.xlsx"):
        put(tmp_path / name)
    told: list[str] = []
    found = expand([tmp_path], "users", told.append)
    assert [(one.path.name, one.entity) for one in found] == [
        ("members.ndjson", "users"),
        ("users.ndjson", "users"),
        ("x.xlsx", "users"),
    ]
    matches, notes = told
    assert matches == f"left out: {tmp_path / 'matches.ndjson'}: holds matches"
    assert notes.startswith(f"left out: {tmp_path / 'notes.txt'}: neither its name nor")


def test_what_is_named_for_an_entity_is_never_left_out(tmp_path: Path) -> None:
    put(tmp_path / "matches.ndjson")
    put(tmp_path / "users.json", '{"data": [{"id": 1}]}')
    with pytest.raises(UsageError, match=r"users\.json: it is no record itself"):
        expand([tmp_path], None)


def test_a_directory_of_nothing_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    put(tmp_path / "a" / "pets.ndjson")
    put(tmp_path / "a" / "x.md")
    told: list[str] = []
    with pytest.raises(UsageError, match=r"nothing to read in it.*pets\.ndjson.*and 1 more"):
        expand([tmp_path / "a"], None, told.append)
    assert told == []


def test_a_directory_of_pictures_is_no_flood(tmp_path: Path) -> None:
    put(tmp_path / "users.ndjson")
    for n in range(150):
        put(tmp_path / f"{n}.png")
    told: list[str] = []
    expand([tmp_path], None, told.append)
    assert len(told) == 101
    assert told[-1] == f"left out: 50 more files of {tmp_path}"


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
    put(directory / "users.ndjson")
    told: list[str] = []
    found = expand([directory], None, told.append)
    assert [one.path.name for one in found] == names
    (line,) = told
    assert "users.ndjson" in line
    assert line.count(".xlsx") == ("xlsx" in formats and len(formats) > 1)
    assert [r.entity for one in found for r in one.read()] == ["users", "feedback"]
    only = [r.entity for one in expand([directory], "feedback") for r in one.read()]
    assert only == ["feedback"]


@pytest.mark.parametrize("text", ['[{"id":"a"}]', '{"users":[]}', "1", "", '{"id":"a"}', "["])
def test_metadata_that_is_none_is_read_or_named(tmp_path: Path, text: str) -> None:
    put(tmp_path / "users.ndjson")
    metadata = put(tmp_path / "metadata.json", text)
    told: list[str] = []
    found = [one.path for one in expand([tmp_path], None, told.append)]
    assert metadata in found or any(str(metadata) in line for line in told)


@pytest.mark.parametrize("formats", [("csv",), ("json",), ("xlsx",)])
def test_an_export_without_the_entity_is_no_silence(
    tmp_path: Path, formats: tuple[Format, ...]
) -> None:
    directory = export_to(tmp_path, TABLES, *formats)
    with pytest.raises(UsageError, match=r"without events|no array of events|no sheet"):
        list(in_entity_order(expand([directory], "events")))


def test_the_folder_of_csv_files_of_an_export(tmp_path: Path) -> None:
    directory = export_to(tmp_path, TABLES, "csv") / "buddy_export_2025-11-22"
    assert [one.path.name for one in expand([directory], None)] == ["users.csv", "feedback.csv"]
