"""Parked records of any size stay within a hard limit of memory, and each gets its verdict."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.proofs.memory.run import KNOWN_EVERY, Plan, play

pytestmark = pytest.mark.acceptance


async def test_more_parked_records_than_memory_all_get_their_verdict(tmp_path: Path) -> None:
    """In full size: `python -m tests.proofs.memory`."""
    plan = Plan(records=120, size=1_000_000, limit=200, max_parked_mib=16, grace=0.2, patience=60)
    known = plan.records // KNOWN_EVERY
    report = await play(plan, tmp_path)
    assert (report.counts.accepted, report.counts.rejected) == (2 * known, plan.records - known)
