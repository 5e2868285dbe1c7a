"""`buddy send`: what the broker does not take is named, and the rest is sent."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path

import pytest

from tests.unit.embedded_kit import opened, read_all
from worker.cli.main import run
from worker.core.topics import Names

USERS = Names().input("users")


def test_a_record_that_fits_only_without_the_header_of_its_producer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    option = f"--broker=embedded:{tmp_path / 'broker'}"
    assert run([option, "topics", "create", "--partitions", "1"]) == 0

    async def limit() -> int:
        async with opened(tmp_path / "broker") as broker:
            return (await broker.topics([USERS]))[USERS].max_message_bytes

    size = asyncio.run(limit())
    lines = [b"{}", b"x" * (size - 10), b"{}", b"y" * (size - 9), b"[]"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\n".join(lines))))
    capsys.readouterr()
    assert run([option, "send", "--entity", "users", "--producer", "crm", "-"]) == 1
    said = capsys.readouterr()
    assert said.out == "3 records sent.\n"
    assert said.err == (
        f"buddy: -, line 2: a record of {size - 10} bytes is more than the broker takes; "
        "2 such records were not sent, all others were\n"
    )

    async def values() -> list[bytes | None]:
        async with opened(tmp_path / "broker") as broker:
            return [message.value for message in await read_all(broker, USERS)]

    assert asyncio.run(values()) == [b"{}", b"{}", b"[]"]
