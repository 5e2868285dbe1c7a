"""A log that is not the one any more from which index and store were read."""

from __future__ import annotations

import asyncio
import shutil
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
from structlog.testing import capture_logs

from schemas import ENTITIES
from tests.contract.broker_kit import Another, Clock, MakeTopic
from tests.contract.helpers import eventually
from tests.contract.sink_kit import Sink, a_sink, consuming, csv_rows, fill
from tests.contract.worker_kit import Stage
from tests.unit.rows_kit import match, user, uuid
from worker.brokers.contract import Broker
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.core.topics import Names
from worker.engine.index_updater import IndexUpdater
from worker.engine.worker import Worker
from worker.index.freshness import SavedIndex
from worker.index.resuming import another_log
from worker.index.tails import Tail, extended
from worker.stream import Message, Partition, ProducerRecord

TASKS = 2
REBUILT = "buddy_state_rebuilt_total"


async def _saved(broker: Broker, topic: str, *, change: bool = False) -> SavedIndex:
    """What is kept of the topic once it is read to its end; with other content in it on demand."""
    places = [Partition(topic, number) for number in range(TASKS)]
    spans = await broker.spans(places, uncommitted=True)
    reader = broker.reader()
    reader.assign(dict.fromkeys(places, 0))
    messages: list[Message] = []
    while any(reader.position(place) < spans[place].end for place in places):
        messages += await reader.read(100, 1.0)
    await reader.close()
    if change:
        messages[-1] = msgspec.structs.replace(messages[-1], value=b"other")
    positions = {place: spans[place].end for place in places}
    return SavedIndex(1, 0, positions, {}, extended({}, {}, messages, positions))


async def test_the_messages_read_last_are_compared(
    broker: Broker, another: Another, make_topic: MakeTopic
) -> None:
    topic = await make_topic(TASKS, compacted=True)
    empty = await _saved(broker, topic)
    assert await another_log(broker, empty, await broker.spans(empty.positions)) is None
    values = [b"x", None, b"", b"y" * 10_000]
    rows = [
        ProducerRecord(topic, b"%d" % n, values[n % 4], (("h", b"\xff"),), partition=n % TASKS)
        for n in range(30)
    ]
    committer = await broker.committer(f"{topic}-writer", f"{topic}-group")
    await committer.commit(rows, {})  # on Kafka with a marker behind them
    same, other = await _saved(broker, topic), await _saved(broker, topic, change=True)
    await committer.commit(rows, {})
    await committer.close()
    for one in (broker, await another()):
        spans = await one.spans(same.positions)
        assert await another_log(one, same, spans) is None
        assert f"topic {topic} holds another message" in (
            await another_log(one, other, spans) or ""
        )


# --- the embedded log, an older copy of which is put back -----------------------------------------


class _Site:
    """A directory with everything that worker and sink keep; brokers and services come and go."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self.names = Names("r")
        self.log = directory / "log"
        self._directory = directory
        self._clock = clock
        self._brokers: list[EmbeddedBroker] = []

    @asynccontextmanager
    async def working(self, index: str = "one") -> AsyncIterator[Stage]:
        """A worker with that index, for as long as the block lasts; then nothing is open."""
        stage = Stage(await self._open(), self._open, self._directory)
        stage.names = self.names
        await stage.prepare(TASKS)
        stage.outcomes = {}
        await stage.started(index)
        try:
            yield stage
        finally:
            await stage.close()
            for broker in self._brokers:
                await broker.close()
            self._brokers = []

    @asynccontextmanager
    async def delivering(self, stage: Stage) -> AsyncIterator[Sink]:
        """A sink beside it."""
        sink = Sink(stage.broker, self.names, self._directory, self._clock)
        sink.let_time_pass()
        async with sink.running():
            yield sink

    async def _open(self) -> EmbeddedBroker:
        broker = EmbeddedBroker(self.log)
        await broker.open()
        self._brokers.append(broker)
        return broker


async def _feed(sink: Sink, request: str) -> tuple[Mapping[str, object], list[str]]:
    """An incremental export: what its announcement says of its base, and the users in it."""
    await sink.export_request(request, formats=("csv",), incremental="feed")
    while (said := await sink.answer("finished")).request_id != request:
        pass  # an earlier one
    directory = sink.exports / str(said.directory)
    manifest = msgspec.json.decode((directory / "manifest.json").read_bytes())
    return manifest["incremental"], [row["id"] for row in csv_rows(directory, "users")]


async def test_an_older_log_that_has_grown_past_what_was_read_is_noticed(
    tmp_path: Path, clock: Clock
) -> None:
    site = _Site(tmp_path, clock)
    async with site.working() as stage, site.delivering(stage) as sink:
        await stage.send("users", *(user(n) for n in range(1, 5)))
        await stage.judged()
        assert len((await _feed(sink, "a"))[1]) == 4
    await asyncio.to_thread(shutil.copytree, site.log, tmp_path / "older")
    async with site.working() as stage, site.delivering(stage) as sink:
        lost = [user(n) for n in range(11, 15)]
        await stage.send("users", *lost)
        await stage.judged()
        assert len((await _feed(sink, "b"))[1]) == 4
    shutil.rmtree(site.log)
    await asyncio.to_thread(shutil.copytree, tmp_path / "older", site.log)
    async with site.working("another") as stage:  # it grows, and "one" does not see it
        await stage.send("users", *(user(n) for n in range(21, 41)))
        await stage.judged()

    with capture_logs() as logs:
        async with site.working() as stage, site.delivering(stage) as sink:
            again = await stage.send("users", user(51, email=user_email(11)))
            taken = await stage.send("users", user(52, email=user_email(21)))
            orphan = await stage.send("matches", match(60, 1, 12))
            known = await stage.send("matches", match(61, 21, 40))
            await stage.judged()
            base, users = await _feed(sink, "c")
            counted = stage.workers[0].counted(REBUILT, state="index")
    assert stage.verdicts(again) == {"accepted": 1}, "nobody in the log has that address"
    assert stage.verdicts(taken) == {"rejected duplicate_email": 1}
    assert stage.verdicts(orphan) == {"rejected orphaned_user_id": 1}
    assert stage.verdicts(known) == {"accepted": 1}
    there = {uuid(n) for n in [*range(1, 5), *range(21, 41), 51]}
    assert Counter(users) == Counter(there), "no ghosts, and none is missing"
    assert base["full_because"] == "store_rebuilt"
    rebuilt = {log["event"]: log for log in logs if log["event"].endswith(("rebuild", "rebuilt"))}
    assert rebuilt.keys() == {"state_rebuild", "sink_store_rebuilt"}
    for log in rebuilt.values():
        assert f"topic {site.names.accepted('users')} holds another message" in log["reason"]
    assert counted == 1
    assert sink.metrics.registry.get_sample_value(REBUILT, {"state": "store"}) == 1


async def test_an_older_log_is_noticed_though_nothing_was_accepted_since(
    tmp_path: Path, clock: Clock
) -> None:
    site = _Site(tmp_path, clock)
    async with site.working() as stage:
        await stage.judged(await stage.send("users", user(1), user(2)))
    await asyncio.to_thread(shutil.copytree, site.log, tmp_path / "older")
    with capture_logs() as logs:
        async with site.working() as stage:
            lost = await stage.send("users", (b"x", b"{}"), (b"y", b"{}"))
            await stage.judged(lost)
    assert [log for log in logs if log["event"] == "state_rebuild"] == []
    assert all(verdict.startswith("rejected") for verdict in stage.verdicts(lost))
    shutil.rmtree(site.log)
    await asyncio.to_thread(shutil.copytree, tmp_path / "older", site.log)
    async with site.working("another") as stage:  # it grows past what "one" has read
        for n in range(4):
            await stage.judged(await stage.send("users", (b"%d" % n, b"{}")))
    with capture_logs() as logs:
        async with site.working() as stage:
            await stage.judged(await stage.send("users", user(20)))
    (rebuilt,) = [log for log in logs if log["event"] == "state_rebuild"]
    assert f"topic {site.names.progress} " in rebuilt["reason"]
    assert "restored from an older copy" in rebuilt["reason"]


def user_email(n: int) -> str:
    """The address of that user, as `user` makes it."""
    return f"u{n}@example.com"


# --- under a running service ----------------------------------------------------------------------


async def test_a_worker_looks_after_an_outage_and_where_the_log_ended_before(
    tmp_path: Path, clock: Clock
) -> None:
    site = _Site(tmp_path, clock)
    with capture_logs() as logs:
        async with site.working() as stage:
            await stage.send("users", *(user(n) for n in range(1, 5)))
            await stage.judged()
            worker = stage.workers[0].worker
            index, first = worker._index, _updater(worker)
            await stage.until(lambda: index.counts()["users"] == 4, "the index has followed")
            first._reader.assign(dict.fromkeys(first._followed, 0))  # as Kafka's reader does
            await _begun_again(stage, first)
            assert index.counts()["users"] == 4
            second = _updater(worker)
            index._tails |= {place: Tail(0) for place in second.accepted}
            second._was_away = True
            await _begun_again(stage, second)
            assert index.counts()["users"] == 4
    reasons = [log["reason"] for log in logs if log["event"] == "topics_changed"]
    assert "ended before position" in reasons[0]
    assert "holds another message at offset 0" in reasons[1]
    assert [log for log in logs if log["event"] == "state_rebuild"] == [], "on disk all is right"


async def test_a_worker_looks_where_its_progress_ended_before(tmp_path: Path, clock: Clock) -> None:
    site = _Site(tmp_path, clock)
    with capture_logs() as logs:
        async with site.working() as stage:
            await stage.judged(await stage.send("users", (b"x", b"{}"), (b"y", b"{}")))
            worker = stage.workers[0].worker
            index, first = worker._index, _updater(worker)
            await stage.until(lambda: bool(index.saved().beside), "the index has followed")
            # Of a log that went on and was restored since: Kafka's reader begins at its start.
            ahead = {
                place: one._replace(tail=Tail(99, (one.tail.marks[0]._replace(offset=99),)))
                for place, one in index.saved().beside.items()
            }
            index._beside |= ahead
            first._followed |= dict.fromkeys(first.progress, 100)
            first._reader.assign(first.followed() | dict.fromkeys(first.progress, 0))
            await _begun_again(stage, first)
            await stage.judged(await stage.send("users", user(1)))
    reasons = [log["reason"] for log in logs if log["event"] == "topics_changed"]
    assert f"topic {site.names.progress} ends at" in reasons[0]
    assert "before position 100" in reasons[0]


def _updater(worker: Worker) -> IndexUpdater:
    assert worker.loop is not None
    return worker.loop._updater


async def _begun_again(stage: Stage, before: IndexUpdater) -> None:
    worker = stage.workers[0].worker
    await stage.until(
        lambda: _updater(worker) is not before and _updater(worker).ready.is_set(),
        "the worker has begun again, and its index is ready",
    )


async def test_a_sink_looks_after_an_outage_and_where_the_log_ended_before(
    tmp_path: Path, clock: Clock
) -> None:
    broker = EmbeddedBroker(tmp_path / "log")
    await broker.open()
    sink = await a_sink(broker, Names("r"), tmp_path, clock)
    await fill(sink)
    with capture_logs() as logs:
        async with consuming(sink) as (consumer, store):
            await consumer.hold(ENTITIES)
            consumer.release()
            read = consumer.counts.read
            reader = consumer._opened()
            reader.assign(dict.fromkeys(consumer._positions, 0))  # as Kafka's reader does
            await eventually(lambda: asyncio.sleep(0, [log["event"] for log in logs]), _compared)
            await eventually(lambda: asyncio.sleep(0, consumer._was_away), lambda away: not away)
            assert (store.times_wiped, consumer.counts.read) == (0, read), "it went on where it was"
            store._content.tails.update({place: Tail(0) for place in consumer._positions})
            consumer._was_away = True
            await eventually(lambda: asyncio.sleep(0, consumer.counts.read), lambda n: n > read)
            assert store.times_wiped == 1
            assert "holds another message at offset 0" in (store.rebuilt or "")
            await consumer.hold(ENTITIES)
            assert store.counts()["users"] == 4
    await broker.close()


def _compared(events: list[str]) -> bool:
    return "accepted_ended_early" in events
