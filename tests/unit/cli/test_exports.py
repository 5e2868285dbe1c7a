"""`buddy exports list` and `latest`: what is chosen, in which order, and what is printed."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path

import msgspec
import pytest

from tests.paths import ROOT
from tests.unit.export_kit import export_to, metadata_of, user
from worker.cli.main import run
from worker.exports.layout import MANIFEST, Format
from worker.exports.manifest import Base, Cut, Incremental, Manifest, Options, Origin, build, encode
from worker.exports.order import AHEAD
from worker.exports.places.directory import DirectoryPlace

NONE, STATE = 1, 6
EXPORTING = ROOT / "docs" / "operations" / "exporting.md"
Captured = pytest.CaptureFixture[str]


def id_of(number: int) -> str:
    return f"{number}50e8400-e29b-41d4-a716-446655440000"


def name_of(number: int, second: int) -> str:
    return f"20251122T10300{second}Z_{id_of(number)}"


class Made:
    """Exports at a place, each with nothing but its manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def add(
        self,
        number: int,
        second: int,
        bookmark: str | None = None,
        base: int | None = None,
        *,
        scheduled: bool = False,
        formats: Sequence[Format] = ("csv", "json"),
        start: date | None = None,
        read: int = 0,
        complete: bool = True,
    ) -> Manifest:
        """An export made in that second, of `base` if one is given."""
        options = Options(
            entities=("users",),
            formats=tuple(formats),
            start=start,
            incremental=bookmark,
            scheduled=scheduled,
        )
        known = None if base is None else Base(id_of(base), name_of(base, 0), "0" * 64, Cut())
        full = "no_base" if base is None else None
        increment = Incremental(name=bookmark, base=known, full_because=full) if bookmark else None
        cut = Cut({"users": {0: read}})
        origin = Origin(cut=cut, complete=complete, incremental=increment)
        manifest = msgspec.structs.replace(
            build(metadata_of({"users": []}), options, origin, (), {}, ()),
            export_id=id_of(number),
            export_date=f"2025-11-22T10:30:0{second}Z",
        )
        directory = self.root / name_of(number, second)
        directory.mkdir(parents=True)
        (directory / MANIFEST).write_bytes(encode(manifest))
        return manifest

    def run(self, *arguments: str) -> int:
        return run(["--exports", str(self.root), "exports", *arguments])


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return Made(tmp_path / "exports")


def test_a_place_without_exports(made: Made, capsys: Captured) -> None:
    assert made.run("list") == 0
    assert capsys.readouterr().out == f"No finished export in {made.root}.\n"
    assert made.run("list", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {"exports": []}
    assert made.run("latest", "--format", "csv") == NONE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("buddy: no finished export with csv that holds all rows in ")
    assert not made.root.exists(), "whoever looks makes nothing"


def test_the_list_says_what_is_full_and_what_is_an_increment_of_what(
    made: Made, capsys: Captured
) -> None:
    made.add(1, 0, "weekly", scheduled=True)
    made.add(2, 1, "weekly", base=1, scheduled=True)
    made.add(3, 2, formats=["xlsx"], start=date(2024, 1, 1), complete=False)
    assert made.run("list") == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("│")]
    assert [" ".join(line.replace("│", " ").split()) for line in lines] == [
        "2025-11-22 10:30:02 350e8400 - full, 2024-01-01 to …, not complete xlsx 0",
        "2025-11-22 10:30:01 250e8400 schedule:weekly increment of 150e8400 csv json 0",
        "2025-11-22 10:30:00 150e8400 schedule:weekly full csv json 0",
    ]
    assert made.run("list", "--json", "--bookmark", "schedule:weekly") == 0
    second, first = json.loads(capsys.readouterr().out)["exports"]
    assert (first["full"], first["base"], first["full_because"]) == (True, None, "no_base")
    assert (second["full"], second["base"], second["full_because"]) == (False, first["id"], None)
    assert second["location"] == str(made.root / second["directory"])
    assert second["counts"] == {"users": 0}
    assert second["options"]["formats"] == ["csv", "json"]


def test_the_latest_is_a_path_and_holds_all_rows_unless_a_bookmark_is_named(
    made: Made, capsys: Captured
) -> None:
    made.add(1, 0)
    made.add(2, 1, "mine", formats=["csv"])
    made.add(3, 2, "mine", base=2)
    made.add(4, 3, start=date(2024, 1, 1))
    made.add(5, 4, "mine", base=3, scheduled=True)

    def latest(*arguments: str) -> str:
        assert made.run("latest", *arguments) == 0
        said = capsys.readouterr()
        assert said.err == ""
        return said.out.removesuffix("\n")

    assert latest() == str(made.root / name_of(2, 1))
    assert latest("--format", "csv", "--format", "json") == str(made.root / name_of(1, 0))
    assert latest("--bookmark", "mine") == str(made.root / name_of(3, 2))
    assert latest("--bookmark", "mine", "--format", "csv") == str(made.root / name_of(3, 2))
    assert latest("--bookmark", "schedule:mine") == str(made.root / name_of(5, 4))
    assert json.loads(latest("--json"))["id"] == id_of(2)
    assert made.run("latest", "--bookmark", "mine", "--format", "xlsx") == NONE
    assert "no finished export under bookmark mine with xlsx in " in capsys.readouterr().err


@pytest.mark.parametrize("numbers", [(1, 2, 3), (3, 2, 1), (2, 3, 1)])
def test_within_a_second_the_later_cut_is_the_latest_and_then_the_increment(
    made: Made, capsys: Captured, numbers: tuple[int, int, int]
) -> None:
    first, second, third = numbers
    made.add(first, 0, "mine", read=4)
    made.add(second, 0, "mine", base=first, read=5)
    made.add(third, 0, "mine", base=second, read=5)
    made.add(4, 0, read=6)
    assert made.run("latest", "--bookmark", "mine", "--json") == 0
    assert json.loads(capsys.readouterr().out)["base"] is not None
    assert made.run("list", "--json") == 0
    found = [export["id"] for export in json.loads(capsys.readouterr().out)["exports"]]
    assert (found[0], found[-1]) == (id_of(4), id_of(first))


def test_what_a_clock_that_ran_ahead_has_stamped_is_not_the_latest(
    made: Made, capsys: Captured
) -> None:
    made.add(1, 9)
    made.add(2, 1)
    made.add(3, 2)
    (made.root / AHEAD).mkdir()
    (made.root / AHEAD / f"20251122T103001Z_{name_of(1, 9)}").touch()
    assert made.run("latest") == 0
    assert capsys.readouterr().out == f"{made.root / name_of(3, 2)}\n"
    assert made.run("list", "--json") == 0
    found = [export["id"] for export in json.loads(capsys.readouterr().out)["exports"]]
    assert found == [id_of(3), id_of(2), id_of(1)]


def test_a_time_that_is_still_to_come_is_told(made: Made, capsys: Captured) -> None:
    made.add(1, 0)
    ahead = f"2999{name_of(1, 0)[4:]}"
    (made.root / name_of(1, 0)).rename(made.root / ahead)
    assert made.run("latest") == 0
    said = capsys.readouterr()
    assert said.out == f"{made.root / ahead}\n"
    assert said.err.startswith(f"buddy: {ahead} has a time that is still to come: ")


def test_no_more_manifests_are_read_than_it_takes(
    made: Made, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(9):
        made.add(number, number)
    read: list[str] = []
    manifest = DirectoryPlace._manifest

    def counting(self: DirectoryPlace, name: str) -> bytes:
        read.append(name)
        return manifest(self, name)

    monkeypatch.setattr(DirectoryPlace, "_manifest", counting)
    assert made.run("latest") == 0
    assert capsys.readouterr().out.endswith(f"{name_of(8, 8)}\n")
    assert read == [name_of(8, 8), name_of(7, 7)]


def test_an_export_that_is_not_complete_is_named_as_such(made: Made, capsys: Captured) -> None:
    made.add(1, 0, complete=False)
    assert made.run("latest") == 0
    said = capsys.readouterr()
    assert said.out == f"{made.root / name_of(1, 0)}\n"
    assert said.err.startswith(f"buddy: {name_of(1, 0)} is not complete: ")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "manifest.json cannot be read: No such file or directory"),
        (b"{}", "manifest.json: not the manifest of an export"),
        (b"\xff", "manifest.json: not the manifest of an export"),
        (b"[" * 10_000, "manifest.json: not the manifest of an export"),
        ("format 2", "manifest.json: manifest format 2 is not 1"),
        ("directory", "manifest.json cannot be read: "),
        ("sparse", "manifest.json: not the manifest of an export: it is larger than 64 MiB"),
    ],
)
def test_what_is_called_like_an_export_and_is_none_is_named(
    made: Made, capsys: Captured, content: bytes | str | None, why: str
) -> None:
    made.add(1, 0)
    manifest = made.add(2, 1)
    path = made.root / name_of(2, 1) / MANIFEST
    path.unlink()
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content == "format 2":
        path.write_bytes(encode(msgspec.structs.replace(manifest, format=2)))
    elif content == "directory":
        path.mkdir()
    elif content == "sparse":
        path.touch()
        os.truncate(path, 20 << 30)
    for command in ("list", "latest"):
        assert made.run(command) == 0
        said = capsys.readouterr()
        assert id_of(1)[:8] in said.out
        assert f"{name_of(2, 1)}" in said.err
        assert why in said.err
        assert len(said.err.splitlines()) == 1


def test_a_place_that_may_not_be_read_is_one_line(
    made: Made, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    made.add(1, 0)

    def refused(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "iterdir", refused)
    for command in ("list", "latest"):
        assert made.run(command) == STATE
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err == f"buddy: cannot use the exports in {made.root}: Permission denied\n"


@pytest.mark.thorough
def test_the_job_of_the_docs_loads_each_export_once(tmp_path: Path) -> None:
    section = EXPORTING.read_text("utf-8").partition("\n## Finding exports\n")[2]
    job = section.partition("```sh\n")[2].partition("```")[0]
    buddy = f'exec {shlex.quote(sys.executable)} -m worker.cli.main "$@"'
    for name, content in (("buddy", buddy), ("load", "ls $1 >> seen"), ("job", job)):
        (tmp_path / name).write_text(f"#!/bin/sh\n{content}\n")
        (tmp_path / name).chmod(0o755)
    environment = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "BUDDY_EXPORTS": "exports"}

    def run_job() -> tuple[int, str, str]:
        done = subprocess.run(
            ["./job"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout, done.stderr

    code, out, err = run_job()
    assert (code, out) == (NONE, "")
    assert err.startswith("buddy: no finished export with csv")
    directory = export_to(tmp_path, {"users": [user()]}, "csv")
    assert run_job() == (0, "", "")
    assert run_job() == (0, "", "")
    assert (tmp_path / "seen").read_text() == "metadata.json\nusers.csv\n"
    (tmp_path / "loaded").unlink()
    next(directory.glob("*/users.csv")).write_text("changed")
    code, out, err = run_job()
    assert code == 1
    assert "users.csv: FAILED" in out
    assert (tmp_path / "loaded").read_text() == ""


def test_a_format_that_does_not_exist_is_a_wrong_command(made: Made, capsys: Captured) -> None:
    assert made.run("latest", "--format", "parquet") == 2
    assert "'parquet' is not a format: use one of csv, json, xlsx" in capsys.readouterr().err
