"""Hundreds of seeds of the simulation, and that it is what it claims to be: deterministic."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from io import StringIO

import pytest
from rich.console import Console

from tests.paths import ROOT
from tests.proofs.simulation.index import Disk
from tests.proofs.simulation.many import play, play_all
from tests.proofs.simulation.promises import Broken, Promises
from tests.proofs.simulation.schedule import Run
from tests.proofs.simulation.trace_kit import trace
from worker.index.store import IndexStore

SEEDS = int(os.environ.get("BUDDY_SIMULATION_SEEDS", "100"))
_FIRST = 100
"""Those before it are played by the test of what the seeds reach."""
_CHUNK = 20


@pytest.mark.slow
@pytest.mark.timeout(120 + SEEDS)
def test_every_promise_is_kept_whatever_happens() -> None:
    last = _FIRST + SEEDS
    chunks = [range(n, min(last, n + _CHUNK)) for n in range(_FIRST, last, _CHUNK)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = [failure for some in pool.map(play, chunks) for failure in some.failures]
    assert not found, "replay: python -m tests.proofs.simulation --replay SEED --steps"


def test_a_seed_that_fails_is_named_and_the_rest_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(promises: Promises) -> None:
        if promises._settings.seed == 3:
            raise Broken("as planted")

    monkeypatch.setattr(Promises, "check", check)
    played = play(range(6))
    assert played.failures == [(3, "as planted")]
    assert played.counts["records"] == sum(
        play(range(n, n + 1)).counts["records"] for n in range(6)
    )


def test_many_seeds_end_with_a_sum() -> None:
    console = Console(file=StringIO(), width=80)
    assert play_all(range(10, 50), 2, console) == 0
    file = console.file
    assert isinstance(file, StringIO)
    (line,) = file.getvalue().splitlines()
    assert line.startswith("40 seeds, 0 failed, in ")
    assert " takeovers, " in line


def test_a_seed_is_the_same_run_in_every_process() -> None:
    module = "tests.proofs.simulation.trace_kit"
    code = f"from {module} import trace; print(trace(1), trace(2), trace(5))"
    for hashes in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": hashes},
            capture_output=True,
            text=True,
            check=True,
        )
        assert there.stdout.split() == [trace(1), trace(2), trace(5)]


def test_the_seeds_reach_what_they_are_to_test() -> None:
    codes: set[str] = set()
    kinds: set[str] = set()
    tasks: set[int] = set()
    deeds: set[str] = set()
    wanted = {"kill", "freeze", "thaw", "cut off", "stop", "aborted", "rebalance", "compaction"}
    wanted |= {"is ahead", " anew", "topics_changed", "resets", "nobody knows whether"}
    wanted |= {"another worker writes", "index_restoring", "record_refused"}
    for seed in range(_FIRST):
        lines: list[str] = []
        run = Run(seed, lines.append)
        run.play()
        tasks.add(run.settings.rules.tasks)
        for outcome in run.promises.outcomes.values():
            codes.update(outcome.codes)
            kinds.add(outcome.kind)
        for deed in wanted:
            deeds.update(deed for line in lines if deed in line)
    assert kinds == {"accepted", "rejected"}
    assert tasks == {1, 2, 3}
    assert deeds == wanted
    assert codes >= {
        "orphaned_user_id",
        "orphaned_match_id",
        "orphaned_attendee",
        "duplicate_email",
        "malformed_record",
        "invalid_enum",
        "internal_error",
    }


def test_the_index_in_memory_offers_what_the_one_on_disk_does() -> None:
    public = {name for name in dir(IndexStore) if not name.startswith("_")}
    assert public <= set(dir(Disk()))
