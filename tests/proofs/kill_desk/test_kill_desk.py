"""A sample of `make kill-desk`."""

from __future__ import annotations

import pytest

from tests.proofs.kill_desk.run import Options, run

pytestmark = [pytest.mark.acceptance, pytest.mark.timeout(400)]


async def test_what_is_killed_counts_and_sends_nothing_twice() -> None:
    found = await run(Options(rejections=20_000, rounds=6, seed=7), print)
    assert min(found.killed["summary"], found.killed["replay"]) >= 1
    assert found.faults == []
