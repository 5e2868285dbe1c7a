"""What commands print: whole codes at 80 columns, short times, nothing that moves a cursor."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import sys
from datetime import UTC, datetime, timedelta, timezone
from itertools import pairwise
from pathlib import Path

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.core_kit import good, to_json
from worker.cli import console, streams
from worker.cli.console import OneOf, count_of, print_table, short_time
from worker.cli.in_time import InTime
from worker.cli.main import run
from worker.core.shown import shown
from worker.core.violations import Code
from worker.errors import OutputError
from worker.stream import Partition

Output = pytest.CaptureFixture[str]
LONG = ("missing_required_field", "language_preference")


@pytest.fixture
def bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    records = [good("users", role="boss", emial=1), {"Email": "a@b"}, good("users", 2, role=None)]
    Path("users.ndjson").write_bytes(b"\n".join(map(to_json, records)))
    return Path("users.ndjson")


class Terminal(io.StringIO):
    """Standard output that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@given(st.text())
def test_nothing_shown_moves_a_cursor(text: str) -> None:
    assert shown(text).isprintable()
    assert len(shown(text, 10)) <= 10
    if text.isprintable():
        assert shown(text) == text


def test_what_does_not_print_is_escaped() -> None:
    assert shown("a\x1b[2J\r\n\u202eb\udc80\u200b") == "a\\x1b[2J\\r\\n\\u202eb\\udc80\\u200b"


@pytest.mark.parametrize("width", [20, 60, 80, 200])
def test_no_word_of_a_table_is_broken(
    capsys: Output, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    said = "expected a date and time such as 2024-01-15T10:00:00Z, in the years 1 to 9999"
    row = (1_234, LONG[1], LONG[0], said)
    print_table("A [/]title", ("line", "column", "code", "expected"), [row])
    printed = capsys.readouterr().out
    for word in (*LONG, "1,234", "2024-01-15T10:00:00Z,", "A [/]title"):
        assert word in printed
    if width >= 80:
        assert max(map(len, printed.splitlines())) <= width


def test_cells_are_no_markup_and_no_escapes(capsys: Output) -> None:
    print_table("\x1b[2J", ("name",), [("[/red]\x1b[31m:smile:",)], "\x07")
    printed = capsys.readouterr().out
    assert "[/red]\\x1b[31m:smile:" in printed
    assert "\x1b" not in printed
    assert "\x07" not in printed


def test_short_times() -> None:
    now = datetime(2026, 11, 27, 16, 0, tzinfo=UTC)
    assert short_time(datetime(2026, 11, 27, 10, 28, 46, 5, tzinfo=UTC), now) == "10:28:46"
    assert short_time(now - timedelta(days=1), now) == "2026-11-26 16:00:00"
    # In UTC this is after the last year of a `datetime`; any program may write it.
    last = datetime(9999, 12, 31, 23, tzinfo=timezone(timedelta(hours=-2)))
    assert short_time(last, now) == "9999-12-31 23:00:00"


def test_singular_and_plural() -> None:
    assert [count_of(n, "record") for n in (0, 1, 2)] == ["0 records", "1 record", "2 records"]
    assert count_of(1, "record was", "records were") == "1 record was"


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, True), ({"NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False)],
)
def test_colours_by_severity_where_they_are_wanted(
    bad: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], coloured: bool
) -> None:
    for name, value in {"TERM": "xterm", "COLUMNS": "80", "NO_COLOR": ""}.items():
        monkeypatch.setenv(name, environment.get(name, value))
    monkeypatch.setattr(sys, "stdout", terminal := Terminal())
    assert run(["check", str(bad)]) == 1
    console.say_found("invalid_enum", "role: expected one of participant, buddy", "error")
    assert ("\x1b[31m" in terminal.getvalue()) is coloured
    assert "invalid_enum" in terminal.getvalue()


def test_a_violation_goes_on_below_itself(capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    console.say_found("invalid_enum", "role: expected one of participant, buddy", "error")
    assert capsys.readouterr().out.splitlines() == [
        "  invalid_enum  role: expected one of participant,",
        "                buddy",
    ]


def test_findings_for_programs(bad: Path, capsys: Output) -> None:
    assert run(["check", str(bad), "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["findings"][0] == {
        "path": "users.ndjson",
        "line": 1,
        "entity": "users",
        "field": "role",
        "code": "invalid_enum",
        "severity": "error",
        "message": "expected one of participant, buddy",
    }
    assert [f["line"] for f in told["findings"]] == [1, *[2] * 6, 3]
    assert told["findings_omitted"] == 0
    assert told["unknown_names"] == {"users": {"emial": 1, "Email": 1}}


def test_findings_for_a_code_host(bad: Path, capsys: Output) -> None:
    odd = Path("50%,a:b")
    odd.mkdir()
    bad.rename(odd / "users.ndjson")
    assert run(["check", str(odd), "--github"]) == 1
    assert capsys.readouterr().out.splitlines()[0] == (
        "::error file=50%25%2Ca%3Ab/users.ndjson,line=1,title=invalid_enum"
        "::role: expected one of participant, buddy"
    )


def test_findings_for_people(bad: Path, capsys: Output) -> None:
    assert run(["check", str(bad)]) == 1
    printed = capsys.readouterr().out
    assert printed.startswith("Wrong in users.ndjson")
    assert "… and 1 more" in printed  # of six in record 2
    assert re.search("emial +│ +1 │ email ", printed)
    assert re.search("Email +│ +1 │ email ", printed)
    Path("users.ndjson").write_bytes(b"{}\n" * 21)
    assert run(["check", "users.ndjson"]) == 1
    assert "… and 1 rejected record more: --rejected" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("chekc", "'chekc'. Did you mean 'check'?"),
        ("rejections wach", "Did you mean 'watch'?"),
        ("check --jsn x", "Did you mean '--json'?"),
        ("check --entity user x", "'user' is not an entity: did you mean users?"),
        ("check --entity zebra x", "'zebra' is not an entity: use one of users, matches,"),
        ("delete User x", "Invalid value for 'ENTITY': 'User' is not an entity: did you mean"),
        ("reprocess event --from-start", "did you mean events?"),
        ("export --format CSV", "'CSV' is not a format: did you mean csv?"),
        ("--log-level warn config", "'warn' is not a level: did you mean warning?"),
        ("rejections watch --code nonsense", "'nonsense' is not a violation code: use one of"),
        ("rejections summary --code invalid_uid", "did you mean invalid_uuid?"),
        ("rejections watch --limit 0", "0 is not in the range x>=1"),
        ("rejections watch --limit -1", "-1 is not in the range x>=1"),
        ("--json check x", "--json goes after 'check': buddy check --json …"),
        ("--limit 3 rejections watch", "--limit goes after 'watch': buddy rejections watch --lim"),
        ("rejections --limit 3 watch", "--limit goes after 'watch': buddy rejections watch --lim"),
        ("rejections --broker x watch", "--broker goes before 'rejections': buddy --broker …"),
        ("rejections watch --config x", "--config goes before 'rejections': buddy --config …"),
        ("check --prefix x users.ndjson", "--prefix goes before 'check': buddy --prefix …"),
        ("check x --json --github", "either --json or --github"),
    ],
)
def test_what_was_meant(capsys: Output, line: str, says: str) -> None:
    assert run(line.split()) == 2
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1


def test_a_choice_takes_what_is_one_of_them() -> None:
    kind = OneOf("a violation code", [code.value for code in Code])
    assert kind.convert("invalid_uuid", None, None) == "invalid_uuid"
    with pytest.raises(click.BadParameter):
        kind.convert("\x1b[2J", None, None)


@pytest.mark.parametrize("kind", ["fifo", "device", "long", "loop", "socket"])
def test_what_is_no_file_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output, kind: str
) -> None:
    path = tmp_path / "users.csv"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "device":
        path = Path("/dev/zero")
    elif kind == "long":
        path = Path("x" * 4_000)
    elif kind == "loop":
        path.symlink_to(path)
    else:
        with socket.socket(socket.AF_UNIX) as there:
            monkeypatch.chdir(tmp_path)  # the path of a socket is short
            there.bind("users.csv")
    assert run(["check", str(path), "--entity", "users"]) == 2
    said = capsys.readouterr().err
    name = str(path) if kind != "long" else "x" * 100 + "…" + "x" * 99
    assert said.startswith(f"buddy: {name}: ")
    assert said.count("\n") == 1


def test_a_full_disk_is_told_once() -> None:
    with open("/dev/full", "wb", buffering=0) as device:  # noqa: PTH123
        out = io.TextIOWrapper(io.BufferedWriter(streams._Output(device.fileno(), "w", False)))
        with pytest.raises(OutputError, match="No space left on device"):
            print("x", file=out, flush=True)
        print("y", file=out, flush=True)  # nobody is interested any more
        complaints = io.BufferedWriter(streams._Complaints(device.fileno(), "w", False))
        complaints.write(b"x")
        complaints.flush()


@given(st.lists(st.lists(st.integers(0, 50), max_size=30), min_size=1, max_size=4))
def test_partitions_are_merged_by_time(parts: list[list[int]]) -> None:
    """Whatever the order of reading: each partition in turn, as much as is asked for."""
    places = [Partition("t", n) for n in range(len(parts))]
    start = datetime(2026, 1, 1, tzinfo=UTC)
    queues = {place: sorted(part) for place, part in zip(places, parts, strict=True)}
    merged = InTime[int](places)
    given_out: list[int] = []
    while any(queues.values()):
        for place, queue in queues.items():
            if queue and place not in merged.full():
                at = queue.pop(0)
                merged.add(place, start + timedelta(seconds=at), at)
        merged.ended(place for place, queue in queues.items() if not queue)
        given_out += merged.due()
    merged.ended(places)
    given_out += merged.due()
    assert len(given_out) == sum(map(len, parts))
    assert all(earlier <= later for earlier, later in pairwise(given_out))
