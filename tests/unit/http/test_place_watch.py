"""An API that cannot read finished exports says so, also while nobody asks for one."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from unittest.mock import Mock

import pytest
from structlog.testing import capture_logs

from tests.unit.http.watch_kit import Told
from worker.core.topics import Names
from worker.exports.places.directory import DirectoryPlace
from worker.exports.places.place import ExportPlace
from worker.http import place_watch
from worker.http.broker_watch import BrokerWatch
from worker.http.metrics import HttpMetrics
from worker.http.place_watch import PlaceWatch
from worker.ops.instruments import Instruments


class Heard(BrokerWatch):
    """Tells each line that it hears, or None where exports were read."""

    def __init__(self) -> None:
        super().__init__(Mock(), Names(), Mock(), HttpMetrics(Instruments(), []))
        self.told = Told()

    def not_followed(self, what: str, why: str) -> None:
        super().not_followed(what, why)
        self.told.tell(why)

    def followed(self, what: str) -> None:
        super().followed(what)
        self.told.tell(None)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place_watch, "_LOOK_SECONDS", 0.01)


@asynccontextmanager
async def watching(place: ExportPlace) -> AsyncIterator[Heard]:
    stop, heard = asyncio.Event(), Heard()
    running = asyncio.create_task(PlaceWatch(place, heard).run(stop))
    try:
        yield heard
    finally:
        stop.set()
        await running


async def test_a_directory_that_is_gone_is_told_until_it_is_back(tmp_path: Path) -> None:
    root, away = tmp_path / "exports", tmp_path / "away"
    with capture_logs() as logs:
        async with watching(DirectoryPlace(root)) as heard:
            assert await heard.told.next() is None, (
                "it was never there: the first export creates it"
            )
            root.mkdir()
            assert [await heard.told.next() for _ in range(3)] == [None] * 3
            root.rename(away)
            await heard.told.until("was replaced or unmounted")
            assert "was replaced or unmounted" in str(heard.hindrance())
            away.rename(root)
            await heard.told.until(None)
    assert [entry["event"] for entry in logs] == ["exports_not_read", "exports_read_again"]


async def test_a_disk_that_hangs_is_told_too() -> None:
    line, thaw = "the disk of exports has not answered for 20 s", threading.Event()
    place = Mock(**{"hang.return_value": line, "find.side_effect": lambda _name: thaw.wait(30)})
    async with watching(place) as heard:
        assert await heard.told.next() == line
        thaw.set()
        await heard.told.until(None)
