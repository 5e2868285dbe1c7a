"""Files that cannot be read, and places that cannot be written, for `check` and `send`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.acceptance.kit import Buddy
from tests.acceptance.material import user, write_rows

pytestmark = pytest.mark.acceptance

USAGE, STATE = 2, 6
HEADER = b"id,email,first_name,last_name,role,joined_at,language_preference,interests,location\n"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.xlsx", b"PK\x03\x04 broken"),
        ("b.xlsx", b""),
        ("users.csv", b""),
        ("users.csv", b"a,b,c\n"),
        ("users.csv", HEADER + b'"not closed,2\n'),
        ("other.csv", b"a,b\n1,2\n"),
        ("a.json", b""),
        ("b.json", b'{"users": [{"id": 1},'),
        ("c.json", b"[]"),
        ("d.json", b'{"nosuch": []}'),
        ("e.json", b"\xff"),
        ("nosuch.ndjson", b"{}"),
        ("empty/.keep", b""),
    ],
)
def test_a_file_that_cannot_be_read(local: Buddy, name: str, content: bytes) -> None:
    path = local.directory / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    place = name.removesuffix("/.keep")
    assert place in local.run("check", place).complained(USAGE)


def test_a_file_that_cannot_be_sent(local: Buddy) -> None:
    """Whatever stands before the bad place is sent; then one line says where it is."""
    local.run("topics", "create").succeeded()
    broken = {"a.xlsx": b"PK", "users.csv": HEADER + b'"1,2\n', "a.json": b'{"users": [{}, 1'}
    for name, content in broken.items():
        (local.directory / name).write_bytes(content)
        assert name in local.run("send", name, "--wait").complained(USAGE)


def test_a_file_name_that_is_not_utf_8(local: Buddy) -> None:
    """Shown as well as it can be, in tables and in outputs; never a reason to stop."""
    name = os.fsdecode(b"caf\xe9.ndjson")
    (local.directory / name).write_bytes(b'{"id": 1}\n' + json.dumps(user()).encode() + b"\n")
    outputs = ("--rejected", "rejected", "--warnings", "warnings")
    for shown in ((), ("--json",)):
        checked = local.run("check", name, "--entity", "users", *outputs, *shown)
        assert checked.code == 1, f"{checked}"
    rejection = json.loads((local.directory / "rejected").read_bytes())
    assert rejection["source"]["line"] == 1
    assert "caf" in rejection["source"]["path"]
    assert "caf" in local.run("check", name).complained(USAGE)
    service = local.start("run").ready()
    sent = local.run("send", name, "--entity", "users", "--wait", "--json")
    assert sent.json["accepted"] == sent.json["rejected"] == 1
    service.stop().succeeded()


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ("--accepted file", STATE),
        ("--accepted file/below", STATE),
        ("--accepted full", USAGE),
        ("--rejected .", STATE),
        ("--rejected file/below", STATE),
        ("--warnings nosuch/below", STATE),
        ("--rejected /dev/full", STATE),
        ("--warnings /dev/full", STATE),
        ("--rejected users.ndjson", USAGE),
        ("--warnings users.ndjson", USAGE),
        ("--rejected same --warnings same", USAGE),
    ],
)
def test_an_output_that_cannot_be_written(local: Buddy, options: str, code: int) -> None:
    (local.directory / "file").touch()
    (local.directory / "full").mkdir()
    (local.directory / "full" / "something").touch()
    rows = [{}, user(joined_at="2025-01-01T00:00:00")]
    write_rows(local.directory, {"users": rows})
    before = (local.directory / "users.ndjson").read_bytes()
    local.run("check", "users.ndjson", *options.split()).complained(code)
    assert (local.directory / "users.ndjson").read_bytes() == before, "the input is gone"


def big_and_small(directory: Path) -> dict[str, bytes]:
    """Records by what becomes of them; the sizes are those of the whole record."""

    def of_size(size: int) -> bytes:
        text = json.dumps(user(location=""))
        return json.dumps(user(location="x" * (size - len(text)))).encode()

    records = {
        "small": of_size(400),
        "at the limit": of_size(1 << 20),
        "over the limit": of_size((1 << 20) + 1),
        "last": of_size(400),
    }
    (directory / "users.ndjson").write_bytes(b"\n".join(records.values()) + b"\n")
    return records


def test_a_record_over_the_limit_is_rejected_alone(local: Buddy) -> None:
    records = big_and_small(local.directory)
    assert len(records["at the limit"]) == 1 << 20
    checked = local.run("check", "users.ndjson", "--rejected", "rejected", "--json")
    assert checked.code == 1
    assert checked.json["accepted"] == {"users": 3}
    assert checked.json["codes"] == {"users.malformed_record": 1}
    service = local.start("run").ready()
    sent = local.run("send", "users.ndjson", "--wait", "--json")
    assert sent.code == 1
    assert (sent.json["accepted"], sent.json["rejected"]) == (3, 1)
    assert sent.json["violations"] == {"users.malformed_record": 1}
    service.stop().succeeded()


def test_a_record_that_no_broker_takes_is_named_and_the_rest_is_sent(local: Buddy) -> None:
    small = [json.dumps(user()).encode() for _ in range(2)]
    big = json.dumps(user(location="x" * 5_000_000)).encode()
    (local.directory / "users.ndjson").write_bytes(b"\n".join([small[0], big, small[1]]))
    checked = local.run("check", "users.ndjson", "--rejected", "rejected", "--json")
    assert checked.json["accepted"] == {"users": 2}
    rejection = json.loads((local.directory / "rejected").read_bytes())
    assert rejection["record_omitted"]["bytes"] == len(big)
    assert rejection["source"] == {"path": "users.ndjson", "line": 2}
    service = local.start("run").ready()
    line = local.run("send", "users.ndjson", "--wait", deadline=30).complained(1)
    assert "users.ndjson" in line
    assert "2" in line
    status = local.run("status", "--json").succeeded().json
    assert status["entities"]["users"]["accepted"] == 2, "the others were not sent"
    service.stop().succeeded()


def test_an_export_that_was_cut_is_sent_and_told(local: Buddy) -> None:
    """Whole lines are gone, so only the numbers of the export show it."""
    write_rows(local.directory, {"users": [user() for _ in range(20)]})
    service = local.start("run").ready()
    local.run("send", "users.ndjson", "--wait").succeeded()
    kinds = ("--format", "csv", "--format", "json", "--format", "xlsx")
    local.run("export", *kinds, "--entity", "users", "--out", "all").succeeded()
    local.run("export", "--format", "csv", "--entity", "users", "--out", "o").succeeded()
    (users,) = local.directory.glob("o/*/users.csv")
    whole = users.read_bytes()
    (document,) = local.directory.glob("all/buddy*.json")
    (workbook,) = local.directory.glob("all/*.xlsx")
    for path in ("o", "all", users, document, workbook):
        for command in ("check", "send"):
            done = local.run(command, path, "--json").succeeded()
            assert done.json["mismatches"] == []

    users.write_bytes(b"".join(whole.splitlines(keepends=True)[:-10]))
    name = users.relative_to(local.directory)
    line = f"{name} says 20 records and holds 10"
    sent = local.run("send", "--wait", "o")
    assert sent.code == 1, f"{sent}"
    assert "10 accepted, 0 rejected." in sent.out
    assert sent.err.splitlines()[-1] == f"buddy: {line}"
    assert line in local.run("send", name).complained(1)
    assert line in local.run("check", name).complained(1)
    found = local.run("send", name, "--json").json["mismatches"]
    assert [(one["entity"], one["stated"], one["held"]) for one in found] == [("users", 20, 10)]
    service.stop().succeeded()
