"""A sink whose disk of exports hangs: it is told, and nobody takes it for one that gets on."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Clock, unique
from tests.contract.helpers import eventually
from tests.contract.sink_kit import Sink, a_sink
from tests.unit.rows_kit import user
from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.exports.places.directory import DirectoryPlace
from worker.exports.places.hangs import HANG_SECONDS
from worker.sink import answers, service

pytestmark = pytest.mark.parametrize("kind", ["embedded"])


class Disk:
    """Flushes hang from `freeze` to `thaw`; the time is ours."""

    def __init__(self) -> None:
        self.now = 0.0
        self.looks = 0
        """How often it was asked whether a call hangs."""
        self._frozen = False
        self._thawed = threading.Event()
        self.hangs = threading.Event()
        self._fsync = os.fsync

    def fsync(self, file: int) -> None:
        if self._frozen:
            self.hangs.set()
            assert self._thawed.wait(60)
        self._fsync(file)

    def time(self) -> float:
        self.looks += 1  # each look reads the clock
        return self.now

    def freeze(self) -> None:
        self._frozen = True

    def thaw(self) -> None:
        self._frozen = False
        self._thawed.set()


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    disk = Disk()
    monkeypatch.setattr(os, "fsync", disk.fsync)
    monkeypatch.setattr(service, "_LOOK_SECONDS", 0.01)
    yield disk
    disk.thaw()


@pytest.fixture
async def sink(broker: Broker, clock: Clock, tmp_path: Path, disk: Disk) -> Sink:
    sink = await a_sink(broker, Names(unique("hang")), tmp_path / "sink", clock)
    sink.place = DirectoryPlace(sink.exports, steady=disk.time)
    await sink.accept("users", user(1))
    return sink


async def told(sink: Sink, disk: Disk) -> None:
    """The disk hangs, and after its time that is told."""
    assert await asyncio.to_thread(disk.hangs.wait, 30)
    assert sink.reasons() == []
    disk.now += HANG_SECONDS
    (reason,) = await eventually(lambda: asyncio.sleep(0, sink.reasons()), bool)
    assert reason.startswith(f"sink: exports: the disk of {sink.exports} has not answered for 20 s")
    assert sink.metrics.registry.get_sample_value("buddy_export_place_away") == 1


async def back(sink: Sink, disk: Disk) -> None:
    disk.thaw()
    await eventually(lambda: asyncio.sleep(0, sink.reasons()), lambda found: found == [])
    assert sink.metrics.registry.get_sample_value("buddy_export_place_away") == 0


async def test_a_probe_that_hangs_is_told(sink: Sink, disk: Disk) -> None:
    disk.freeze()
    with capture_logs() as logs:
        async with sink.running():
            await told(sink, disk)
            await back(sink, disk)
    events = [entry["event"] for entry in logs]
    assert events.count("export_place_hangs") == events.count("export_place_back") == 1


async def test_an_export_that_hangs_is_told_and_says_nothing_more(
    sink: Sink, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "_REPORT_SECONDS", 0.01)
    monkeypatch.setattr(answers, "_ALIVE_SECONDS", 0.0)
    async with sink.running():
        await sink.export("one", formats=("csv",))
        disk.freeze()
        await sink.export_request("two", formats=("csv",))
        await told(sink, disk)
        said = len(await sink.announced("progress"))
        assert said > 0
        enough = disk.looks + 50
        await eventually(lambda: asyncio.sleep(0, disk.looks), lambda looks: looks >= enough)
        assert len(await sink.announced("progress")) <= said + 1, "one was on its way"
        await back(sink, disk)
        finished = await sink.answer("finished")
    assert finished.request_id == "two"
