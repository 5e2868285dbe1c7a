"""Two sinks on one prefix, each with a store of its own, publishing to one place."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Another, Clock, unique
from tests.contract.frozen_kit import STAGES, Freezer
from tests.contract.helpers import PATIENCE, eventually
from tests.contract.sink_kit import Sink, a_sink, begun, fill
from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.exports.verify import verify
from worker.sink import answers
from worker.sink.requests import ExportRequest, export_id_of
from worker.sink.schedule import Schedule

HOUR_MS = 3_600_000
HOURLY = (Schedule("hourly", "0 * * * *", formats=("csv",)),)
SESSION_MS = 6_001

Pair = tuple[Sink, Sink]


@pytest.fixture
async def pair(broker: Broker, another: Another, clock: Clock, tmp_path: Path) -> Pair:
    """Each on a connection of its own, as two processes would be; shortly before a full hour."""
    clock.now = clock.now // HOUR_MS * HOUR_MS + HOUR_MS - 2_000
    names = Names(unique("pair"))
    first = await a_sink(broker, names, tmp_path / "first", clock)
    second = Sink(await another(), names, tmp_path / "second", clock)
    second.exports, second.place = first.exports, first.place
    first.schedules = second.schedules = HOURLY
    return first, second


@pytest.fixture(params=STAGES)
async def freezer(request: pytest.FixtureRequest) -> Freezer:
    return Freezer(request.param)


def slot_id(moment: int) -> str:
    return f"hourly:{datetime.fromtimestamp(moment // HOUR_MS * 3600, UTC):%Y%m%dT%H%M%SZ}"


async def published(sink: Sink) -> dict[str, str]:
    """The finished exports, as announced: by request id the directory, which must be but one.

    The last announcement for each request must be that it is finished.
    """
    found: dict[str, set[str]] = {}
    latest = {said.request_id: said.status for said in await sink.announced(None)}
    assert set(latest.values()) == {"finished"}, latest
    for said in await sink.announced():
        assert said.id == export_id_of(said.request_id)
        found.setdefault(said.request_id, set()).add(str(said.directory))
    assert all(len(directories) == 1 for directories in found.values()), found
    for (directory,) in found.values():
        assert verify(sink.exports / directory).problems == ()
    return {request_id: directory for request_id, (directory,) in found.items()}


def finished(sink: Sink) -> list[str]:
    return sorted(name for name in sink.directories() if not name.startswith("."))


@asynccontextmanager
async def both(first: Sink, second: Sink) -> AsyncIterator[list[asyncio.Event]]:
    """Both run, and the first is active; gives what stops each."""
    async with first.running() as one:
        await begun(first)
        async with second.running() as other:
            yield [one, other]


async def test_one_of_two_answers_and_the_other_takes_over(pair: Pair) -> None:
    first, second = pair
    first.schedules = second.schedules = ()
    await fill(first)
    async with first.running() as stop:
        await first.export("one", formats=("csv",))
        async with second.running():
            await first.export("two", formats=("csv",))
            stop.set()
            await first.export("three", formats=("csv",))
    assert [said.request_id for said in await first.announced()] == ["one", "two", "three"]
    assert sorted(await published(first)) == ["one", "three", "two"]
    assert len(finished(first)) == 3


@pytest.mark.parametrize("kind", ["embedded"])
async def test_a_slot_is_published_once_though_the_active_sink_freezes(
    pair: Pair, clock: Clock, freezer: Freezer
) -> None:
    """The other one finishes the slot, and the first one does no harm when it thaws."""
    first, second = pair
    await fill(first)
    first.place = freezer.place(first.place)
    with capture_logs() as logs:
        async with first.running(freezer.broker(first.broker)):
            await begun(first)
            async with second.running(), freezer.thawed_at_last():
                clock.now += 3_000
                slot = slot_id(clock.now)
                await asyncio.wait_for(freezer.frozen.wait(), PATIENCE)
                before = finished(first)
                clock.now += SESSION_MS
                said = await first.answer("finished")
                assert (said.request_id, finished(first)) == (slot, [said.directory])
                assert before in ([], [said.directory])
                freezer.thaw()
                await eventually(lambda: asyncio.sleep(0, _events(logs)), _was_fenced)
                clock.now += HOUR_MS  # each takes the other for dead
                other = await first.answer("finished")
    assert other.request_id == slot_id(clock.now)
    assert await published(first) == {
        slot: said.directory,
        other.request_id: other.directory,
    }
    assert finished(first) == sorted([str(said.directory), str(other.directory)])


def _events(logs: Sequence[Mapping[str, object]]) -> list[object]:
    return [entry["event"] for entry in logs]


def _was_fenced(events: list[object]) -> bool:
    return "sink_fenced" in events


async def test_a_slot_is_published_once_though_the_active_sink_stops(
    pair: Pair, clock: Clock, freezer: Freezer
) -> None:
    first, second = pair
    first.place = freezer.place(first.place)
    async with first.running(freezer.broker(first.broker)) as stop:
        await begun(first)
        async with second.running(), freezer.thawed_at_last():
            clock.now += 3_000
            await asyncio.wait_for(freezer.frozen.wait(), PATIENCE)
            stop.set()
            freezer.thaw()
            said = await second.answer("finished")
    assert said.request_id == slot_id(clock.now)
    assert await published(first) == {said.request_id: said.directory}
    assert finished(first) == [said.directory]


async def test_a_fenced_sink_announces_nothing_and_stands_again(pair: Pair) -> None:
    first, _ = pair
    first.schedules = ()
    with capture_logs() as logs:
        async with first.running():
            await first.export("one", formats=("csv",))
            group = f"{first.names.prefix}-sink"
            thief = await first.broker.committer(group, group)
            await first.export("two", formats=("csv",))
            await thief.close()
    assert _events(logs).count("sink_fenced") == 1
    assert [s.request_id for s in await first.announced("started")] == ["one", "two"]
    assert [s.request_id for s in await first.announced()] == ["one", "two"]
    assert len(finished(first)) == 2


async def test_a_sink_that_is_fenced_during_an_export_announces_no_more(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither progress nor an answer; the export is announced when it leads again."""
    monkeypatch.setattr(answers, "_REPORT_SECONDS", 0.01)
    monkeypatch.setattr(answers, "_ALIVE_SECONDS", 0.0)
    first, _ = pair
    first.schedules = ()
    await first.send("users", 1)  # nobody judges it
    first.patience = PATIENCE
    with capture_logs() as logs:
        async with first.running():
            await first.export_request("one", formats=("csv",))
            await first.answer("progress")
            group = f"{first.names.prefix}-sink"
            thief = await first.broker.committer(group, group)
            said = len(await first.announced(None))
            await eventually(
                lambda: asyncio.sleep(0, _events(logs)),
                lambda events: "export_progress_not_announced" in events,
            )
            assert len(await first.announced(None)) == said
            await first.judge(0, {"users": 1})
            await first.answer("finished")
            await thief.close()
    # Kafka may answer a fenced writer "unknown" for a while, which is tried again.
    fenced = [e for e in logs if e["event"] == "export_progress_not_announced"]
    assert sum("unknown; see the log of Kafka" not in entry["error"] for entry in fenced) <= 1
    assert list(await published(first)) == ["one"]


async def test_a_request_that_comes_twice_is_one_export(pair: Pair) -> None:
    first, second = pair
    async with both(first, second) as stops:
        one = await first.export("again", formats=("csv",))
        stops[0].set()
        other = await first.export("again", formats=("csv",))
    assert (one.id, one.directory, one.files) == (other.id, other.directory, other.files)
    assert finished(first) == [one.directory]


async def test_positions_outlive_a_rebuilt_store(pair: Pair, tmp_path: Path) -> None:
    first, _ = pair
    async with first.running():
        await first.export("one", formats=("csv",))
    anew = Sink(first.broker, first.names, tmp_path / "anew", first.clock)
    async with anew.running():
        await anew.ask(ExportRequest("two", formats=("csv",)))
        assert (await anew.announced("started"))[0].request_id == "one"
        while (said := await anew.answer("started")).request_id != "two":
            pass
        await anew.answer("finished")
    assert said.request_id == "two"
    assert [s.request_id for s in await anew.announced("started")] == ["one", "two"]
