"""What the embedded broker's upkeep takes away, and what it never does."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.clock_kit import SettableClock
from tests.unit.embedded_kit import HOUR, latest, opened, read_all, table_of
from worker.brokers.embedded import compaction
from worker.brokers.embedded import hindrance as embedded_hindrance
from worker.brokers.embedded import store as embedded_store
from worker.brokers.embedded import upkeep as embedded_upkeep
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.brokers.embedded.hindrance import AGAIN_MS, LASTING_MS
from worker.brokers.embedded.reader import EmbeddedReader
from worker.brokers.embedded.upkeep import LogUpkeep
from worker.errors import StateError
from worker.stream import Message, OffsetRange, Partition, ProducerRecord, Topic

# --- Retention --------------------------------------------------------------------------------


async def test_what_is_older_than_the_retention_goes(
    tmp_path: Path, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compaction, "STEP_ROWS", 2)
    monkeypatch.setattr(embedded_upkeep, "STEP_ROWS", 2)
    log, kept = Partition("log", 0), Partition("kept", 0)
    async with opened(tmp_path / "broker", clock) as broker:
        await broker.create([Topic("log", 1, retention_ms=HOUR), Topic("kept", 1)])
        for _ in range(10):
            await broker.publish([ProducerRecord(name, b"k", b"v") for name in ("log", "kept")])
            clock.advance(HOUR // 5)
        await broker.maintain()
        assert await broker.spans([log, kept]) == {
            log: OffsetRange(5, 10),
            kept: OffsetRange(0, 10),
        }
        assert [message.offset for message in await read_all(broker, "log")] == [5, 6, 7, 8, 9]
        clock.advance(2 * HOUR)
        await broker.maintain()
    async with opened(tmp_path / "broker", clock) as broker:
        assert await broker.spans([log]) == {log: OffsetRange(10, 10)}
        assert await read_all(broker, "log") == []
        assert await broker.publish([ProducerRecord("log", b"k", b"v")]) == [(0, 10)]


async def test_upkeep_comes_with_writing(
    broker: EmbeddedBroker, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Partition("log", 0)
    await broker.create([Topic("log", 1, retention_ms=HOUR)])
    await broker.publish([ProducerRecord("log", b"k", b"v")])
    clock.advance(2 * HOUR)
    monkeypatch.setattr(broker, "_upkeep_due", 0.0)
    await broker.publish([ProducerRecord("log", b"k", b"v")])
    async with asyncio.timeout(10):
        while (await broker.spans([log]))[log].start == 0:  # noqa: ASYNC110 -- nothing tells
            await asyncio.sleep(0)
    assert (await broker.spans([log])) == {log: OffsetRange(1, 2)}


async def test_space_of_what_expired_is_used_again(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    await broker.create([Topic("log", 1, retention_ms=HOUR)])
    sizes = []
    for _ in range(6):
        await broker.publish([ProducerRecord("log", b"k", b"x" * 500_000)] * 4)
        clock.advance(2 * HOUR)
        await broker.maintain()
        sizes.append((tmp_path / "broker" / embedded_store.FILE_NAME).stat().st_size)
    assert sizes[-1] == sizes[0]


# --- Compaction -------------------------------------------------------------------------------


@contextlib.contextmanager
def small_steps() -> Iterator[None]:
    """So small that a few messages already take several batches, steps and passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compaction, "STEP_BYTES", 200)
        patch.setattr(compaction, "BATCH_BYTES", 150)
        patch.setattr(compaction, "REMEMBERED_KEYS", 2)
        yield


async def test_the_latest_of_each_key_stays_at_its_offset(
    broker: EmbeddedBroker, clock: SettableClock
) -> None:
    log = Partition("log", 0)
    await broker.create([Topic("log", 1, compacted=True)])
    start = clock.wall()
    for number in range(20):
        await broker.publish(
            [ProducerRecord("log", b"%d" % (number % 3), b"%d" % number, (("h", b""),))]
        )
        clock.advance(1)
    await broker.maintain()
    assert [
        (m.offset, m.key, m.value, m.timestamp - start, m.headers)
        for m in await read_all(broker, "log")
    ] == [(n, b"%d" % (n % 3), b"%d" % n, n, (("h", b""),)) for n in (17, 18, 19)]
    assert await broker.spans([log]) == {log: OffsetRange(0, 20)}
    reader = broker.reader()
    reader.assign({log: 5})
    assert len(await reader.read(10, 0)) == 3
    assert reader.expired() == {}


async def test_a_tombstone_stays_for_its_time_and_the_position_passes_the_gap(
    broker: EmbeddedBroker, clock: SettableClock
) -> None:
    """What is gone is told to who stopped before it: `tombstones_from`."""
    log = Partition("log", 0)
    await broker.create([Topic("log", 1, compacted=True, delete_retention_ms=HOUR)])
    await broker.publish([ProducerRecord("log", b"k", b"v"), ProducerRecord("log", b"k", None)])
    for _ in range(2):
        await broker.maintain()
        assert [(m.offset, m.value) for m in await read_all(broker, "log")] == [(1, None)]
    assert await broker.spans([log]) == {log: OffsetRange(0, 2, 0)}
    clock.advance(HOUR + 1)
    await broker.maintain()
    assert await read_all(broker, "log") == []
    assert await broker.spans([log]) == {log: OffsetRange(0, 2, 2)}
    reader = broker.reader()
    reader.assign({log: 0})
    assert await reader.read(10, 0) == []
    assert reader.position(log) == 2
    assert await broker.publish([ProducerRecord("log", b"k", b"v")]) == [(0, 2)]
    assert [message.offset for message in await reader.read(10, 0)] == [2]


@pytest.mark.parametrize("boots", [False, True])
async def test_a_clock_that_is_ahead_for_less_than_an_hour_removes_no_tombstone(
    tmp_path: Path, clock: SettableClock, boots: bool
) -> None:
    place = Partition("log", 0)
    async with opened(tmp_path / "broker", clock, "first") as broker:
        await broker.create([Topic("log", 1, compacted=True)])
        await broker.publish([ProducerRecord("log", b"k", None)])
        await broker.maintain()
        clock.advance(HOUR // 2)
    clock.step(10 * 24 * HOUR)
    async with opened(tmp_path / "broker", clock, "second" if boots else "first") as broker:
        if not boots:
            await broker.accept_clock()
        await broker.publish([])
        for passed in (0, HOUR - 1):
            clock.advance(passed)
            await broker.maintain()
            assert len(await read_all(broker, "log")) == 1
        clock.step(-10 * 24 * HOUR)  # set right, but log time goes on
        clock.advance(2)
        await broker.maintain()
        assert len(await read_all(broker, "log")) == 1
        assert (await broker.spans([place]))[place].tombstones_from == 0


async def test_a_tombstone_goes_once_the_clock_has_been_ahead_for_an_hour_and_is_told(
    tmp_path: Path, clock: SettableClock
) -> None:
    place = Partition("log", 0)
    async with opened(tmp_path / "broker", clock, "first") as broker:
        await broker.create([Topic("log", 1, compacted=True)])
        await broker.publish([ProducerRecord("log", b"k", None)])
        await broker.maintain()
    clock.step(10 * 24 * HOUR)
    async with opened(tmp_path / "broker", clock, "second") as broker:
        await broker.maintain()
        clock.advance(HOUR)
        await broker.maintain()
        assert await broker.spans([place]) == {place: OffsetRange(0, 1, 1)}


_WRITES = st.lists(
    st.tuples(st.sampled_from([b"a", b"b", b"c", b"d"]), st.none() | st.binary(max_size=120)),
    min_size=1,
    max_size=12,
)
_EVENTS: st.SearchStrategy[tuple[str, Any]] = st.one_of(
    st.tuples(st.just("write"), _WRITES),
    st.tuples(st.sampled_from(["step", "step", "step", "crash", "new_reader"]), st.none()),
    st.tuples(st.just("read"), st.integers(1, 4)),
)


class Story:
    """A compacted log, what was written to it, and readers that follow it slowly."""

    def __init__(self, broker: EmbeddedBroker, clock: SettableClock) -> None:
        self.broker = broker
        self.clock = clock
        self.table: dict[bytes | None, bytes] = {}
        self.written: dict[int, tuple[bytes | None, bytes | None]] = {}
        self.slow: list[tuple[EmbeddedReader, list[Message]]] = []
        self.upkeep: LogUpkeep | None = None

    async def write(self, writes: list[tuple[bytes, bytes | None]]) -> None:
        places = await self.broker.publish([ProducerRecord("log", k, v) for k, v in writes])
        for (key, value), (_, offset) in zip(writes, places, strict=True):
            self.written[offset] = (key, value)
            self.table.pop(key, None)
            if value is not None:
                self.table[key] = value

    async def step(self, _: None) -> None:
        if self.upkeep is None:
            broker = self.broker
            self.upkeep = LogUpkeep(broker._directory, broker._time, broker._hindrances, force=True)
        if not await self.broker._writing.run(self.upkeep.step):
            self.upkeep = None

    async def check_tombstones(self) -> None:
        """Whoever had read up to `tombstones_from` or further misses nothing; no one else is told.

        Whoever had read everything below an offset gets the table by reading on from there.
        """
        place = Partition("log", 0)
        start = (await self.broker.spans([place]))[place].tombstones_from
        there = {message.offset for message in await read_all(self.broker, "log")}
        if start:
            assert self.written[start - 1][1] is None
            assert start - 1 not in there
        before: dict[bytes | None, bytes] = {}
        for offset in range(len(self.written) + 1):
            if offset >= start:
                reader = self.broker.reader()
                reader.assign({place: offset})
                after: list[Message] = []
                while some := await reader.read(1000, 0):
                    after += some
                await reader.close()
                assert table_of(after, before) == self.table
            if offset in self.written:
                key, value = self.written[offset]
                before.pop(key, None)
                before |= {} if value is None else {key: value}

    async def crash(self, _: None) -> None:
        if self.upkeep is not None:
            await self.broker._writing.run(self.upkeep.stop)
            self.upkeep = None

    async def new_reader(self, _: None) -> None:
        reader = self.broker.reader()
        reader.assign({Partition("log", 0): 0})
        self.slow.append((reader, []))

    async def read(self, limit: int) -> None:
        for reader, seen in self.slow:
            seen.extend(await reader.read(limit, 0))

    async def check(self) -> list[Message]:
        messages = await read_all(self.broker, "log")
        assert latest(messages) == self.table
        assert all(self.written[m.offset] == (m.key, m.value) for m in messages)
        return messages

    async def check_slow_readers(self) -> None:
        for reader, seen in self.slow:
            while some := await reader.read(3, 0):
                seen.extend(some)
        for _, seen in self.slow:
            assert latest(seen) == self.table
            assert [m.offset for m in seen] == sorted({m.offset for m in seen})


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(_EVENTS, max_size=40), deletion_is_old=st.booleans())
async def test_compaction_changes_no_table_that_a_reader_makes(
    tmp_path: Path, events: list[tuple[str, Any]], deletion_is_old: bool
) -> None:
    """At every moment, whoever reads the whole log gets the table of all writes so far."""
    clock = SettableClock()
    shutil.rmtree(tmp_path / "broker", ignore_errors=True)
    retention = 0 if deletion_is_old else 9 * HOUR
    with small_steps():
        async with opened(tmp_path / "broker", clock) as broker:
            await broker.create([Topic("log", 1, compacted=True, delete_retention_ms=retention)])
            clock.advance(HOUR)  # since the first write: the clock is trusted with tombstones
            story = Story(broker, clock)
            for event, detail in events:
                clock.advance(1)
                await getattr(story, event)(detail)
                await story.check()
            await story.check_tombstones()
            await story.crash(None)
            await broker.maintain()
            await story.check_tombstones()
            messages = await story.check()
            assert len({message.key for message in messages}) == len(messages)
            if retention:  # else a tombstone may go before a slow reader has come to it
                await story.check_slow_readers()


async def test_a_partition_is_compacted_when_it_has_doubled(
    broker: EmbeddedBroker, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_upkeep, "GROWN_BYTES", 1000)
    await broker.create([Topic("log", 1, compacted=True)])
    contents = b"x" * 100

    async def due() -> bool:
        number = (await broker._writing.run(_stored, broker))[0]
        return await broker._writing.run(embedded_upkeep._is_grown, number, clock.wall())

    async def keep_up() -> None:
        upkeep = LogUpkeep(broker._directory, broker._time, broker._hindrances)
        while await broker._writing.run(upkeep.step):
            pass

    await broker.publish([ProducerRecord("log", b"%d" % n, contents) for n in range(5)])
    assert not await due()
    await broker.publish([ProducerRecord("log", b"%d" % n, contents) for n in range(30)])
    assert await due()
    await keep_up()
    assert len(await read_all(broker, "log")) == 30
    await broker.publish([ProducerRecord("log", b"%d" % n, contents) for n in range(20)])
    assert not await due()
    await broker.publish([ProducerRecord("log", b"%d" % n, contents) for n in range(20)])
    assert await due()
    await keep_up()
    assert not await due()
    await broker.publish([ProducerRecord("log", b"1", b"")])
    assert not await due()
    clock.advance(25 * HOUR)
    assert await due()


async def test_only_one_process_at_a_time_does_upkeep(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    await broker.create([Topic("log", 1, compacted=True)])
    await broker.publish([ProducerRecord("log", b"k", b"%d" % number) for number in range(3)])
    first = LogUpkeep(tmp_path / "broker", broker._time, broker._hindrances, force=True)
    assert await broker._writing.run(first.step)
    async with opened(tmp_path / "broker", clock) as other:
        await other.publish([ProducerRecord("log", b"k", b"3")])
        await other.maintain()
        assert [message.value for message in await read_all(other, "log")] == [b"2", b"3"]
        while await broker._writing.run(first.step):
            pass
        await other.maintain()
        assert [message.value for message in await read_all(other, "log")] == [b"3"]


# --- Hindrances -------------------------------------------------------------------------------


def told(logs: list[Any]) -> list[str]:
    return [entry["reason"] for entry in logs if entry["event"] == "upkeep_hindered"]


async def test_a_process_that_hangs_with_the_lock_is_told_until_it_goes_on(
    tmp_path: Path,
    broker: EmbeddedBroker,
    clock: SettableClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(compaction, "STEP_ROWS", 1)
    monkeypatch.setattr(embedded_upkeep, "STEP_ROWS", 1)
    lock = tmp_path / "broker" / "upkeep.lock"
    await broker.create([Topic("log", 1, compacted=True)])
    for number in range(3):
        await broker.publish([ProducerRecord("log", b"k", b"%d" % number)])
    frozen = LogUpkeep(tmp_path / "broker", broker._time, broker._hindrances, force=True)
    assert await broker._writing.run(frozen.step)
    os.utime(lock, (0, 0))  # the next touch is sure to differ
    async with opened(tmp_path / "broker", clock) as other:
        with capture_logs() as logs:
            await other.maintain()
            clock.advance(LASTING_MS - 1)
            await other.maintain()
            assert other.hindrance() is None
            clock.advance(1)
            await other.maintain()
            line = other.hindrance()
            assert line is not None
            assert line.startswith(f"a process that hangs holds {lock}: ")
            clock.advance(AGAIN_MS - 1)
            await other.maintain()
            assert told(logs) == [line]
            clock.advance(1)
            await other.maintain()
            assert told(logs) == [line, line]
        assert await broker._writing.run(frozen.step)
        await other.maintain()
        assert other.hindrance() is None
        clock.advance(LASTING_MS)
        await other.maintain()
        assert other.hindrance() == line
        while await broker._writing.run(frozen.step):
            pass
        await other.maintain()
        assert other.hindrance() is None


async def test_a_full_disk_is_told_at_once_until_there_is_room(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_hindrance, "LEAST_FREE_BYTES", 2**62)
    await broker.create([Topic("log", 1)])
    with capture_logs() as logs:
        await broker.maintain()
        line = broker.hindrance()
        assert line is not None
        assert line.startswith(f"the disk of the log in {tmp_path / 'broker'} is full (")
        clock.advance(AGAIN_MS - 1)
        await broker.maintain()
    assert [entry["event"] for entry in logs] == ["log_disk_full"]
    looking = EmbeddedBroker(tmp_path / "broker", looks=True)
    with capture_logs() as logs:
        assert str(looking.hindrance()).startswith("the disk of the log ")
    assert logs == []
    monkeypatch.setattr(embedded_hindrance, "LEAST_FREE_BYTES", 0)
    await broker.maintain()
    assert broker.hindrance() is None


async def test_upkeep_that_keeps_failing_is_a_hindrance_until_it_succeeds(
    broker: EmbeddedBroker, clock: SettableClock
) -> None:
    failure = patch.object(LogUpkeep, "step", side_effect=StateError("no inode is left"))
    with failure, capture_logs() as logs:
        for _ in range(3):
            await broker._keep_up()
            assert broker._hindrances.line() is None
            clock.advance(5_000)
        await broker._keep_up()
        assert broker._hindrances.line() == "no inode is left"
    assert {entry["event"] for entry in logs} == {"upkeep_failed"}
    await broker._keep_up()
    assert broker._hindrances.line() is None


async def test_a_lock_that_was_free_meanwhile_is_a_new_one(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    await broker.create([Topic("log", 1)])
    with lock_held(tmp_path / "broker" / "upkeep.lock"):
        await broker.maintain()
    clock.advance(LASTING_MS)
    await broker.maintain()
    with lock_held(tmp_path / "broker" / "upkeep.lock"):
        await broker.maintain()
        assert broker.hindrance() is None
        clock.advance(LASTING_MS)
        await broker.maintain()
        assert broker.hindrance() is not None
    await broker.maintain()
    assert broker.hindrance() is None


@contextlib.contextmanager
def lock_held(path: Path) -> Iterator[None]:
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


async def test_a_reader_that_hangs_is_told_until_the_wal_can_be_emptied(
    tmp_path: Path,
    broker: EmbeddedBroker,
    clock: SettableClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(embedded_hindrance, "MOST_WAL_BYTES", 2**20)
    database = tmp_path / "broker" / embedded_store.FILE_NAME
    wal = database.with_name(f"{database.name}-wal")
    await broker.create([Topic("log", 1)])
    with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as frozen:
        frozen.execute("BEGIN")
        frozen.execute("SELECT count(*) FROM batches").fetchone()
        await broker.publish([ProducerRecord("log", b"k", b"x" * 700_000)] * 3)
        with capture_logs() as logs:
            await broker.maintain()
            assert broker.hindrance() is None
            clock.advance(LASTING_MS)
            await broker.maintain()
            mebibytes = wal.stat().st_size // 2**20
            line = (
                f"a process that hangs while it reads keeps {wal} from being emptied: "
                f"{mebibytes} MiB"
            )
            assert mebibytes >= 2
            assert broker.hindrance() == line
            assert told(logs) == [line]
    await broker.maintain()
    assert wal.stat().st_size == 0
    assert broker.hindrance() is None


async def test_who_asks_for_hindrances_has_upkeep_done_while_nobody_writes(
    broker: EmbeddedBroker, clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Partition("log", 0)
    await broker.create([Topic("log", 1, retention_ms=HOUR)])
    await broker.publish([ProducerRecord("log", b"k", b"v")])
    clock.advance(2 * HOUR)
    monkeypatch.setattr(broker, "_upkeep_due", 0.0)
    assert broker.hindrance() is None
    assert broker._upkeep is not None
    await broker._upkeep
    assert await broker.spans([log]) == {log: OffsetRange(1, 1)}


def _stored(connection: sqlite3.Connection, broker: EmbeddedBroker) -> tuple[int, ...]:
    broker._to_write.refresh(connection)
    return broker._to_write.need("log").partitions
