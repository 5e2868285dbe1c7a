"""Several workers on one broker, one of them killed in the middle: one outcome for each record."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.acceptance.accounts import Outcomes, books_of, broker_of
from tests.acceptance.kit import Another
from tests.acceptance.material import expected, sendable, split, timeless, write

pytestmark = pytest.mark.acceptance

RECORDS = 4_000


async def test_two_workers_one_of_them_killed(another: Another, tmp_path: Path) -> None:
    buddy = another(grace_seconds=8)
    records, _ = split(sendable(RECORDS, seed=7))
    half = len(records) // 2
    chunks = [write(tmp_path / "one", records[:half]), write(tmp_path / "two", records[half:])]

    def send_all() -> None:
        for chunk in chunks:
            buddy.run("send", chunk).succeeded()

    one, other = (buddy.elsewhere(name) for name in ("one", "other"))
    async with broker_of(buddy) as broker:
        outcomes = Outcomes(broker, buddy.names)
        await outcomes.open()
        first = one.start("worker").ready()
        second = other.start("worker").ready()  # so the tasks have been shared out anew
        sending = asyncio.create_task(asyncio.to_thread(send_all))
        await outcomes.reach(len(records) // 20)
        first.kill()
        await outcomes.reach(len(records) // 2)
        third = one.start("worker").ready()
        await outcomes.reach(len(records))
        await sending
        await outcomes.close()
    for service in (second, third):
        stopped = await asyncio.to_thread(service.stop)
        assert stopped.code == 0, f"{stopped}"
    books = await books_of(buddy)
    books.balance()
    assert timeless(books.verdicts) == expected(records)
