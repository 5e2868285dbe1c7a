"""How long `buddy status` looks for the first unread records of inputs that may stand still."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any
from unittest.mock import AsyncMock, Mock

import pytest

from tests.unit.status.status_kit import NAMES, NOW
from worker.cli.ask_broker import first_unread
from worker.stream import Message, OffsetRange, Partition

USERS = [Partition(NAMES.input("users"), number) for number in range(6)]


class Slow:
    """A reader of a busy broker: each read takes 1.5 s, and returns the message of one partition.

    The last two partitions give none.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self._left = USERS[:-2]
        self.assign, self.close = Mock(), AsyncMock()

    async def read(self, *_: Any) -> Sequence[Message]:
        self.now += 1.5
        return [Message(*self._left.pop(), 0, NOW, b"k", b"v")] if self._left else []

    def position(self, partition: Partition) -> int:
        return 0


async def test_a_busy_broker_is_waited_for_as_long_as_it_gives_records(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reader = Slow()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: Mock(time=lambda: reader.now))
    broker = Mock(reader=lambda: reader)
    found = await first_unread(
        broker, dict.fromkeys(USERS, 0), dict.fromkeys(USERS, OffsetRange(0, 1))
    )
    assert found == {**dict.fromkeys(USERS[:-2], NOW), **dict.fromkeys(USERS[-2:])}
    assert reader.now == 4 * 1.5 + 2 * 1.5, "two seconds without a record end it"
