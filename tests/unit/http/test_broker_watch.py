"""What keeps the API from sending records or following topics is told, also while nobody asks."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import AsyncMock, Mock

import pytest
from structlog.testing import capture_logs

from tests.clock_kit import SettableClock
from tests.unit.embedded_kit import HOUR, opened
from tests.unit.http.watch_kit import Told
from worker.brokers.contract import Broker
from worker.brokers.embedded.store import FILE_NAME
from worker.core.topics import Names, wanted
from worker.errors import BrokerUnavailable, MessageRefused, ReplayTakenOver
from worker.http import broker_watch, following
from worker.http.access import ANYONE
from worker.http.announcements import Announcements
from worker.http.broker_watch import BrokerWatch
from worker.http.export_requests import ExportRequests
from worker.http.metrics import HttpMetrics
from worker.ops.instruments import Instruments
from worker.sink.requests import ExportRequest

NAMES = Names()
USERS = NAMES.input("users")
LIMIT = 1024 * 1024


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_watch, "_LOOK_SECONDS", 0.01)


@asynccontextmanager
async def watching(broker: Broker, told: Told) -> AsyncIterator[BrokerWatch]:
    stop = asyncio.Event()
    watch = BrokerWatch(broker, NAMES, told.tell, HttpMetrics(Instruments(), []))
    running = asyncio.create_task(watch.run(stop))
    try:
        yield watch
    finally:
        stop.set()
        await running


async def test_a_clock_that_the_log_refuses_is_told_until_it_is_right(tmp_path: Path) -> None:
    clock, told = SettableClock(), Told()
    async with opened(tmp_path / "log", clock, "boot") as broker:
        await broker.create(wanted(NAMES, 1, LIMIT).values())
    clock.step(HOUR)
    async with opened(tmp_path / "log", clock, "boot") as broker, watching(broker, told):
        await told.until("accept-clock")
        clock.step(-HOUR)
        await told.until(None)


async def test_a_missing_input_is_told_until_it_is_there(tmp_path: Path) -> None:
    told = Told()
    async with opened(tmp_path / "log") as broker, watching(broker, told):
        await told.until("is missing: run 'buddy topics create'")
        await broker.create(wanted(NAMES, 1, LIMIT).values())
        await told.until(None)
        await told.until(None)  # again and again: whoever is told learns that it still looks


@pytest.mark.parametrize("missing", [NAMES.progress, NAMES.replays, NAMES.export_requests])
async def test_a_topic_that_other_requests_need_is_told_too(tmp_path: Path, missing: str) -> None:
    told, topics = Told(), wanted(NAMES, 1, LIMIT)
    async with opened(tmp_path / "log") as broker, watching(broker, told):
        await broker.create(topic for name, topic in topics.items() if name != missing)
        await told.until(f"topic {missing} is missing: run 'buddy topics create'")
        await broker.create([topics[missing]])
        await told.until(None)


async def test_a_request_that_failed_counts_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = Told()
    async with opened(tmp_path / "log") as broker:
        await broker.create(wanted(NAMES, 1, LIMIT).values())
        async with watching(broker, told) as watch:
            watch.failed(USERS, MessageRefused("too large"))
            await told.until(None)
            watch.failed(USERS, BrokerUnavailable("no right to write"))
            await told.until("no right to write")
            monkeypatch.setattr(broker_watch, "_LASTING_SECONDS", 0.0)
            await told.until(None)


async def test_a_request_that_failed_counts_until_its_input_takes_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_watch, "_LASTING_SECONDS", 1_000.0)
    told = Told()
    async with opened(tmp_path / "log") as broker:
        await broker.create(wanted(NAMES, 1, LIMIT).values())
        async with watching(broker, told) as watch:
            watch.failed(USERS, BrokerUnavailable("no right to write"))
            await told.until("no right to write")
            watch.sent(NAMES.input("events"))
            await told.until("no right to write")
            watch.sent(USERS)
            await told.until(None)


async def test_a_request_for_an_export_that_cannot_be_sent_counts_until_one_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_watch, "_LASTING_SECONDS", 1_000.0)
    told = Told()
    async with opened(tmp_path / "log") as broker:
        await broker.create(wanted(NAMES, 1, LIMIT).values())
        refuse = AsyncMock(side_effect=BrokerUnavailable("no right to write there"))
        async with watching(broker, told) as watch:
            refused = ExportRequests(Mock(publish=refuse), NAMES, watch)
            with pytest.raises(BrokerUnavailable):
                await refused.send(ExportRequest("a"), ANYONE)
            await told.until("no right to write there")
            requests = ExportRequests(broker, NAMES, watch)
            await requests.send(ExportRequest("b"), ANYONE)
            await told.until(None)


def test_a_replay_that_another_one_has_stopped_is_no_failure_of_the_broker() -> None:
    watch = BrokerWatch(Mock(), NAMES, Told().tell, HttpMetrics(Instruments(), []))
    watch.failed(NAMES.replays, ReplayTakenOver("another replay has begun"))
    assert watch._failures == {}


@pytest.mark.parametrize("number", [0, 1])
async def test_a_damaged_partition_is_told_until_it_is_mended(tmp_path: Path, number: int) -> None:
    told = Told()
    async with opened(tmp_path / "log") as broker:
        await broker.create(wanted(NAMES, 2, LIMIT).values())
        async with watching(broker, told):
            await told.until(None)
            damage(tmp_path / "log", number, 1)
            await told.until(f"entry of {USERS}/{number} is damaged")
            damage(tmp_path / "log", number, -1)
            await told.until(None)


def damage(log: Path, number: int, by: int) -> None:
    """Change the checksum of a partition of users."""
    with contextlib.closing(sqlite3.connect(log / FILE_NAME)) as connection, connection:
        connection.execute(
            "UPDATE partitions SET crc = crc + ? WHERE number = ?"
            " AND topic = (SELECT id FROM topics WHERE name = ?)",
            (by, number, USERS),
        )


async def test_a_broker_that_does_not_answer_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_watch, "_SLOW_SECONDS", 0.0)
    told = Told()
    async with opened(tmp_path / "log") as broker:
        monkeypatch.setattr(broker, "topics", lambda _names: asyncio.Event().wait())
        async with watching(broker, told):
            await told.until("has not answered")


async def test_a_topic_that_cannot_be_followed_is_told_until_it_has_been_read_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_watch, "STEADY_MS", 0)
    told = Told()
    topics = wanted(NAMES, 1, LIMIT)
    async with opened(tmp_path / "log") as broker:
        await broker.create(topic for name, topic in topics.items() if name != NAMES.exports)
        async with watching(broker, told) as watch:
            await told.until(None)
            running = asyncio.create_task(Announcements(broker, NAMES, watch).run())
            await told.until(f"topic {NAMES.exports} is missing")
            await broker.create([topics[NAMES.exports]])
            await told.until(None)
            running.cancel()
    watch.not_followed(NAMES.exports, "no right to read")
    monkeypatch.setattr(broker_watch, "STEADY_MS", 1_000_000)
    watch.followed(NAMES.exports)
    assert watch.hindrance() == "no right to read", "one read is no sign that it is over"


async def test_a_topic_that_cannot_be_followed_is_tried_ever_more_seldom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses, enough = list[float](), asyncio.Event()

    async def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 20:
            enough.set()
            await asyncio.Event().wait()

    monkeypatch.setattr(following, "sleep", pause)
    with capture_logs() as logs:
        async with opened(tmp_path / "log") as broker:
            watch = BrokerWatch(broker, NAMES, lambda _line: None, HttpMetrics(Instruments(), []))
            running = asyncio.create_task(Announcements(broker, NAMES, watch).run())
            async with asyncio.timeout(30):
                await enough.wait()
            running.cancel()
    assert pauses[0] < 1
    assert all(5 <= seconds <= 10 for seconds in pauses[10:])
    assert [one["retry_in"] for one in logs] == [round(seconds, 1) for seconds in pauses]
    assert {one["event"] for one in logs} == {"announcements_not_read"}
