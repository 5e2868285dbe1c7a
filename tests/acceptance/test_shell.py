"""`buddy` in a shell: streams that are closed, full or gone, odd names, terminals of any kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.core_kit import good, to_json

pytestmark = pytest.mark.acceptance

USAGE, OUTPUT, GONE = 2, 6, 141
CLOSED = "buddy: standard output is closed\n"
FULL = "buddy: standard output cannot be written: No space left on device\n"


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a good and a bad file, which commands run in."""
    (tmp_path / "users.ndjson").write_bytes(to_json(good("users")) + b"\n")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "users.ndjson").write_bytes(b"{}\n" * 50)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def sh(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a line of shell in which `buddy` is the program."""
    done = subprocess.run(
        ["bash", "-c", f'buddy() {{ "{sys.executable}" -m worker.cli.main "$@"; }}; {line}'],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60,
        env={n: v for n, v in os.environ.items() if not n.startswith("BUDDY_")} | environment,
    )  # fmt: skip
    assert "Traceback" not in done.stderr + done.stdout, done
    assert "Exception" not in done.stderr, done
    return done


@pytest.mark.parametrize(
    ("line", "code", "complaint"),
    [
        ("buddy check users.ndjson >&-", OUTPUT, CLOSED),
        ("buddy check bad --json >/dev/full", OUTPUT, FULL),
        ("buddy --help >/dev/full", OUTPUT, FULL),
        ("buddy check bad <&- >&- 2>&-", OUTPUT, ""),
        ("buddy check users.ndjson 2>&-", 0, ""),
        ("buddy nosuch 2>/dev/full", USAGE, ""),
        ("buddy check - --entity users <&-", USAGE, "buddy: standard input is closed\n"),
        ("buddy check bad --github | true; exit ${PIPESTATUS[0]}", GONE, ""),
    ],
)
def test_streams_that_cannot_be_used(shell: Path, line: str, code: int, complaint: str) -> None:
    done = sh(line)
    assert (done.returncode, done.stderr) == (code, complaint)


def test_a_file_that_is_opened_does_not_become_a_closed_stream(shell: Path) -> None:
    """Without care, the first file gets descriptor 1, and what is printed goes into it."""
    assert sh("buddy check bad --rejected rejected <&- >&- 2>&-").returncode == OUTPUT
    assert all(
        json.loads(line)["violations"] for line in Path("rejected").read_bytes().splitlines()
    )


def test_an_ascii_terminal_and_a_name_beyond_it(shell: Path) -> None:
    Path("møte\x1b[2J\n\udce9").mkdir()
    Path("bad/users.ndjson").rename("møte\x1b[2J\n\udce9/users.ndjson")
    done = sh('buddy check m*; buddy check "$(echo m*)"/ø', PYTHONIOENCODING="ascii", LC_ALL="C")
    assert (done.stdout + done.stderr).isascii()
    assert "\x1b" not in done.stdout + done.stderr
    name = "m\\xf8te\\x1b[2J\\n\\udce9/"
    assert done.stdout.startswith("Wrong in m\\xf8te\\x1b[2J\\n\\ufffd/users.ndjson")
    assert done.stderr == f"buddy: {name}\\xf8: no such file or directory\n"
