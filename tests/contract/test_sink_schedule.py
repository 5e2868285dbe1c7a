"""Scheduled exports and retention on a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, MutableMapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.contract.broker_kit import Clock, DeleteTopic, unique
from tests.contract.helpers import eventually
from tests.contract.sink_kit import PARTITIONS, Sink, a_sink, begun
from tests.unit.rows_kit import user
from worker.brokers.contract import Broker
from worker.core.topics import Names, wanted
from worker.errors import StateError
from worker.exports.manifest import read_manifest
from worker.exports.places.place import Finished
from worker.exports.places.staging import Staging
from worker.sink.agenda import RETRY_MS
from worker.sink.retention import Keep
from worker.sink.schedule import Schedule, request_of
from worker.sink.upkeep import AGAIN_MS

HOUR_MS = 3_600_000
FULL = Schedule("full", "0 * * * *", entities=("users",), formats=("json",))
FEED = Schedule("feed", "30 * * * *", incremental=True, formats=("csv",))


@pytest.fixture
async def sink(broker: Broker, clock: Clock, tmp_path: Path) -> Sink:
    clock.now = clock.now // HOUR_MS * HOUR_MS + HOUR_MS - 2_000
    sink = await a_sink(broker, Names(unique("schedule")), tmp_path / "sink", clock)
    sink.schedules = (FULL,)
    return sink


async def test_a_slot_becomes_an_export_with_the_options_of_its_schedule(sink: Sink) -> None:
    await sink.accept("users", user(1))
    async with sink.running():
        await begun(sink)
        assert await sink.announced() == []
        sink.clock.now += 2_000
        said = await sink.answer("finished")
    assert said.counts == {"users": 1}
    assert [file.path.rpartition(".")[2] for file in said.files] == ["json", "SHA256SUMS"]
    assert sink.directories() == [said.directory]


async def test_what_was_missed_is_caught_up_once(sink: Sink, tmp_path: Path) -> None:
    """Also by a sink whose store is new; a first start catches nothing up."""
    sink.clock.now -= 6 * HOUR_MS  # requests are stamped by Kafka, and must not have expired
    async with sink.running():
        await begun(sink)
    sink.clock.now += 5 * HOUR_MS
    sink.store = tmp_path / "anew"
    async with sink.running():
        said = await sink.answer("finished")
        await sink.export("after", formats=("json",))
    async with sink.running():
        await sink.export("later", formats=("json",))
    ran = [said.request_id for said in await sink.announced()]
    assert ran == [said.request_id, "after", "later"]
    hour = sink.clock.now // HOUR_MS * 3600
    assert said.request_id.startswith("full:")
    assert said.request_id.endswith(f"T{hour // 3600 % 24:02}0000Z")


async def test_a_slot_that_was_published_is_only_announced(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stop between publication and answer: the next start finds the export, and goes on."""
    loop = asyncio.get_running_loop()
    publish = sink.place.publish
    async with sink.running() as stop:
        await begun(sink)

        def publish_and_stop(staging: Staging, abandoned: Callable[[], bool]) -> Finished:
            found = publish(staging, abandoned)
            loop.call_soon_threadsafe(stop.set)
            return found

        monkeypatch.setattr(sink.place, "publish", publish_and_stop)
        sink.clock.now += 2_000
        await stop.wait()
    (directory,) = sink.directories()
    async with sink.running():
        said = await sink.answer("finished")
        await sink.export("after", formats=("json",))
    assert said.directory == directory
    assert [s.request_id for s in await sink.announced()] == [said.request_id, "after"]


@pytest.mark.parametrize("away", [False, True], ids=["place-is-back", "place-stays-away"])
async def test_a_failure_behind_the_seal_is_no_last_word(
    sink: Sink, monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    """The connection goes when the export is there: it is announced now, or by the next try."""
    publish, find = sink.place.publish, sink.place.find_or_finish
    gone = asyncio.Event()

    def publish_and_fail(staging: Staging, abandoned: Callable[[], bool]) -> Finished:
        publish(staging, abandoned)
        if away:
            gone.set()
        raise StateError("the answer was lost")

    def find_if_there(export_id: str) -> Finished | None:
        if gone.is_set():
            raise StateError("the place is away")
        return find(export_id)

    async with sink.running():
        await begun(sink)
        monkeypatch.setattr(sink.place, "publish", publish_and_fail)
        monkeypatch.setattr(sink.place, "find_or_finish", find_if_there)
        sink.clock.now += 2_000
        if away:
            await sink.answer("failed")
            gone.clear()
            sink.clock.now += RETRY_MS
        said = await sink.answer("finished")
    assert sink.directories() == [said.directory]


async def test_a_failed_slot_is_tried_again_later_and_holds_no_request_up(sink: Sink) -> None:
    with capture_logs() as logs:
        async with sink.running():
            await begun(sink)
            sink.exports.mkdir(parents=True, exist_ok=True)
            (sink.exports / ".seals").write_text("in the way")
            sink.clock.now += 2_000
            failed = await sink.answer("failed")
            (sink.exports / ".seals").unlink()
            await sink.export("meanwhile", formats=("json",))
            sink.clock.now += RETRY_MS
            said = await sink.answer("finished")
    assert (said.request_id, said.id) == (failed.request_id, failed.id)
    assert sum(entry["event"] == "export_failed" for entry in logs) == 1


async def test_a_request_with_a_schedules_name_does_not_disturb_its_feed(sink: Sink) -> None:
    """Both are called alike; `scheduled` tells them apart, and each has a bookmark of its own."""
    sink.schedules = (FEED,)
    sink.clock.now += 1_000_000 - 6 * HOUR_MS  # Kafka's stamps must not be hours ago
    await sink.accept("users", user(1))
    async with sink.running():
        await begun(sink)
        sink.clock.now += HOUR_MS
        first = await sink.answer("finished")
        await sink.accept("users", user(2))
        sink.clock.now += 1_000
        other = await sink.export("mine", incremental="feed", formats=("csv",))
        sink.clock.now += HOUR_MS
        second = await sink.answer("finished")
        sink.clock.now += 1_000
        last = await sink.export("mine-again", incremental="feed", formats=("csv",))
    assert (first.full_because, second.base) == ("no_base", first.id)
    assert (second.counts or {})["users"] == 1, "what is new since its own last one"
    assert (other.full_because, last.base) == ("no_base", other.id)
    names = [
        (said.options.incremental, said.options.scheduled)
        for said in (first, other, second, last)
        if said.options is not None
    ]
    assert names == [("feed", True), ("feed", False)] * 2
    manifest = read_manifest(sink.exports / str(second.directory))
    assert manifest.incremental is not None
    assert manifest.incremental.name == "feed", "as ever"


async def test_the_bookmark_of_an_earlier_release_is_left_to_requests(sink: Sink) -> None:
    """It may have been moved by one. The schedule begins its own, and says why."""
    sink.schedules = ()
    sink.clock.now += 1_000_000 - 6 * HOUR_MS  # Kafka's stamps must not be hours ago
    await sink.accept("users", user(1))
    async with sink.running():
        old = await sink.export("feed-of-before", incremental="feed", formats=("csv",))
    sink.schedules = (FEED,)
    async with sink.running():
        await begun(sink)
        sink.clock.now += HOUR_MS
        first = await sink.answer("finished")
        await sink.accept("users", user(2))
        sink.clock.now += HOUR_MS
        second = await sink.answer("finished")
        sink.clock.now += 1_000
        again = await sink.export("mine", incremental="feed", formats=("csv",))
    assert (first.full_because, (first.counts or {})["users"]) == ("own_bookmark", 1)
    assert (second.base, (second.counts or {})["users"]) == (first.id, 1)
    assert (again.base, (again.counts or {})["users"]) == (old.id, 1)


async def test_the_id_of_a_slot_is_its_own(sink: Sink) -> None:
    """Nobody makes its export before its time; whoever wants it afterwards may have it."""
    slot = request_of(FULL, datetime.fromtimestamp(sink.clock.now // HOUR_MS * 3600 + 3600, UTC))
    asked = {"entities": ("users",), "formats": ("json",)}
    async with sink.running():
        await begun(sink)
        await sink.export_request(slot.id, **asked)
        refused = await sink.answer("failed")
        sink.clock.now += 2_000
        made = await sink.answer("finished")
        fetched = await sink.export(slot.id, **asked)
    assert "is that of a schedule's run, which is not there" in (refused.error or "")
    assert (made.request_id, fetched.directory) == (slot.id, made.directory)


async def test_old_exports_are_removed_a_while_after_they_are_beyond_the_limits(
    sink: Sink,
) -> None:
    """So whoever has just been told of one can still fetch it."""
    sink.schedules = ()
    sink.keep = Keep(exports=2)
    made = []

    async def later() -> list[str]:
        sink.clock.now += AGAIN_MS
        return sorted(sink.directories())

    with capture_logs() as logs:
        async with sink.running():
            for n in range(4):
                sink.clock.now += 1_000
                made.append(str((await sink.export(f"e{n}", formats=("json",))).directory))
            assert sorted(sink.directories()) == made
            await eventually(later, made[2:].__eq__)
            sink.clock.now += 1_000
            last = str((await sink.export("last", formats=("json",))).directory)
            assert sorted(sink.directories()) == [*made[2:], last]
            await sink.ask(b'{"id":"e0","formats":["json"]}', b"e0")
            said = await sink.answer("failed")
    assert "removed since" in (said.error or "")
    removed = [entry["name"] for entry in logs if entry["event"] == "export_removed"]
    assert removed == made[:2]


async def test_a_slot_that_was_decided_otherwise_is_not_tried_again(sink: Sink) -> None:
    """Its export was made with other options: one failure, and the next slot runs."""
    slot = request_of(FULL, datetime.fromtimestamp(sink.clock.now // HOUR_MS * 3600 + 3600, UTC))
    sink.schedules = ()
    async with sink.running():
        await sink.export(slot.id, formats=("csv",))
    sink.schedules = (FULL,)
    async with sink.running():
        await begun(sink)
        sink.clock.now += 2_000
        failed = await sink.answer("failed")
        sink.clock.now += HOUR_MS
        await sink.answer("finished")
    assert failed.request_id == slot.id
    assert "other options" in (failed.error or "")
    assert len(await sink.announced("failed")) == 1


async def test_a_clock_that_runs_ahead_for_a_moment_skips_no_slot(sink: Sink) -> None:
    """One slot is made a day early; the next one is that of the hour, by the right clock."""
    async with sink.running():
        await begun(sink)
        sink.stepped = 24 * HOUR_MS + 2_000
        early = await sink.answer("finished")
        sink.stepped = 0
        sink.clock.now += 2_000
        said = await sink.answer("finished")
        sink.clock.now += HOUR_MS
        after = await sink.answer("finished")
    ids = [said.request_id for said in (early, said, after)]
    hour = sink.clock.now // HOUR_MS * 3600
    assert ids == [slot_id(hour + 23 * 3600), slot_id(hour - 3600), slot_id(hour)]


async def test_a_clock_that_is_set_back_repeats_no_slot(sink: Sink) -> None:
    with capture_logs() as logs:
        async with sink.running():
            await begun(sink)
            sink.clock.now += 2_000
            first = await sink.answer("finished")
            sink.stepped = -HOUR_MS
            await eventually(lambda: asyncio.sleep(0, told(logs)), bool)
            sink.clock.now += HOUR_MS
            await sink.export("meanwhile", formats=("json",))
            sink.clock.now += HOUR_MS
            second = await sink.answer("finished")
    hour = (sink.clock.now + sink.stepped) // HOUR_MS * 3600
    assert (first.request_id, second.request_id) == (slot_id(hour - 3600), slot_id(hour))
    assert len(await sink.announced()) == 3
    assert told(logs) == [
        {"schedule": "full", "next": f"{datetime.fromtimestamp(hour, UTC):%Y-%m-%dT%H:00:00+00:00}"}
    ]


def told(logs: Sequence[MutableMapping[str, Any]]) -> list[dict[str, Any]]:
    events = [entry for entry in logs if entry["event"] == "schedule_clock_back"]
    return [{"schedule": entry["schedule"], "next": entry["next"]} for entry in events]


def slot_id(seconds: int) -> str:
    return request_of(FULL, datetime.fromtimestamp(seconds, UTC)).id


async def test_schedules_whose_topic_was_created_anew_are_told(
    sink: Sink, broker: Broker, remove: DeleteTopic
) -> None:
    """They count from now on, so a slot may have been left out."""
    async with sink.running():
        await begun(sink)
    topic = sink.names.schedules
    with capture_logs() as logs:
        async with sink.running():
            await sink.export("before", formats=("json",))
        assert "internal_recreated" not in {entry["event"] for entry in logs}
        await remove(topic)
        await broker.create([wanted(sink.names, PARTITIONS, 1024)[topic]])
        for request in ("once", "again"):
            async with sink.running():
                await sink.export(request, formats=("json",))
    told = [entry["topic"] for entry in logs if entry["event"] == "internal_recreated"]
    assert told == [topic], "once"
    assert "slots that were due before" in " ".join(sink.reasons())
