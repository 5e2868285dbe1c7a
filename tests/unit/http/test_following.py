"""A followed topic that cannot be read is told, and so are receipts that are lost unread."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.contract.helpers import damage_embedded, delete_embedded_topic, empty_embedded
from tests.unit.embedded_kit import opened
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.topics import Names, wanted
from worker.errors import BrokerUnavailable
from worker.http import broker_watch
from worker.http import following as following_module
from worker.http.announcements import Announcements
from worker.http.broker_watch import BrokerWatch
from worker.http.metrics import HttpMetrics
from worker.http.receipts import Receipt, Receipts, encode_receipt
from worker.ops.instruments import Instruments
from worker.stream import Partition

NAMES = Names()
PLACE = Partition(NAMES.receipts, 0)
TOLD = f"offsets of {PLACE.topic}/0 are lost: removed, damaged and skipped, or gone with an earlier"
LOST = {"event": "receipts_lost", "topic": PLACE.topic, "partition": 0, "log_level": "warning"}


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_watch, "STEADY_MS", 0)


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    async with opened(tmp_path / "log") as broker:
        await broker.create(wanted(NAMES, 1, 1024 * 1024).values())
        yield broker


class HeardWatch(BrokerWatch):
    """Has news after each report of a follower."""

    def __init__(self, broker: EmbeddedBroker) -> None:
        make = Instruments()
        super().__init__(broker, NAMES, lambda _line: None, HttpMetrics(make, []))
        self.registry = make.registry
        self._news = asyncio.Event()

    def not_followed(self, what: str, why: str) -> None:
        super().not_followed(what, why)
        self._news.set()

    def followed(self, topic: str) -> None:
        super().followed(topic)
        self._news.set()

    def counted(self) -> float | None:
        """The offsets that were lost."""
        return self.registry.get_sample_value("buddy_http_lost_offsets_total")

    async def until(self, part: str | None) -> None:
        """Wait until there is a hindrance with this part, or none."""
        async with asyncio.timeout(30):
            while True:
                self._news.clear()
                await self._news.wait()
                line = self.hindrance()
                if line is None if part is None else part in (line or ""):
                    return


@asynccontextmanager
async def following(topic: Receipts | Announcements) -> AsyncIterator[None]:
    running = asyncio.create_task(topic.run())
    try:
        yield
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running


async def write(broker: EmbeddedBroker, *keys: str) -> None:
    """Write a receipt for each key, in a batch of its own."""
    for key in keys:
        await broker.publish([encode_receipt(PLACE.topic, key, Receipt(1, 1, "digest"))])


async def skip(broker: EmbeddedBroker, place: Partition) -> None:
    """Skip the damage, as `buddy log skip` does."""
    await broker.inspection.skip(await broker.inspection.find(place, None))


def lost(logs: list[Any]) -> list[Any]:
    return [entry for entry in logs if entry["event"].endswith("_lost")]


async def test_damaged_receipts_are_told_until_they_are_skipped_and_then_as_lost(
    broker: EmbeddedBroker,
) -> None:
    await write(broker, "known", "damaged", "behind")
    await damage_embedded(broker, PLACE, 1)
    watch = HeardWatch(broker)
    receipts = Receipts(broker, NAMES, watch)
    with capture_logs() as logs:
        async with following(receipts):
            await watch.until(f"{PLACE.topic}/0 is damaged from offset 1")
            assert lost(logs) == []
            await skip(broker, PLACE)
            await watch.until(f"1 {TOLD} topic of this name: see receipts_lost")
            found = [bool(await receipts.of(key)) for key in ("known", "damaged", "behind")]
    assert found == [True, False, True]
    assert lost(logs) == [LOST | {"count": 1}]
    assert watch.counted() == 1


async def test_damaged_announcements_are_told_until_they_are_skipped_and_then_as_lost(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Partition(NAMES.exports, 0)
    await broker.publish([encode_receipt(place.topic, "no announcement", Receipt(1, 1, ""))])
    await damage_embedded(broker, place)
    watch = HeardWatch(broker)
    with capture_logs() as logs:
        async with following(Announcements(broker, NAMES, watch)):
            await watch.until(f"{place.topic}/0 is damaged from offset 0")
            await skip(broker, place)
            await watch.until("see receipts_lost and announcements_lost in docs")
            monkeypatch.setattr(broker_watch, "_SHOWN_SECONDS", 0.0)
            await watch.until(None)
    assert lost(logs) == [LOST | {"event": "announcements_lost", "topic": place.topic, "count": 1}]
    assert watch.counted() == 1


async def test_what_was_skipped_before_the_start_does_not_affect_readiness(
    broker: EmbeddedBroker,
) -> None:
    await write(broker, "damaged", "behind")
    await damage_embedded(broker, PLACE)
    await skip(broker, PLACE)
    watch = HeardWatch(broker)
    receipts = Receipts(broker, NAMES, watch)
    with capture_logs() as logs:
        async with following(receipts):
            assert await receipts.of("behind")
            assert watch.hindrance() is None
    assert lost(logs) == [LOST | {"count": 1}]


async def test_receipts_that_are_removed_unread_are_told(broker: EmbeddedBroker) -> None:
    await write(broker, "known", "damaged", "behind")
    await damage_embedded(broker, PLACE, 1)
    watch = HeardWatch(broker)
    with capture_logs() as logs:
        async with following(Receipts(broker, NAMES, watch)):
            await watch.until("is damaged from offset 1")
            await empty_embedded(broker, PLACE)
            await write(broker, "next")
            await watch.until(f"2 {TOLD}")
    assert lost(logs) == [LOST | {"count": 2}]


async def test_a_topic_created_anew_is_told_though_the_broker_is_away_just_then(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following_module, "_IDENTITY_MS", 0)
    await write(broker, "a", "b", "c")
    watch = HeardWatch(broker)
    receipts = Receipts(broker, NAMES, watch)

    async def away(*_: Any, **__: Any) -> Any:
        raise BrokerUnavailable("the broker is away")

    with capture_logs() as logs:
        async with following(receipts):
            assert await receipts.of("c")
            with monkeypatch.context() as outage:
                outage.setattr(broker, "spans", away)
                await delete_embedded_topic(broker, PLACE.topic)
                await broker.create([wanted(NAMES, 1, 1024 * 1024)[PLACE.topic]])
                await write(broker, "d", "e", "f", "g")
                await watch.until("the broker is away")
            await watch.until(f"3 {TOLD}")
            assert await receipts.of("d"), "it was read from its start"
    assert lost(logs) == [LOST | {"count": 3}]


async def test_receipts_that_expired_before_the_start_are_no_loss(broker: EmbeddedBroker) -> None:
    await write(broker, "old")
    await empty_embedded(broker, PLACE)
    await write(broker, "new")
    receipts = Receipts(broker, NAMES, HeardWatch(broker))
    with capture_logs() as logs:
        async with following(receipts):
            assert await receipts.of("old") == []
            assert await receipts.of("new")
    assert logs == []
