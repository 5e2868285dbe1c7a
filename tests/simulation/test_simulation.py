"""Thousands of seeds of the simulation, and that it is what it claims to be: deterministic."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest

from tests.simulation.__main__ import failures
from tests.simulation.schedule import Run

SEEDS = int(os.environ.get("BUDDY_SIMULATION_SEEDS", "3000"))
_CHUNK = 100
_ROOT = Path(__file__).parent.parent.parent


@pytest.mark.slow
@pytest.mark.timeout(60 + SEEDS // 10)
def test_every_promise_is_kept_whatever_happens() -> None:
    chunks = [range(n, min(SEEDS, n + _CHUNK)) for n in range(0, SEEDS, _CHUNK)]
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        found = [failure for some in pool.map(failures, chunks) for failure in some]
    assert not found, "replay: python -m tests.simulation --replay SEED --steps"


def trace(seed: int) -> str:
    lines: list[str] = []
    run = Run(seed, lines.append)
    run.play()
    return sha256("\n".join(lines).encode()).hexdigest()


def test_a_seed_is_the_same_run_in_every_process() -> None:
    code = "from tests.simulation.test_simulation import trace; print(trace(1), trace(2), trace(5))"
    for hashes in ("1", "2"):
        there = subprocess.run(
            [sys.executable, "-c", code],
            cwd=_ROOT,
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
    for seed in range(100):
        lines: list[str] = []
        run = Run(seed, lines.append)
        run.play()
        tasks.add(run.settings.rules.tasks)
        for outcome in run.promises.outcomes.values():
            codes.update(outcome.codes)
            kinds.add(outcome.kind)
        for deed in ("kill", "freeze", "thaw", "cut off", "stop", "aborted", "Fenced", "answer"):
            deeds.update(deed for line in lines if deed in line)
    assert kinds == {"accepted", "rejected"}
    assert tasks == {1, 2, 3}
    assert deeds == {"kill", "freeze", "thaw", "cut off", "stop", "aborted", "Fenced", "answer"}
    assert codes >= {
        "orphaned_user_id",
        "orphaned_match_id",
        "orphaned_attendee",
        "duplicate_email",
        "malformed_record",
        "invalid_enum",
    }
