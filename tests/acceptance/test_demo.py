"""`buddy demo`: it runs, runs again, and runs after it has been interrupted or killed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import httpx
import pytest

from tests.acceptance.kit import DEADLINE, Buddy, Service, eventually
from tests.paths import ROOT

pytestmark = pytest.mark.acceptance

MAKEFILE = ROOT / "Makefile"
FEW = ("demo", "--records", "500")
STATE, INTERRUPTED = 6, 130


def services_below(directory: Path) -> list[int]:
    """The processes that work in this directory, other than through an open shell or test."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if process.joinpath("cwd").readlink() == directory:
                found.append(int(process.name))
        except OSError:  # it has ended, or is not ours
            continue
    return [number for number in found if number != os.getpid()]


def in_the_middle(buddy: Buddy, directory: str = "buddy-demo") -> Service:
    """A demo with much to do in a new directory, once its worker has begun to judge."""
    log = buddy.directory / directory / "run.log"
    assert not log.exists()
    demo = buddy.start("demo", "--directory", directory)
    eventually(lambda: log.exists() and "violations" in log.read_text(), "the first verdicts")
    assert demo.process.poll() is None
    return demo


def test_it_runs_and_runs_again_and_is_cleaned_away(local: Buddy) -> None:
    first = local.run(*FEW).succeeded()
    assert "Every verdict is the one that was expected" in first.out
    assert "missing_required_field" in first.out
    assert not first.err
    exports = {path.name for path in (local.directory / "buddy-demo" / "exports").glob("2*")}
    local.run(*FEW, "--seed", "2").succeeded()
    again = {path.name for path in (local.directory / "buddy-demo" / "exports").glob("2*")}
    assert len(again) == 1
    assert again != exports
    assert services_below(local.directory) == []
    command = first.out.splitlines()[-1].partition("buddy ")[2]
    local.run(*command.split()).succeeded()

    subprocess.run(
        ["make", "-f", MAKEFILE, "clean"], cwd=local.directory, check=True, capture_output=True
    )
    assert list(local.directory.iterdir()) == []


def test_it_needs_no_settings_and_takes_none(local: Buddy) -> None:
    """Whatever is configured here is for work, not for the demo."""
    (local.directory / "buddy.toml").write_text("nosuch = 1\n")
    env = {"BUDDY_BROKER": "kafka://127.0.0.1:1", "BUDDY_PARTITIONS": "many"}
    local.run(*FEW, env=env).succeeded()


def test_it_leaves_what_is_not_its_own(local: Buddy) -> None:
    mine = local.directory / "buddy-demo"
    mine.mkdir()
    (mine / "letter.txt").write_text("mine")
    assert "--directory" in local.run(*FEW).complained(STATE)
    assert (mine / "letter.txt").read_text() == "mine"


def test_interrupted_it_ends_with_its_services_and_runs_again(local: Buddy) -> None:
    demo = in_the_middle(local)
    ended = demo.stop(signal.SIGINT)
    assert ended.code == INTERRUPTED, f"{ended}"
    assert ended.err.strip() == "buddy: interrupted"
    assert services_below(local.directory) == []
    local.run(*FEW).succeeded()


def test_killed_it_does_not_disturb_the_next_one(local: Buddy) -> None:
    in_the_middle(local).kill()
    local.run(*FEW).succeeded()
    eventually(lambda: services_below(local.directory) == [], "the end of what was replaced")


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="asks /proc for processes")
def test_killed_it_leaves_nobody_behind(local: Buddy) -> None:
    demo = in_the_middle(local)
    left = services_below(local.directory)
    assert len(left) == 2, "the demo and its services"
    demo.kill()
    try:
        eventually(lambda: services_below(local.directory) == [], "the end of its services", 10)
    finally:
        for number in set(left) & set(services_below(local.directory)):
            os.kill(number, signal.SIGKILL)


def test_it_stays_and_serves_the_console_until_it_is_interrupted(local: Buddy) -> None:
    demo = local.start(*FEW, "--stay")
    eventually(lambda: any("Console:" in line for line in demo.printed(0)), "the address")
    address = re.search(r"Console: +(http://127\.0\.0\.1:\d+/)", "\n".join(demo.printed(0)))
    assert address is not None
    assert "By entity, since the beginning" in httpx.get(address[1], timeout=DEADLINE).text
    demo.stop(signal.SIGINT).succeeded()
    assert services_below(local.directory) == []
