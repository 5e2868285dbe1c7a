"""`buddy rejections` passes over what others have left in its topics."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.unit.embedded_kit import opened
from worker.brokers.contract import Outgoing
from worker.cli.main import run
from worker.topics import Names

GARBAGE = (b"", b"{}", b"\xff", b'{"entity":"\xff"}', b'{"zz":' + b"[" * 5_000)


def test_what_is_no_rejection_is_named_and_skipped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    option = f"--broker=embedded:{tmp_path / 'broker'}"
    assert run([option, "topics", "create", "--partitions", "1"]) == 0

    async def fill() -> None:
        async with opened(tmp_path / "broker") as broker:
            topic = Names().rejected("users")
            await broker.publish([Outgoing(topic, b"k", value, partition=0) for value in GARBAGE])

    asyncio.run(fill())
    capsys.readouterr()
    assert run([option, "rejections", "summary"]) == 0
    said = capsys.readouterr().err.splitlines()
    assert said == [
        f"buddy: buddy.rejected.users/0/{offset} is no rejection: skipped"
        for offset in range(len(GARBAGE))
    ]
