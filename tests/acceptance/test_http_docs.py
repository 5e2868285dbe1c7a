"""Every example of the pages for those who send, watch and fetch runs as it stands there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.acceptance.kit import DEADLINE, Another, Buddy
from tests.paths import ROOT
from tests.unit.rows_kit import user
from worker.brokers.partitioner import partition_for

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(300)]

PAGES = [
    ROOT / "docs" / "operations" / name
    for name in ("sending.md", "rejections-http.md", "fetching.md")
]
EXAMPLE = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ADDRESS = "http://127.0.0.1:8080"
KAFKA = "localhost:9092"


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


def all_examples() -> list[tuple[str, str]]:
    """Language and text, in the order of the pages."""
    return [each for page in PAGES for each in EXAMPLE.findall(page.read_text("utf-8"))]


@pytest.mark.parametrize("kind", [pytest.param("kafka", marks=pytest.mark.kafka)], indirect=True)
def test_the_example_of_kafka_runs(another: Another, tmp_path: Path) -> None:
    buddy = another()
    rows = [user(n) for n in range(5)]
    (tmp_path / "users.ndjson").write_bytes(b"\n".join(value for _, value in rows))
    ((_, example),) = [each for each in all_examples() if KAFKA in each[1]]
    text = example.replace(KAFKA, buddy.broker.removeprefix("kafka://"))
    text = text.replace("buddy.in.users", buddy.names.input("users"))
    done = subprocess.run(
        [sys.executable], input=text, cwd=tmp_path, text=True, capture_output=True,
        check=False, timeout=2 * DEADLINE,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    sent = [place.split("/")[1] for place in done.stdout.split()]
    assert sent == [str(partition_for(key, 2)) for key, _ in rows], "as the program expects"


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
    examples = [each for each in all_examples() if KAFKA not in each[1]]
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
