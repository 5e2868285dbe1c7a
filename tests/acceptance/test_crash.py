"""Killing `buddy run` with -9, again and again, loses nothing and doubles nothing."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.acceptance.accounts import Outcomes, books_of, broker_of, by_key, json_rows, latest_rows
from tests.acceptance.kit import Another
from tests.acceptance.material import expected, sendable, split, timeless, write

pytestmark = pytest.mark.acceptance

RECORDS = 5_000
CHUNKS = 3
MOMENTS = {"embedded": (0.02, 0.15, 0.4, 0.7), "kafka": (0.05, 0.5)}
"""After which share of the outcomes it is killed. Kafka waits 6 s for a member that is dead."""


async def test_killed_in_the_middle_of_a_stream_every_record_has_one_outcome(
    another: Another, kind: str, tmp_path: Path
) -> None:
    buddy = another(grace_seconds=8)
    first, second = split(sendable(RECORDS, seed=11))
    size = -(-len(first) // CHUNKS)
    chunks = [
        write(tmp_path / f"chunk-{n}", first[n * size : (n + 1) * size]) for n in range(CHUNKS)
    ]
    claims = write(tmp_path / "claims", second)

    def send_all() -> None:
        for chunk in chunks:
            buddy.run("send", chunk).succeeded()

    async with broker_of(buddy) as broker:
        outcomes = Outcomes(broker, buddy.names)
        await outcomes.open()
        service = buddy.start("run").ready()
        sending = asyncio.create_task(asyncio.to_thread(send_all))
        for number, share in enumerate(MOMENTS[kind]):
            await outcomes.reach(int(share * len(first)))
            service.kill()
            service = buddy.start("run")
            if number == 1:
                service.wait_for("index_restoring")
                service.kill()  # also while it takes up its work
                service = buddy.start("run")
        await sending
        await outcomes.reach(len(first))
        # A second claim to an address is judged after the first: partitions have no order.
        sent = await asyncio.to_thread(buddy.run, "send", claims, "--wait", "--json")
        assert sent.json["rejected"] == len(second), f"{sent}"
        await outcomes.close()
    export = await asyncio.to_thread(buddy.export, "--format", "json")
    await asyncio.to_thread(service.stop)

    assert service.result.code == 0
    books = await books_of(buddy)
    books.balance()
    assert books.ever_parked, "nothing ever waited: the stream is too tame"
    assert timeless(books.verdicts) == expected(first + second)
    everything = write(tmp_path / "all", first + second)
    buddy.run("check", everything, "--accepted", tmp_path / "rows", "--json")
    rows = {entity: by_key(entity, found) for entity, found in json_rows(export).items()}
    assert rows == latest_rows(tmp_path / "rows")
