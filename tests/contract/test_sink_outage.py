"""A sink whose bucket is away for a while: nothing fails, and it is told."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Clock, unique
from tests.contract.bucket_kit import Gate, World
from tests.contract.helpers import eventually
from tests.contract.sink_kit import Sink, a_sink, begun
from tests.unit.rows_kit import user
from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.errors import StateError
from worker.exports.places import outages
from worker.sink.agenda import RETRY_MS
from worker.sink.export_settings import ExportSettings
from worker.sink.schedule import Schedule
from worker.sink.service import serve
from worker.sink.upkeep import AGAIN_MS

HOUR_MS = 3_600_000
OFTEN = Schedule("often", "*/5 * * * *", formats=("csv",))

pytestmark = pytest.mark.parametrize("kind", ["embedded"])


@pytest.fixture
def gate() -> Gate:
    return Gate()


@pytest.fixture
async def sink(
    broker: Broker,
    clock: Clock,
    tmp_path: Path,
    world: World,
    gate: Gate,
    monkeypatch: pytest.MonkeyPatch,
) -> Sink:
    monkeypatch.setattr(outages, "FIRST_PAUSE", 0.01)
    clock.now = clock.now // HOUR_MS * HOUR_MS + HOUR_MS - 2_000
    sink = await a_sink(broker, Names(unique("outage")), tmp_path / "sink", clock)
    sink.place = world.sink_behind(gate)
    sink.schedules = (OFTEN,)
    await sink.accept("users", user(1))
    return sink


def ready(sink: Sink) -> list[str]:
    return sink.health.reasons(sink.clock())


def away(sink: Sink) -> Callable[[], Awaitable[list[str]]]:
    return lambda: asyncio.sleep(0, ready(sink))


async def test_a_request_waits_for_the_bucket_and_it_is_told(
    sink: Sink, gate: Gate, world: World
) -> None:
    with capture_logs() as logs:
        async with sink.running():
            await begun(sink)
            gate.shut_from(0)
            await sink.export_request("one", formats=("json",))
            (reason,) = await eventually(away(sink), bool)
            assert reason.startswith(f"sink: exports: cannot use the exports in s3://{world.name}")
            value = sink.metrics.registry.get_sample_value
            assert value("buddy_export_place_away") == 1
            said = await sink.answer("progress")
            assert said.progress is not None
            assert said.progress.stage == "place"
            gate.open()
            finished = await sink.answer("finished")
            await eventually(away(sink), lambda found: found == [])
            assert value("buddy_export_place_away") == 0
            assert (value("buddy_export_place_outages_total") or 0) >= 1
    assert [found.name for found in sink.place.finished()] == [finished.directory]
    assert await sink.announced("failed") == []
    events = [entry["event"] for entry in logs]
    assert {"export_place_away", "export_place_back"} <= set(events)


async def test_a_slot_that_an_outage_failed_holds_up_no_other_and_leaves_nothing(
    sink: Sink, gate: Gate, world: World
) -> None:
    """Longer than anybody's patience."""
    sink.place = world.sink_behind(gate, patience=0)
    async with sink.running():
        await begun(sink)
        gate.shut_at = lambda _asked: bool(world.held())
        sink.clock.now += 2_000
        failed = await sink.answer("failed")
        assert ready(sink) != []
        gate.open()
        assert len(world.held()) == 1
        sink.clock.now += AGAIN_MS
        await eventually(lambda: asyncio.to_thread(world.held), lambda held: held == [])
        await eventually(away(sink), lambda found: found == [])
        sink.clock.now += RETRY_MS // 2 - AGAIN_MS
        said = await sink.answer("finished")
    assert said.request_id > failed.request_id, "the next slot, five minutes later"
    assert {key.split("/")[1] for key in world.held()} == {said.directory}


async def test_a_sink_that_is_to_stop_waits_for_no_bucket(sink: Sink, gate: Gate) -> None:
    async with sink.running() as stop:
        await begun(sink)
        gate.shut_from(0)
        await sink.export_request("one", formats=("json",))
        await eventually(away(sink), bool)
        stop.set()
    assert await sink.announced("failed") == []


async def test_a_sink_waits_for_its_bucket_at_the_start(sink: Sink, gate: Gate) -> None:
    gate.shut_from(0)
    async with sink.running():
        await eventually(away(sink), lambda found: any("s3://" in line for line in found))
        gate.open()
        await sink.export("one", formats=("json",))


async def test_a_sink_that_is_to_stop_while_it_starts_waits_for_no_bucket(
    sink: Sink, gate: Gate
) -> None:
    gate.shut_from(0)
    async with sink.running() as stop:
        await eventually(away(sink), lambda found: any("s3://" in line for line in found))
        stop.set()


async def test_a_sink_whose_bucket_stays_away_does_not_start(
    sink: Sink, gate: Gate, world: World
) -> None:
    gate.shut_from(0)
    settings = ExportSettings(world.sink_behind(gate, patience=0))
    with pytest.raises(StateError, match="no answer from the server"):
        await serve(sink.broker, sink.names.prefix, sink.store, settings, asyncio.Event())
