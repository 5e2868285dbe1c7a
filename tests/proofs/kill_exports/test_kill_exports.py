"""A sample of `make kill-exports` for CI: each stage at least once, within some 40 seconds."""

from __future__ import annotations

import asyncio
import os
import time

import pytest

from tests.proofs.kill_exports.run import Options, run
from tests.proofs.kill_exports.stages import TARGETS

SECONDS = float(os.environ.get("BUDDY_KILL_EXPORTS_SECONDS", "40"))
"""No round begins after so long; eight rounds aim at each stage once."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(SECONDS + 120)]


def test_no_half_export_is_visible_and_the_next_start_finishes() -> None:
    seed = int(os.environ.get("BUDDY_KILL_EXPORTS_SEED") or time.time())
    options = Options(rounds=len(TARGETS), seed=seed, seconds=SECONDS, rows=4_000)
    found = asyncio.run(run(options, print))
    print(f"seed {seed}", *found.lines(), sep="\n")
    assert not found.faults
    assert found.rounds
    assert found.kills.total() >= found.rounds
