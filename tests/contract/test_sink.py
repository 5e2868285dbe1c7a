"""The sink on a broker: from accepted rows and a request to a finished, announced export."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from schemas import ENTITIES
from tests.contract.broker_kit import Clock, Expire, unique
from tests.contract.helpers import eventually
from tests.contract.sink_kit import Sink, consuming, csv_rows, fill
from tests.unit.rows_kit import match, user, uuid
from worker.brokers.contract import Broker, Reader
from worker.core.topics import Names
from worker.errors import BrokerUnavailable, MissingTopic, NoAnswer, StateError
from worker.exports.manifest import read_manifest
from worker.exports.places.directory import DirectoryPlace
from worker.sink import answers, attempt, leader
from worker.sink.reports import unheard
from worker.sink.requests import ExportRequest, export_id_of
from worker.sink.store.consume import Consumer
from worker.sink.store.row_store import RowStore
from worker.stream import Message, Partition, ProducerRecord


async def test_from_accepted_rows_to_a_finished_export(sink: Sink) -> None:
    await fill(sink)
    async with sink.running():
        await sink.ask(ExportRequest("first"))
        started = await sink.answer()
        said = await sink.answer("finished")
    assert (started.status, started.id) == ("started", said.id)
    assert said.id == export_id_of("first")
    assert said.counts == dict.fromkeys(ENTITIES, 0) | {
        "users": 4,
        "matches": 1,
        "events": 3,
        "milestones": 1,
    }
    assert said.left_out == {"matches": {"user_gone": 1}, "milestones": {"user_gone": 1}}
    assert said.kept_without == {"events": {"match_left_out": 1, "match_gone": 1}}
    assert said.complete is True

    assert sink.directories() == [said.directory]
    directory = sink.exports / str(said.directory)
    assert said.location == str(directory)
    assert {f.path for f in said.files} == {
        str(path.relative_to(directory))
        for path in directory.rglob("*")
        if path.is_file() and path.name != "manifest.json"
    }
    assert csv_rows(directory, "users")[0]["first_name"] == "Renamed"
    assert [row["event_id"] for row in csv_rows(directory, "events")] == [
        uuid(n) for n in (20, 21, 22)
    ]
    (document,) = directory.glob("buddy_export_*.json")
    content = json.loads(document.read_text())
    assert content["export_metadata"]["date_range"]["start"] == "2023-05-05"
    assert [row["match_id"] for row in content["matches"]] == [uuid(10)]
    manifest = read_manifest(directory)
    assert manifest.cut.accepted == await sink.ends("accepted")
    assert list((sink.store / "spool").iterdir()) == []


async def test_selected_entities_and_formats_only(sink: Sink) -> None:
    await fill(sink)
    async with sink.running():
        said = await sink.export("some", entities=("events", "users"), formats=("json",))
    assert list(said.counts or {}) == ["users", "events"]
    assert [f.path.split(".")[-1] for f in said.files] == ["json", "SHA256SUMS"]
    assert said.options is not None
    assert said.options.formats == ("json",)
    assert said.kept_without == {"events": {"match_left_out": 1, "match_gone": 1}}, (
        "judged against the whole store"
    )


async def test_a_later_export_has_what_came_later(sink: Sink) -> None:
    async with sink.running():
        assert (await sink.export("empty", formats=("csv",))).counts == dict.fromkeys(ENTITIES, 0)
        await sink.accept("users", user(1))
        said = await sink.export("one", formats=("csv",))
    assert (said.counts or {})["users"] == 1


async def test_after_a_restart_nothing_is_answered_twice_and_new_rows_are_there(
    sink: Sink,
) -> None:
    await fill(sink)
    async with sink.running():
        await sink.export("a", formats=("csv",))
    await sink.accept("users", user(6))
    async with sink.running():
        said = await sink.export("b", formats=("csv",))
    assert (said.counts or {})["users"] == 5
    assert len(sink.directories()) == 2


async def test_the_same_id_again_is_the_same_export(sink: Sink) -> None:
    async with sink.running():
        first = await sink.export("again", formats=("csv",))
        await sink.accept("users", user(1))
        second = await sink.export("again", formats=("csv",))
    assert (second.directory, second.counts, second.files) == (
        first.directory,
        first.counts,
        first.files,
    )
    assert sink.directories() == [first.directory]


async def test_the_id_of_an_export_that_was_removed_is_refused(sink: Sink) -> None:
    async with sink.running():
        first = await sink.export("again", formats=("csv",))
        DirectoryPlace(sink.exports).remove(str(first.directory))
        await sink.ask(ExportRequest("again", formats=("csv",)))
        said = await sink.answer("failed")
    assert "ask under another id" in (said.error or "")
    assert sink.directories() == []


async def test_the_same_id_with_other_options_is_refused(sink: Sink) -> None:
    async with sink.running():
        await sink.export("again", formats=("csv",))
        await sink.ask(ExportRequest("again", formats=("json",)))
        said = await sink.answer("failed")
    assert "ask under another id" in (said.error or "")
    assert len(sink.directories()) == 1


async def test_a_crash_between_export_and_answer_announces_the_same_export(sink: Sink) -> None:
    await fill(sink)
    await sink.export_request("crashed", formats=("csv",))
    broker = _Crashing(sink.broker, before=True)
    with pytest.raises(StateError, match="crashed here"):
        async with sink.running(broker):
            await broker.crashed.wait()
    (directory,) = sink.directories()
    async with sink.running():
        said = await sink.answer("finished")
    assert (said.request_id, said.directory) == ("crashed", directory)
    assert sink.directories() == [directory]


async def test_answer_and_position_are_one_transaction(sink: Sink) -> None:
    await sink.export_request("crashed", formats=("csv",))
    broker = _Crashing(sink.broker, before=False)
    with pytest.raises(StateError, match="crashed here"):
        async with sink.running(broker):
            await broker.crashed.wait()
    assert (await sink.answer("finished")).request_id == "crashed"
    async with sink.running():
        await sink.ask(ExportRequest("next", formats=("csv",)))
        said = [await sink.answer(), await sink.answer()]
    assert [(s.request_id, s.status) for s in said] == [("next", "started"), ("next", "finished")]


class _Crashing:
    """A broker on which the sink dies when it commits an answer: just before, or just after."""

    def __init__(self, broker: Broker, *, before: bool) -> None:
        self.crashed = asyncio.Event()
        self._broker = broker
        self._before = before

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    async def committer(self, name: str, group: str) -> Any:
        committer = await self._broker.committer(name, group)
        commit = committer.commit

        async def crash(messages: Any, offsets: Any) -> list[tuple[int, int]]:
            if not offsets:  # no last answer
                return list(await commit(messages, offsets))
            if not self._before:
                await commit(messages, offsets)
            self.crashed.set()
            raise StateError("crashed here")

        committer.commit = crash  # type: ignore[method-assign]
        return committer


async def test_what_is_no_request_is_answered_and_the_next_one_is_carried_out(sink: Sink) -> None:
    async with sink.running():
        await sink.ask(b"nonsense", b"mine")
        await sink.ask(b'{"id":"bad","entities":["pets"]}', b"bad")
        await sink.ask(ExportRequest("good", formats=("csv",)))
        said = [await sink.answer() for _ in range(4)]
    assert [(s.request_id, s.status) for s in said] == [
        ("mine", "failed"),
        ("bad", "failed"),
        ("good", "started"),
        ("good", "finished"),
    ]
    assert "unknown entity 'pets'" in (said[1].error or "")


async def test_an_old_request_is_answered_and_not_carried_out(sink: Sink) -> None:
    """A clock that was set makes one old, so somebody may be waiting."""
    await sink.ask(ExportRequest("old"))
    sink.clock.now += leader.EXPIRY_MS + 60_000
    with capture_logs() as logs:
        async with sink.running():
            said = await sink.answer()
            sink.clock.now -= leader.EXPIRY_MS
            await sink.export("new", formats=("csv",))
            done = sink.directories()
    assert (said.request_id, said.status) == ("old", "failed")
    assert "more than an hour old" in (said.error or "")
    assert len(done) == 1
    assert "export_request_expired" in {entry["event"] for entry in logs}


async def test_an_old_request_that_was_carried_out_is_answered_with_its_export(sink: Sink) -> None:
    async with sink.running():
        first = await sink.export("again", formats=("csv",))
    await sink.ask(ExportRequest("again", formats=("csv",)))
    sink.clock.now += leader.EXPIRY_MS + 60_000
    async with sink.running():
        said = await sink.answer()
    assert (said.status, said.directory) == ("finished", first.directory)


async def test_an_exports_directory_that_cannot_be_written_fails_the_request_only(
    sink: Sink,
) -> None:
    sink.exports.parent.mkdir(parents=True)
    sink.exports.write_text("in the way")
    async with sink.running():
        await sink.ask(ExportRequest("a"))
        said = await sink.answer("failed")
        sink.exports.unlink()
        await sink.export("b", formats=("csv",))
    assert "\n" not in (said.error or "\n")
    assert list((sink.store / "spool").iterdir()) == []


async def test_a_bug_fails_the_request_only_and_says_no_data(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: Any, **__: Any) -> Path:
        raise ValueError("alice@example.com")

    async with sink.running():
        with monkeypatch.context() as patch, capture_logs() as logs:
            patch.setattr(attempt, "write_export", broken)
            await sink.ask(ExportRequest("a"))
            said = await sink.answer("failed")
        await sink.export("b", formats=("csv",))
    assert said.error == "internal error: ValueError"
    assert "alice" not in str(logs)


async def test_stopping_gives_an_export_up_and_the_next_start_makes_it(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    await fill(sink)
    monkeypatch.setattr(answers, "_REPORT_SECONDS", 0.01)
    writing = asyncio.Event()

    async def endless(*_: Any, progress: Callable[[int], None], **__: Any) -> Path:
        progress(3)
        writing.set()
        await asyncio.Event().wait()
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(attempt, "write_export", endless)
        async with sink.running() as stop:
            await sink.ask(ExportRequest("a"))
            await writing.wait()
            progress = await sink.answer("progress")
            while progress.progress is None or progress.progress.stage != "write":
                progress = await sink.answer("progress")
            stop.set()
    assert progress.progress.done == 3
    assert sink.directories() == []
    assert list((sink.store / "spool").iterdir()) == []
    async with sink.running():
        assert (await sink.answer("finished")).request_id == "a"


async def test_an_outage_of_the_broker_is_waited_out(sink: Sink) -> None:
    await fill(sink)
    with capture_logs() as logs:
        async with sink.running(_Flaky(sink.broker)):
            said = await sink.export("a", formats=("csv",))
    assert (said.counts or {})["users"] == 4
    events = [entry["event"] for entry in logs]
    assert events.count("sink_waits_for_broker") == 1
    assert events.count("export_waits") == 1
    assert events.count("sink_active") == 2


class _Flaky:
    """A broker whose first two readers (of rows, of requests) fail once, and then work."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._failing = 2

    def __getattr__(self, name: str) -> Any:
        return getattr(self._broker, name)

    def reader(self, *, uncommitted: bool = False) -> Reader:
        reader = self._broker.reader(uncommitted=uncommitted)
        if not self._failing:
            return reader
        self._failing -= 1
        read = reader.read

        async def fail(*args: Any, **more: Any) -> list[Message]:
            reader.read = read  # type: ignore[method-assign]
            raise BrokerUnavailable("the broker went away")

        reader.read = fail  # type: ignore[method-assign]
        return reader


# --- Start ----------------------------------------------------------------------------------------


async def test_a_missing_topic_is_one_clear_line(
    broker: Broker, clock: Clock, tmp_path: Path
) -> None:
    sink = Sink(broker, Names(unique("none")), tmp_path, clock)
    with pytest.raises(MissingTopic, match="run 'buddy topics create'"):
        async with sink.running():
            pass


async def test_a_second_sink_on_the_same_store_is_one_clear_line(sink: Sink) -> None:
    async with sink.running():
        await sink.export("a", formats=("csv",))
        with pytest.raises(StateError, match="in use by another sink"):
            async with sink.running():
                pass


async def test_leftovers_of_a_crash_are_cleaned_at_the_start(sink: Sink) -> None:
    left = sink.store / "spool" / "tmp1" / "users.ndjson"
    left.parent.mkdir(parents=True)
    left.write_text("{}")
    partial = sink.exports / ".20251122T000000Z_x.abcd.partial"
    partial.mkdir(parents=True)
    async with sink.running():
        await sink.export("a", formats=("csv",))
    assert not left.exists()
    assert not partial.exists()


async def test_a_store_that_was_away_too_long_is_rebuilt(sink: Sink) -> None:
    await fill(sink)
    async with sink.running():
        await sink.export("a", formats=("csv",))
    sink.clock.now += 4 * 24 * 3600 * 1000
    with capture_logs() as logs:
        async with sink.running():
            pass
    rebuilt = [entry for entry in logs if entry["event"] == "sink_store_rebuilt"]
    assert len(rebuilt) == 1
    assert "deletions may be gone" in rebuilt[0]["reason"]


async def test_a_store_beyond_the_log_is_rebuilt(sink: Sink) -> None:
    await fill(sink)
    place = Partition(sink.names.accepted("users"), 0)
    store = RowStore(sink.store, sink.names)
    starts = {Partition(sink.names.accepted(name), p): 0 for name in ENTITIES for p in (0, 1)}
    store.apply([], starts | {place: 1000})
    gone = 1000 - (await sink.ends("accepted"))["users"][0]
    store.mark_current(sink.clock())
    store.close()
    with capture_logs() as logs:
        async with sink.running():
            said = await sink.export("a", formats=("csv",))
    assert (said.counts or {})["users"] == 4
    assert any(entry["event"] == "sink_store_rebuilt" for entry in logs)
    told = [entry for entry in logs if entry["event"] == "accepted_truncated"]
    assert [(e["topic"], e["partition"], e["count"]) for e in told] == [(*place, gone)]


# --- Consuming ------------------------------------------------------------------------------------


async def test_holding_brings_all_that_was_accepted(sink: Sink) -> None:
    await fill(sink)
    told: list[tuple[int, int]] = []
    async with consuming(sink) as (consumer, store):
        ends = await consumer.hold(ENTITIES, advance=lambda done, total: told.append((done, total)))
        assert store.positions() == ends
        assert store.counts()["users"] == 4
        assert store.foreign() == {"users": 2}
        counts = consumer.counts
        assert (counts.read, counts.foreign, counts.expired) == (16, 2, 0)
        assert counts.changed + counts.deleted + counts.repeats == 14
    assert all(done < total for done, total in told)


async def test_what_has_been_read_beyond_a_hold_waits_for_its_release(sink: Sink) -> None:
    names = sink.names.accepted("users")
    rows = [ProducerRecord(names, *user(n)) for n in range(20)]
    await sink.broker.publish(rows[:10])
    store = RowStore(sink.store, sink.names)
    consumer = Consumer(sink.broker, store, sink.names, sink.clocks)
    await consumer.open()
    stop = asyncio.Event()
    holding = asyncio.create_task(consumer.hold(["users"]))
    await eventually(lambda: asyncio.sleep(0, len(consumer._limits)), bool)
    await sink.broker.publish(rows[10:])  # so the first read goes beyond
    running = asyncio.create_task(consumer.run(stop))
    try:
        ends = await holding
        assert {place: store.positions()[place] for place in ends} == ends
        assert store.counts()["users"] == 10
        await sink.accept("matches", match(11, 1, 1))
        assert len(await consumer.hold(["matches"])) == 2
        assert (store.counts()["users"], store.counts()["matches"]) == (10, 1)
        await sink.accept("users", user(30))
        consumer.release()
        again = await consumer.hold(["users"])
        assert store.counts()["users"] == 21
        assert sum(again.values()) >= 21
    finally:
        stop.set()
        await running
        await consumer.close()
        store.close()


async def test_unreadable_rows_are_logged_by_coordinates_only(sink: Sink) -> None:
    await sink.accept("users", (user(1)[0], b'{"email":"alice@example.com"}'))
    with capture_logs() as logs:
        async with consuming(sink) as (consumer, _):
            await consumer.hold(ENTITIES)
    (entry,) = [entry for entry in logs if entry["event"] == "foreign_row"]
    assert (entry["count"], entry["offset"]) == (1, 0)
    assert "alice" not in str(entry)


async def test_a_foreign_message_that_hides_a_row_is_told(sink: Sink) -> None:
    key, row = user(1)
    await sink.accept("users", (key, row), (key, b"nonsense"))
    with capture_logs() as logs:
        async with sink.running():
            said = await sink.export("whole", formats=("json",))
            (reason,) = sink.reasons()
    assert reason.startswith(f"sink: {sink.names.accepted('users')}/")
    assert "send those records again" in reason
    (entry,) = [entry for entry in logs if entry["event"] == "row_hidden"]
    assert (entry["log_level"], entry["count"], entry["offset"]) == ("error", 1, 1)
    assert said.counts == {**dict.fromkeys(ENTITIES, 0), "users": 1}


async def test_what_keeps_the_log_from_its_upkeep_is_told(
    sink: Sink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink.broker, "hindrance", lambda: "a process hangs")
    store = RowStore(sink.store, sink.names)
    reports = unheard(sink.clocks.steady)
    consumer = Consumer(sink.broker, store, sink.names, sink.clocks, reports)
    await consumer.open()
    stop = asyncio.Event()
    running = asyncio.create_task(consumer.run(stop))
    try:
        await eventually(
            lambda: asyncio.sleep(0, reports.health.reasons(sink.clocks.steady())),
            lambda reasons: any("a process hangs" in reason for reason in reasons),
        )
    finally:
        stop.set()
        await running
        await consumer.close()
        store.close()


async def test_holding_without_progress_ends_with_one_line(sink: Sink) -> None:
    await sink.accept("users", user(1))
    store = RowStore(sink.store, sink.names)
    consumer = Consumer(sink.broker, store, sink.names, sink.clocks)
    await consumer.open()
    try:
        with pytest.raises(NoAnswer, match="could not be read to their ends") as raised:
            await consumer.hold(["users"], patience=0.01)
        topic = sink.names.accepted("users")
        assert f"1 messages of {topic}/" in str(raised.value)
        assert "a transaction may be open there" in str(raised.value)
    finally:
        await consumer.close()
        store.close()


async def test_rows_that_were_removed_before_a_new_store_read_them_are_told(
    sink: Sink, empty: Expire
) -> None:
    await sink.accept("users", *(user(n) for n in range(9)))
    ends = await sink.ends("accepted")
    place = Partition(sink.names.accepted("users"), 1)
    gone = ends["users"][1]
    assert gone
    await empty(place)
    with capture_logs() as logs:
        async with consuming(sink) as (consumer, _):
            assert consumer.counts.expired == gone
    told = [entry for entry in logs if entry["event"] == "accepted_expired"]
    assert [(e["topic"], e["partition"], e["count"]) for e in told] == [(*place, gone)]


async def test_requests_that_were_removed_unread_are_told(sink: Sink, empty: Expire) -> None:
    await sink.accept("users", user(1))
    async with sink.running():
        await sink.export("one", formats=("csv",))
    place = Partition(sink.names.export_requests, 0)
    await sink.export_request("two")
    await empty(place)
    with capture_logs() as logs:
        async with sink.running():
            await sink.export("three", formats=("csv",))
    told = [(e["topic"], e["count"]) for e in logs if e["event"] == "internal_skipped"]
    assert told == [(place.topic, 1)]
