"""What a sink tells as the leader ends with its session: from then on the next leader tells."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any, cast

from structlog.testing import capture_logs

from tests.clock_kit import SettableClock
from worker.clock import Clock
from worker.errors import BrokerUnavailable
from worker.ops.health import Health
from worker.ops.metrics import Metrics
from worker.sink import leader
from worker.sink.export_settings import ExportSettings
from worker.sink.leader import Leader
from worker.sink.reports import SinkReports


def reports() -> tuple[SinkReports, Metrics]:
    metrics = Metrics()
    part = Health(metrics, lambda: 0).part("sink")
    part.restored()
    return SinkReports(metrics, part, lambda: 0), metrics


def test_a_place_that_is_away_is_the_active_sinks_to_tell() -> None:
    told, metrics = reports()
    told.place("at the start")
    assert told.health.reasons(0)
    told.active(is_active=True)
    told.place("read-only")
    assert told.health.reasons(0) == ["sink: exports: read-only (for 0 s)"]
    told.active(is_active=False)
    told.place("what was begun before ends only now")
    assert told.health.reasons(0) == []
    assert metrics.registry.get_sample_value("buddy_export_place_away") == 0
    told.active(is_active=True)
    told.place("read-only")
    assert told.health.reasons(0) == ["sink: exports: read-only (for 0 s)"]


def test_a_right_that_is_still_missing_is_told_between_two_attempts(clock: SettableClock) -> None:
    metrics = Metrics()
    part = Health(metrics, clock.steady).part("sink")
    part.restored()
    told = SinkReports(metrics, part, clock.steady)
    for _ in range(3):
        told.hindered("broker", "no right")
        clock.advance(4_900)  # the pause
        told.free("broker")
        clock.advance(4_900)
        told.free("broker")
        assert len(part.reasons(clock.steady())) == 1
    clock.advance(100)
    told.free("broker")
    assert part.reasons(clock.steady()) == []


def test_a_disk_that_hangs_hides_no_other_trouble_of_the_place() -> None:
    told, metrics = reports()
    with capture_logs() as logs:
        told.place_hangs(None)
        told.place_hangs("20 s")
        told.place_hangs("21 s")
        told.place("read-only")
        assert told.health.reasons(0) == ["sink: exports: 21 s (for 0 s)"]
        told.place_hangs(None)
        told.place_hangs(None)
    assert told.health.reasons(0) == ["sink: exports: read-only (for 0 s)"]
    told.place(None)
    assert told.health.reasons(0) == []
    assert metrics.registry.get_sample_value("buddy_export_place_outages_total") == 1
    assert [entry["event"] for entry in logs] == ["export_place_hangs", "export_place_back"]


def test_what_hinders_the_logs_upkeep_is_told_until_it_is_over() -> None:
    told, _ = reports()
    told.log_upkeep("a process hangs")
    assert told.health.reasons(0) == ["sink: log upkeep: a process hangs (for 0 s)"]
    told.log_upkeep(None)
    assert told.health.reasons(0) == []


async def test_a_session_that_failed_is_forgotten_once_another_sink_leads(monkeypatch: Any) -> None:
    monkeypatch.setattr(leader, "_FIRST_PAUSE", 0.01)
    elected = asyncio.Event()
    elected.set()
    told, _ = reports()
    failed = asyncio.Event()

    class Away:
        async def committer(self, *_: object) -> None:
            elected.clear()
            failed.set()
            raise BrokerUnavailable("no answer")

    source = SimpleNamespace(names=None, broker=Away())
    election = SimpleNamespace(group="sink", elected=elected)
    place = SimpleNamespace()
    sink = Leader(
        cast("Any", source),
        ExportSettings(cast("Any", place)),
        cast("Any", election),
        told,
        Clock(),
    )
    stop = asyncio.Event()
    running = asyncio.create_task(sink.run(stop))
    async with asyncio.timeout(5):
        await failed.wait()
        while not told.health.reasons(0):  # noqa: ASYNC110 -- health tells nobody
            await asyncio.sleep(0)
        while told.health.reasons(0):  # noqa: ASYNC110 -- the same
            await asyncio.sleep(0.01)
    stop.set()
    await running
