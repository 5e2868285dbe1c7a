"""Every example of the page on the HTTP API runs as it stands there, in its order."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.kit import DEADLINE, Buddy
from tests.paths import ROOT
from tests.unit.rows_kit import user

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

PAGE = ROOT / "docs" / "operations" / "http.md"
EXAMPLE = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8080"


def commands(directory: Path) -> Path:
    """`buddy` and a `curl` that fails where the server says so."""
    found = directory / "bin"
    found.mkdir()
    for name, line in {
        "buddy": f'exec {sys.executable} -m worker.cli.main "$@"',
        "curl": f'exec {shutil.which("curl")} --silent --show-error --fail-with-body "$@"',
        "python": f'exec {sys.executable} "$@"',
    }.items():
        (found / name).write_text(f"#!/bin/sh\n{line}\n")
        (found / name).chmod(0o755)
    return found


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_the_examples_run(local: Buddy, tmp_path: Path) -> None:
    local.settings |= {"http": True, "http_port": 0, "grace_seconds": 1}
    service = local.start("run").ready().wait_for("http_started")
    (started,) = service.logged("http_started")
    room = tmp_path / "room"
    room.mkdir()
    (room / "user.json").write_bytes(user(9)[1])
    (room / "users.ndjson").write_bytes(b"\n".join(user(n)[1] for n in range(5)) + b'\n{"id": 1}\n')
    local.export("--incremental", "partner")
    environment = os.environ | {"PATH": f"{commands(tmp_path)}:{os.environ['PATH']}"}
    examples = EXAMPLE.findall(PAGE.read_text("utf-8"))
    assert len(examples) >= 6
    said = ""
    for language, example in examples:
        text = example.replace(ADDRESS, f"http://127.0.0.1:{started['port']}")
        program = ["sh", "-eu"] if language == "sh" else ["python"]
        done = subprocess.run(
            program, input=text, cwd=room, env=environment, text=True, capture_output=True,
            check=False, timeout=2 * DEADLINE,
        )  # fmt: skip
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
        said += done.stdout
    assert '"accepted":1' in said, "the record of the first example"
    assert '"repeated":0' in said, "the example of a request that may be repeated"
    assert "6 rejected" in said, "the line of the file that is wrong"
    assert list(room.glob("buddy_export_*.zip"))
    assert (room / "exports" / "latest" / "manifest.json").exists()
