"""A desk whose wall clock is wrong at its start, and is then set right."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import unique
from tests.contract.desk_kit import CLOCK, OPEN, PARTITIONS, Desk, MovedClock, Reports, served
from tests.contract.helpers import damage_embedded
from tests.unit.rows_kit import uuid
from worker.brokers.contract import Broker
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.topics import Names, wanted
from worker.core.violations import Code
from worker.desk import service
from worker.desk.incidents import IncidentBook
from worker.stream import Partition

HOUR = 3_600_000
STEPS = "buddy_clock_steps_total"


@pytest.mark.parametrize("wrong", [24 * HOUR, -2 * HOUR])
async def test_incidents_are_dated_by_the_clock_once_it_is_set_right(
    broker: Broker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    monkeypatch.setattr(service, "_PAUSE_SECONDS", 0.01)
    names = Names(unique("desk"))
    await broker.create(wanted(names, PARTITIONS, 1024 * 1024).values())
    desk, clock, reports = Desk(broker, names, tmp_path / "desk"), MovedClock(wrong), Reports()
    with capture_logs() as logs:
        async with served(desk, reports, clock=clock):
            await reports.until(passes=1)
            await desk.publish(desk.rejection("users", uuid(0), Code.INVALID_ENUM, "role"))
            await reports.until(passes=reports.passes + 2)
            clock.ahead += 10_000  # the desk looks once more, with the wrong clock
            await reports.until(passes=reports.passes + 2)
            clock.wrong = 0
            await reports.until(passes=reports.passes + 2)
            for number in range(1, 60):
                await desk.publish(desk.rejection("users", uuid(number), Code.INVALID_ENUM, "role"))
            await reports.until(passes=reports.passes + 2)
            clock.ahead += 10_000  # the bucket is over
            users = {"entity": "users", "what": "rejections"}
            await reports.until(waits_for=lambda: reports.value(OPEN, users) == 1)
    told = [(one["event"], one["by_ms"]) for one in logs if "clock" in one["event"]]
    assert [event for event, _ in told] == ["desk_clock_differs", "clock_stepped"]
    assert abs(told[1][1] + wrong) < 2_000
    assert reports.value(STEPS) == 1
    (found,) = await desk.look(lambda store: IncidentBook(store).reports())
    assert abs(found.since - CLOCK.wall()) < HOUR


def test_beside_a_worker_the_worker_tells() -> None:
    reports = Reports(tells_steps=False)
    with capture_logs() as logs:
        reports.clock_stepped(HOUR)
    assert (reports.value(STEPS), logs) == (0, [])


@pytest.mark.parametrize("kind", ["embedded"])  # damage is made there
@pytest.mark.parametrize("name", ["rejected.users", "accepted.users"])
async def test_what_is_read_late_behind_damage_tells_nothing_about_clocks(
    broker: EmbeddedBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(service, "_PAUSE_SECONDS", 0.01)
    names = Names(unique("desk"))
    await broker.create(wanted(names, PARTITIONS, 1024 * 1024).values())
    desk, clock, reports = Desk(broker, names, tmp_path / "desk"), MovedClock(), Reports()
    place = Partition(f"{names.prefix}.{name}", 0)
    rejected = desk.rejection("users", uuid(0), Code.INVALID_ENUM, "role")
    found = rejected if name.startswith("rejected") else desk.row("users", uuid(1))
    for _ in range(2):
        await desk.publish(msgspec.structs.replace(found, partition=0))
    await damage_embedded(broker, place, 0)
    with capture_logs() as logs:
        async with served(desk, reports, clock=clock):
            await reports.until(passes=2)
            clock.ahead += 600_000  # the damage stands for so long
            await reports.until(passes=reports.passes + 2)
            await broker.inspection.skip(await broker.inspection.find(place, None))
            await reports.until(passes=reports.passes + 2)
            clock.ahead += 10_000  # the bucket is over
            await reports.until(passes=reports.passes + 2)
    assert [one["event"] for one in logs if "clock" in one["event"]] == []
