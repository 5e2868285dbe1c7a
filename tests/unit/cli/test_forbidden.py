"""Paths that may not be looked at are one line.

A name that is too long fails as one without rights does, also for root.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.cli import main
from worker.cli.main import run

STATE, NOBODY = 6, 8


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
