"""`buddy export` and a sink that does not get on."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, cast

import pytest
from msgspec.structs import replace

from worker.brokers.contract import Broker
from worker.cli.console import progress_bar
from worker.cli.export import Signs, _answer
from worker.core.topics import Names
from worker.errors import NoAnswer
from worker.sink.requests import Announcement, ExportRequest, Progress, encode_announcement
from worker.stream import Message, OffsetRange, Partition

NAMES = Names("t")
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


class Saying:
    """A broker and its reader, on which a sink says the same again and again."""

    def __init__(self, *said: Announcement) -> None:
        self._said = said
        self.reads = 0

    async def spans(self, places: list[Partition]) -> Mapping[Partition, OffsetRange]:
        return dict.fromkeys(places, OffsetRange(0, 0))

    async def publish(self, messages: Any) -> None:
        pass

    def reader(self) -> Saying:
        return self

    def assign(self, positions: Any) -> None:
        pass

    async def read(self, limit: int, timeout: float) -> list[Message]:
        await asyncio.sleep(0)
        self.reads += 1
        return [Message(NAMES.exports, 0, 0, 0, *encode_announcement(said)) for said in self._said]

    async def close(self) -> None:
        pass


async def ask(broker: Saying, patience: float = 0.05) -> Announcement:
    request = ExportRequest("mine")
    with progress_bar(quiet=True) as bar:
        return await _answer(cast("Broker", broker), NAMES, request, bar, patience, wait=True)


async def test_a_request_that_is_taken_up_again_and_again_is_silence() -> None:
    """A sink without a right begins every export anew, and each time says so."""
    standing = Announcement("id", "mine", "progress", MOMENT, progress=Progress("place", 0, 1))
    broker = Saying(Announcement("id", "mine", "started", MOMENT), standing)
    with pytest.raises(NoAnswer, match=r"a sink has begun export mine, .* with --id mine"):
        async with asyncio.timeout(10):
            await ask(broker)
    assert broker.reads > 1


async def test_a_sink_that_is_busy_with_another_has_not_begun_this_one() -> None:
    broker = Saying(Announcement("id", "another", "started", MOMENT))
    with pytest.raises(NoAnswer, match="no sink has answered"):
        async with asyncio.timeout(10):
            await ask(broker)


def test_progress_is_a_sign_even_where_it_stands_still() -> None:
    signs = Signs()
    started = Announcement("id", "mine", "started", MOMENT)
    steps = [replace(started, status="progress", progress=Progress("judge", n, 9)) for n in (1, 2)]
    assert signs.is_new(started)
    assert [signs.is_new(steps[0]) for _ in range(3)] == [True] * 3
    assert not signs.is_new(started), "it begins again"
    assert not signs.is_new(steps[0])
    assert signs.is_new(steps[1]), "farther than before"
    assert signs.is_new(replace(started, request_id="other"))
    assert signs.is_new(replace(started, status="finished"))
