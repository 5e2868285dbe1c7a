"""What the API takes for the latest state of a request for an export."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.unit.embedded_kit import opened
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.topics import Names, wanted
from worker.http.announcements import Announcements
from worker.http.broker_watch import BrokerWatch
from worker.http.metrics import HttpMetrics
from worker.ops.instruments import Instruments
from worker.sink.answers import message_of
from worker.sink.requests import Announcement, Status

NAMES = Names()
FINISHED: tuple[Status, ...] = ("started", "finished")
FAILED: tuple[Status, ...] = ("started", "progress", "failed")


@pytest.fixture
async def broker(tmp_path: Path) -> AsyncIterator[EmbeddedBroker]:
    async with opened(tmp_path / "log") as broker:
        await broker.create(wanted(NAMES, 1, 1024 * 1024).values())
        yield broker


def said(request: str, status: Status) -> Announcement:
    return Announcement(request, request, status, datetime(2026, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize(
    ("statuses", "latest"),
    [
        ((*FINISHED, "started"), "finished"),
        ((*FINISHED, "progress"), "finished"),
        ((*FINISHED, "started", "progress"), "finished"),
        ((*FINISHED, "started", "failed"), "failed"),  # it has been removed since
        ((*FAILED, "progress"), "failed"),
        ((*FAILED, "started"), "started"),  # asked again
        ((*FAILED, *FINISHED), "finished"),
    ],
)
async def test_what_a_frozen_sink_announced_late_changes_no_answer(
    broker: EmbeddedBroker, statuses: tuple[Status, ...], latest: Status
) -> None:
    watch = BrokerWatch(broker, NAMES, lambda _line: None, HttpMetrics(Instruments(), []))
    announcements = Announcements(broker, NAMES, watch)
    told = [*(said("one", status) for status in statuses), said("last", "finished")]
    await broker.publish([message_of(NAMES, one) for one in told])
    running = asyncio.create_task(announcements.run())
    try:
        async with asyncio.timeout(30):
            await announcements.ended("last", 30)
    finally:
        running.cancel()
        with suppress(asyncio.CancelledError):
            await running
    found = announcements.latest("one")
    assert found is not None
    assert found.status == latest
