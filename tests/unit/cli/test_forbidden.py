"""Paths that may not be looked at, and texts that are not UTF-8, are one line.

A name that is too long fails as one without rights does, also for root.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.cli import main
from worker.cli.main import run

USAGE, CONFIGURATION, STATE, NOBODY = 2, 3, 6, 8
STRANGE = "a\udcff"
"""What Python makes of a byte of an argument that is not UTF-8."""


@pytest.mark.parametrize(
    "command",
    [
        ("topics", "create"),
        ("log", "verify"),
        ("log", "accept-clock"),
        ("delete", "users", "7d0c4f53-7c5e-4f0a-9e0f-0f5b1c1d2e3f"),
        ("status",),
    ],
)
def test_a_log_that_may_not_be_looked_at(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: tuple[str, ...]
) -> None:
    option = f"--broker=embedded:{tmp_path / ('x' * 300)}"
    assert run([option, *command]) == STATE
    said = capsys.readouterr().err
    assert "cannot be used for the log (File name too long)" in said
    assert said.count("\n") == 1


def test_a_desk_that_may_not_be_looked_at_hides_only_its_incidents(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`buddy status` of a user without rights to `data`, which is for owner and group only."""
    options = [f"--broker=embedded:{tmp_path / 'broker'}", f"--data={tmp_path / ('x' * 300)}"]
    assert run([*options, "topics", "create"]) == 0
    capsys.readouterr()
    assert run([*options, "status"]) == NOBODY
    said = capsys.readouterr()
    assert "/desk cannot be read (File name too long): look at its owner" in said.out
    assert said.err == "buddy: no worker is running: start 'buddy worker' or 'buddy run'\n"
    assert run([*options, "status", "--json"]) == NOBODY
    assert '"rejection_incidents":null' in capsys.readouterr().out
    assert run([*options, "rejections", "incidents"]) == STATE
    assert "/desk cannot be read (File name too long): look" in capsys.readouterr().err


def test_any_other_path_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(_arguments: object) -> int:
        raise PermissionError(13, "Permission denied", "some/where")

    monkeypatch.setattr(main, "_invoke", refused)
    assert run(["status"]) == STATE
    assert capsys.readouterr().err.startswith("buddy: some/where cannot be used: Permission denied")


def test_a_working_directory_that_is_gone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert run(["config"]) == STATE
    assert capsys.readouterr().err == (
        "buddy: the working directory cannot be used (No such file or directory): change to one "
        "that exists\n"
    )


def test_names_of_places_must_be_utf_8(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An announcement that named such a place ended the sink, and each one after it."""
    assert run(["--exports", STRANGE, "config"]) == CONFIGURATION
    assert capsys.readouterr().err == (
        "buddy: options: a text holds a byte that is not UTF-8: use another name\n"
    )
    monkeypatch.setenv("BUDDY_DATA", STRANGE)
    assert run(["status"]) == CONFIGURATION
    assert capsys.readouterr().err.startswith("buddy: BUDDY_DATA: a text holds a byte")


def test_what_filters_cannot_hold_damages_no_store(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--broker=embedded:{tmp_path / 'broker'}", f"--data={tmp_path / 'data'}"]
    assert run([*options, "topics", "create"]) == 0
    capsys.readouterr()
    for wrong in (STRANGE, "a\0"):
        assert run([*options, "rejections", "list", "--producer", wrong]) == USAGE
        assert "Invalid value for --producer" in capsys.readouterr().err
    assert not (tmp_path / "data" / "desk").exists()
