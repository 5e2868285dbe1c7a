"""What only the embedded broker promises: crashes, several processes, upkeep, bad directories."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.brokers import embedded_log, embedded_store, embedded_upkeep
from worker.brokers.contract import Message, Outgoing, Partition, Span, Topic
from worker.brokers.embedded import EmbeddedBroker
from worker.brokers.embedded_group import share
from worker.brokers.embedded_reader import EmbeddedReader
from worker.brokers.embedded_upkeep import Upkeep
from worker.errors import BrokerUnavailable, BuddyError, ConfigurationError, StateError

ROOT = Path(__file__).parents[2]
HOUR = 3_600_000


class Clock:
    """Milliseconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1_700_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def broker(tmp_path: Path, clock: Clock) -> AsyncIterator[EmbeddedBroker]:
    async with opened(tmp_path / "broker", clock) as broker:
        yield broker


@contextlib.asynccontextmanager
async def opened(directory: Path, clock: Clock | None = None) -> AsyncIterator[EmbeddedBroker]:
    broker = EmbeddedBroker(directory, clock=clock or Clock())
    await broker.open()
    try:
        yield broker
    finally:
        await broker.close()


async def read_all(broker: EmbeddedBroker, topic: str, number: int = 0) -> list[Message]:
    reader = broker.reader()
    reader.assign({Partition(topic, number): 0})
    messages: list[Message] = []
    while some := await reader.read(1000, 0):
        messages += some
    await reader.close()
    return messages


def latest(messages: list[Message]) -> dict[bytes | None, bytes]:
    """The table that a reader of a compacted topic ends up with."""
    table: dict[bytes | None, bytes] = {}
    for message in messages:
        if message.value is None:
            table.pop(message.key, None)
        else:
            table[message.key] = message.value
    return table


# --- Several processes, and their end ---------------------------------------------------------

PRELUDE = """
import asyncio, sys
from pathlib import Path
from worker.brokers.contract import Outgoing, Partition
from worker.brokers.embedded import EmbeddedBroker

async def main(directory, argument):
    broker = EmbeddedBroker(Path(directory))
    await broker.open()
"""

EPILOGUE = """
asyncio.run(main(*sys.argv[1:]))
"""

COMMITTING = """
    committer = await broker.committer("task", "group")
    number = 0
    while True:
        number += 1
        messages = [Outgoing("log", b"k", b"%d" % number, partition=p % 2) for p in range(6)]
        await committer.commit(messages, {Partition("log", 0): number})
        print(number, flush=True)
"""

PUBLISHING = """
    for number in range(60):
        await broker.publish(
            [Outgoing("log", argument.encode(), b"%d" % (number * 10 + n)) for n in range(10)]
        )
    await broker.close()
"""

JOINING = """
    member = await broker.join("group", "log")
    print(sorted(await member.assignment()), flush=True)
    await asyncio.sleep(600)
"""


@contextlib.contextmanager
def process(body: str, directory: Path, argument: str = "") -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + body + EPILOGUE, str(directory), argument],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        finally:
            child.kill()


def line_of(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


@pytest.mark.parametrize("acknowledged", [1, 7, 60])
async def test_kill_9_loses_nothing_acknowledged_and_leaves_no_half_transaction(
    tmp_path: Path, acknowledged: int
) -> None:
    directory = tmp_path / "broker"
    async with opened(directory) as broker:
        await broker.create([Topic("log", 2)])
    with process(COMMITTING, directory) as child:
        for number in range(1, acknowledged + 1):
            assert line_of(child) == str(number)
        child.send_signal(signal.SIGKILL)
        assert child.stdout is not None
        rest = child.stdout.read().split()
    known = int(rest[-1]) if rest else acknowledged
    async with opened(directory) as broker:
        committed = (await broker.committed("group", [Partition("log", 0)]))[Partition("log", 0)]
        # At most the one commit in flight was written and not yet acknowledged.
        assert known <= committed <= known + 1
        expected = [b"%d" % number for number in range(1, committed + 1) for _ in range(3)]
        for number in range(2):
            assert [m.value for m in await read_all(broker, "log", number)] == expected
        committer = await broker.committer("task", "group")
        await committer.commit([Outgoing("log", b"k", b"after", partition=0)], {})
        assert (await read_all(broker, "log"))[-1].value == b"after"


async def test_processes_write_at_once_while_another_reads(tmp_path: Path) -> None:
    directory = tmp_path / "broker"
    names = [b"one", b"two", b"three"]
    async with opened(directory) as broker:
        await broker.create([Topic("log", 1)])
        reader = broker.reader()
        reader.assign({Partition("log", 0): 0})
        messages: list[Message] = []
        with contextlib.ExitStack() as stack:
            children = [
                stack.enter_context(process(PUBLISHING, directory, name.decode())) for name in names
            ]
            async with asyncio.timeout(60):
                while len(messages) < 1800:
                    messages += await reader.read(1000, 1.0)
            for child in children:
                assert await asyncio.to_thread(child.wait, 30) == 0
    assert [message.offset for message in messages] == list(range(1800))
    for name in names:
        assert [int(m.value or b"") for m in messages if m.key == name] == list(range(600))


async def test_a_killed_member_is_dead_at_once(tmp_path: Path, clock: Clock) -> None:
    directory = tmp_path / "broker"
    async with opened(directory, clock) as broker:
        await broker.create([Topic("log", 4)])
        with process(JOINING, directory) as child:
            assert line_of(child) == "[0, 1, 2, 3]"
            clock.now = 0  # heartbeats never grow old by this clock: the lock alone must tell
            member = await broker.join("group", "log")
            assert await member.assignment() == {2, 3}
            child.send_signal(signal.SIGKILL)
            await asyncio.to_thread(child.wait, 30)
            assert await member.assignment() == {0, 1, 2, 3}
        assert len(list((directory / "members").iterdir())) == 1


async def test_a_frozen_member_is_dead_after_its_session_and_joins_again_when_it_thaws(
    tmp_path: Path, broker: EmbeddedBroker, clock: Clock
) -> None:
    await broker.create([Topic("log", 4)])
    async with opened(tmp_path / "broker", clock) as other:
        frozen, awake = await broker.join("group", "log"), await other.join("group", "log")
        assert await frozen.assignment() == {0, 1}
        assert await awake.assignment() == {2, 3}
        clock.now += 5_900
        assert await awake.assignment() == {2, 3}
        clock.now += 200
        assert await awake.assignment() == {0, 1, 2, 3}
        assert await frozen.assignment() == {2, 3}  # at the end of the row now
        assert await awake.assignment() == {0, 1}
        await awake.close()
        assert await frozen.assignment() == {0, 1, 2, 3}
    await frozen.close()
    assert list((tmp_path / "broker" / "members").iterdir()) == []


async def test_files_that_no_member_stands_for_are_removed(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    await broker.create([Topic("log", 1)])
    (tmp_path / "broker" / "members").mkdir()
    (tmp_path / "broker" / "members" / "left-behind").touch()
    member = await broker.join("group", "log")
    assert len(list((tmp_path / "broker" / "members").iterdir())) == 1
    assert await member.assignment() == {0}


@given(st.integers(1, 100), st.integers(1, 20))
def test_shares_are_contiguous_even_and_complete(partitions: int, members: int) -> None:
    shares = [share(partitions, place, members) for place in range(members)]
    assert [number for each in shares for number in sorted(each)] == list(range(partitions))
    sizes = [len(each) for each in shares]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] - sizes[-1] <= 1


# --- Writing ----------------------------------------------------------------------------------


async def test_a_large_write_is_split_and_reads_back_whole(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_log, "BATCH_BYTES", 1000)
    monkeypatch.setattr(embedded_log, "FETCH_BYTES", 5000)
    await broker.create([Topic("log", 1)])
    contents = [b"x" * (number * 37 % 1500) for number in range(100)]
    written = await broker.publish([Outgoing("log", b"k", value) for value in contents])
    assert written == [(0, offset) for offset in range(100)]
    messages = await read_all(broker, "log")
    assert [(m.offset, m.value) for m in messages] == list(enumerate(contents))


async def test_append_times_never_go_back(broker: EmbeddedBroker, clock: Clock) -> None:
    await broker.create([Topic("log", 1)])
    start = clock.now
    for step in (0, -5000, 3, -1, 10):
        clock.now += step
        await broker.publish([Outgoing("log", b"k", b"v")])
    times = [message.timestamp - start for message in await read_all(broker, "log")]
    assert times == [0, 0, 0, 0, 0]
    clock.now = start + 7
    await broker.publish([Outgoing("log", b"k", b"v")])
    assert (await read_all(broker, "log"))[-1].timestamp == start + 7


async def test_a_cancelled_publish_happens_or_does_not(broker: EmbeddedBroker) -> None:
    await broker.create([Topic("log", 2)])
    for number in range(40):
        writing = asyncio.create_task(
            broker.publish([Outgoing("log", b"k", b"%d" % number, partition=p) for p in (0, 1)])
        )
        for _ in range(number % 4):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait({writing})
    await broker.publish([Outgoing("log", b"k", b"last", partition=p) for p in (0, 1)])
    first, second = [
        [message.value for message in await read_all(broker, "log", number)] for number in (0, 1)
    ]
    assert first == second
    assert first[-1] == b"last"
    assert len(set(first)) == len(first)


@pytest.mark.parametrize(
    "topic", [Topic("no spaces", 1), Topic("", 1), Topic("x" * 250, 1), Topic("none", 0)]
)
async def test_what_kafka_would_refuse_is_refused(broker: EmbeddedBroker, topic: Topic) -> None:
    with pytest.raises(ConfigurationError):
        await broker.create([topic])


# --- Retention --------------------------------------------------------------------------------


async def test_what_is_older_than_the_retention_goes(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_upkeep, "STEP_ROWS", 2)
    log, kept = Partition("log", 0), Partition("kept", 0)
    async with opened(tmp_path / "broker", clock) as broker:
        await broker.create([Topic("log", 1, retention_ms=HOUR), Topic("kept", 1)])
        for _ in range(10):
            await broker.publish([Outgoing(name, b"k", b"v") for name in ("log", "kept")])
            clock.now += HOUR // 5
        await broker.maintain()
        assert await broker.spans([log, kept]) == {log: Span(5, 10), kept: Span(0, 10)}
        assert [message.offset for message in await read_all(broker, "log")] == [5, 6, 7, 8, 9]
        clock.now += 2 * HOUR
        await broker.maintain()
    async with opened(tmp_path / "broker", clock) as broker:
        assert await broker.spans([log]) == {log: Span(10, 10)}
        assert await read_all(broker, "log") == []
        assert await broker.publish([Outgoing("log", b"k", b"v")]) == [(0, 10)]


async def test_upkeep_comes_with_writing(
    broker: EmbeddedBroker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Partition("log", 0)
    await broker.create([Topic("log", 1, retention_ms=HOUR)])
    await broker.publish([Outgoing("log", b"k", b"v")])
    clock.now += 2 * HOUR
    monkeypatch.setattr(broker, "_upkeep_due", 0.0)
    await broker.publish([Outgoing("log", b"k", b"v")])
    async with asyncio.timeout(10):
        while (await broker.spans([log]))[log].start == 0:  # noqa: ASYNC110 -- nothing tells
            await asyncio.sleep(0)
    assert (await broker.spans([log])) == {log: Span(1, 2)}


async def test_space_of_what_expired_is_used_again(
    tmp_path: Path, broker: EmbeddedBroker, clock: Clock
) -> None:
    await broker.create([Topic("log", 1, retention_ms=HOUR)])
    sizes = []
    for _ in range(6):
        await broker.publish([Outgoing("log", b"k", b"x" * 500_000)] * 4)
        clock.now += 2 * HOUR
        await broker.maintain()
        sizes.append((tmp_path / "broker" / embedded_store.FILE_NAME).stat().st_size)
    assert sizes[-1] == sizes[0]


# --- Compaction -------------------------------------------------------------------------------


@contextlib.contextmanager
def small_steps() -> Iterator[None]:
    """So small that a few messages already take several batches, steps and passes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedded_upkeep, "STEP_BYTES", 200)
        patch.setattr(embedded_upkeep, "BATCH_BYTES", 150)
        patch.setattr(embedded_upkeep, "REMEMBERED_KEYS", 2)
        yield


async def test_the_latest_of_each_key_stays_at_its_offset(
    broker: EmbeddedBroker, clock: Clock
) -> None:
    log = Partition("log", 0)
    await broker.create([Topic("log", 1, compacted=True)])
    start = clock.now
    for number in range(20):
        await broker.publish([Outgoing("log", b"%d" % (number % 3), b"%d" % number, (("h", b""),))])
        clock.now += 1
    await broker.maintain()
    assert [
        (m.offset, m.key, m.value, m.timestamp - start, m.headers)
        for m in await read_all(broker, "log")
    ] == [(n, b"%d" % (n % 3), b"%d" % n, n, (("h", b""),)) for n in (17, 18, 19)]
    assert await broker.spans([log]) == {log: Span(0, 20)}
    reader = broker.reader()
    reader.assign({log: 5})
    assert len(await reader.read(10, 0)) == 3
    assert reader.expired() == {}


async def test_a_tombstone_stays_for_its_time_and_the_position_passes_the_gap(
    broker: EmbeddedBroker, clock: Clock
) -> None:
    log = Partition("log", 0)
    await broker.create([Topic("log", 1, compacted=True, delete_retention_ms=HOUR)])
    await broker.publish([Outgoing("log", b"k", b"v"), Outgoing("log", b"k", None)])
    for _ in range(2):
        await broker.maintain()
        assert [(m.offset, m.value) for m in await read_all(broker, "log")] == [(1, None)]
    clock.now += HOUR + 1
    await broker.maintain()
    assert await read_all(broker, "log") == []
    reader = broker.reader()
    reader.assign({log: 0})
    assert await reader.read(10, 0) == []
    assert reader.position(log) == 2
    assert await broker.publish([Outgoing("log", b"k", b"v")]) == [(0, 2)]
    assert [message.offset for message in await reader.read(10, 0)] == [2]


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

    def __init__(self, broker: EmbeddedBroker, clock: Clock) -> None:
        self.broker = broker
        self.clock = clock
        self.table: dict[bytes | None, bytes] = {}
        self.written: dict[int, tuple[bytes | None, bytes | None]] = {}
        self.slow: list[tuple[EmbeddedReader, list[Message]]] = []
        self.upkeep: Upkeep | None = None

    async def write(self, writes: list[tuple[bytes, bytes | None]]) -> None:
        places = await self.broker.publish([Outgoing("log", k, v) for k, v in writes])
        for (key, value), (_, offset) in zip(writes, places, strict=True):
            self.written[offset] = (key, value)
            self.table.pop(key, None)
            if value is not None:
                self.table[key] = value

    async def step(self, _: None) -> None:
        if self.upkeep is None:
            self.upkeep = Upkeep(self.broker._directory, self.clock, force=True)
        if not await self.broker._writing.run(self.upkeep.step):
            self.upkeep = None

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


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(events=st.lists(_EVENTS, max_size=40), deletion_is_old=st.booleans())
async def test_compaction_changes_no_table_that_a_reader_makes(
    tmp_path: Path, events: list[tuple[str, Any]], deletion_is_old: bool
) -> None:
    """At every moment, whoever reads the whole log gets the table of all writes so far."""
    clock = Clock()
    shutil.rmtree(tmp_path / "broker", ignore_errors=True)
    retention = 0 if deletion_is_old else HOUR
    with small_steps():
        async with opened(tmp_path / "broker", clock) as broker:
            await broker.create([Topic("log", 1, compacted=True, delete_retention_ms=retention)])
            story = Story(broker, clock)
            for event, detail in events:
                clock.now += 1
                await getattr(story, event)(detail)
                await story.check()
            await story.crash(None)
            await broker.maintain()
            messages = await story.check()
            assert len({message.key for message in messages}) == len(messages)
            if retention:  # else a tombstone may go before a slow reader has come to it
                await story.check_slow_readers()


async def test_a_partition_is_compacted_when_it_has_doubled(
    broker: EmbeddedBroker, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_upkeep, "GROWN_BYTES", 1000)
    await broker.create([Topic("log", 1, compacted=True)])
    contents = b"x" * 100

    async def due() -> bool:
        return bool(await broker._writing.run(embedded_upkeep._grown, clock(), force=False))

    async def keep_up() -> None:
        upkeep = Upkeep(broker._directory, clock)
        while await broker._writing.run(upkeep.step):
            pass

    await broker.publish([Outgoing("log", b"%d" % n, contents) for n in range(5)])
    assert not await due()
    await broker.publish([Outgoing("log", b"%d" % n, contents) for n in range(30)])
    assert await due()
    await keep_up()
    assert len(await read_all(broker, "log")) == 30
    await broker.publish([Outgoing("log", b"%d" % n, contents) for n in range(20)])
    assert not await due()
    await broker.publish([Outgoing("log", b"%d" % n, contents) for n in range(20)])
    assert await due()
    await keep_up()
    assert not await due()
    await broker.publish([Outgoing("log", b"1", b"")])
    assert not await due()
    clock.now += 25 * HOUR
    assert await due()


async def test_only_one_process_at_a_time_does_upkeep(
    tmp_path: Path, broker: EmbeddedBroker, clock: Clock
) -> None:
    await broker.create([Topic("log", 1, compacted=True)])
    await broker.publish([Outgoing("log", b"k", b"%d" % number) for number in range(3)])
    first = Upkeep(tmp_path / "broker", clock, force=True)
    assert await broker._writing.run(first.step)
    async with opened(tmp_path / "broker", clock) as other:
        await other.publish([Outgoing("log", b"k", b"3")])
        await other.maintain()
        assert [message.value for message in await read_all(other, "log")] == [b"2", b"3"]
        while await broker._writing.run(first.step):
            pass
        await other.maintain()
        assert [message.value for message in await read_all(other, "log")] == [b"3"]


# --- What can be wrong with the directory -----------------------------------------------------


async def fails_to_open(directory: Path, says: str) -> None:
    broker = EmbeddedBroker(directory)
    with pytest.raises(StateError, match=says) as caught:
        await broker.open()
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)
    with pytest.raises(BrokerUnavailable):
        await broker.publish([])


async def test_everything_is_for_owner_and_group_only(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        async with opened(tmp_path / "broker") as broker:
            await broker.create([Topic("log", 1)])
            await broker.join("group", "log")
            await broker.maintain()
            await broker.publish([Outgoing("log", b"k", b"v")])
            paths = [tmp_path / "broker", *(tmp_path / "broker").rglob("*")]
            assert len(paths) >= 6
            for path in paths:
                assert not stat.S_IMODE(path.stat().st_mode) & 0o027, path
    finally:
        os.umask(before)


async def test_the_parent_must_exist(tmp_path: Path) -> None:
    await fails_to_open(tmp_path / "no" / "broker", "cannot be used")
    assert not (tmp_path / "no").exists()


async def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    await fails_to_open(tmp_path / "file", "is a file")
    assert (tmp_path / "file").read_text() == "mine"


async def test_a_directory_that_may_not_be_written(tmp_path: Path) -> None:
    directory = tmp_path / "broker"
    directory.mkdir(mode=0o500)
    if os.geteuid() != 0:
        await fails_to_open(directory, "cannot be used")
        return
    # Root may write anywhere: try as nobody, in a process of its own.
    script = f"""
import os
import asyncio, msgspec, structlog
from pathlib import Path
from worker.brokers.embedded import EmbeddedBroker
from worker.errors import StateError
async def main():
    os.seteuid(65534)
    try:
        await EmbeddedBroker(Path({str(directory)!r})).open()
    except StateError as error:
        print(error)
asyncio.run(main())
"""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "cannot be used for the log" in done.stdout
    assert done.stderr == ""


async def test_an_unknown_format_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "broker"
    async with opened(directory) as broker:
        await broker.create([Topic("log", 1)])
    with contextlib.closing(sqlite3.connect(directory / embedded_store.FILE_NAME)) as connection:
        connection.execute("PRAGMA user_version=99")
    await fails_to_open(directory, "format 99, this program reads 1: use the release")


async def test_somebody_elses_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / embedded_store.FILE_NAME
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (id)")
    await fails_to_open(tmp_path, "not a log of this program")


async def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    (tmp_path / embedded_store.FILE_NAME).write_bytes(b"no database at all" * 100)
    await fails_to_open(tmp_path, "damaged")


async def test_many_open_a_new_log_at_once(tmp_path: Path) -> None:
    brokers = [EmbeddedBroker(tmp_path / "broker") for _ in range(8)]
    await asyncio.gather(*(broker.open() for broker in brokers))
    created = await asyncio.gather(*(broker.create([Topic("log", 1)]) for broker in brokers))
    assert sorted(created) == [[]] * 7 + [["log"]]
    await asyncio.gather(*(broker.close() for broker in brokers))


async def test_a_full_disk_stores_nothing_of_the_write(broker: EmbeddedBroker) -> None:
    log = Partition("log", 0)
    await broker.create([Topic("log", 2)])
    committer = await broker.committer("task", "group")
    await committer.commit([Outgoing("log", b"k", b"before", partition=0)], {log: 1})

    def limit(connection: sqlite3.Connection, spare: int) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages + spare}").fetchone()

    await broker._writing.run(limit, 20)
    large = [Outgoing("log", b"k", b"x" * 50_000, partition=number) for number in (0, 1, 0, 1)]
    with pytest.raises(StateError, match="is full: make room; nothing of this write was stored"):
        await committer.commit(large, {log: 2})
    with pytest.raises(StateError, match="is full"):
        await broker.publish(large)
    assert await broker.spans([log]) == {log: Span(0, 1)}
    assert await broker.committed("group", [log]) == {log: 1}
    await broker._writing.run(limit, 1000)
    assert await committer.commit(large, {log: 2}) == [1, 0, 2, 1]
    assert await broker.committed("group", [log]) == {log: 2}


async def test_a_full_disk_lets_nobody_join(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await broker.create([Topic("log", 2)])

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(StateError, match="is full"):
            await broker.join("group", "log")
    assert list((tmp_path / "broker" / "members").iterdir()) == []
    member = await broker.join("group", "log")
    assert await member.assignment() == {0, 1}


async def test_a_log_that_is_removed_while_in_use(tmp_path: Path, broker: EmbeddedBroker) -> None:
    await broker.create([Topic("log", 1)])
    reader = broker.reader()
    reader.assign({Partition("log", 0): 0})
    waiting = asyncio.create_task(reader.read(10, 30))
    assert await reader.read(10, 0) == []
    shutil.rmtree(tmp_path / "broker")
    for attempt in (broker.publish([Outgoing("log", b"k", b"v")]), waiting):
        with pytest.raises(StateError, match="removed or replaced while in use"):
            await attempt


async def test_a_log_that_another_process_holds_on_to(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded_store, "BUSY_SECONDS", 0.05)
    await broker.create([Topic("log", 1)])
    async with opened(tmp_path / "broker") as other:

        def hold(connection: sqlite3.Connection) -> None:
            connection.execute("BEGIN IMMEDIATE")

        await other._writing.run(hold)
        with pytest.raises(BrokerUnavailable, match="Another process has held the log"):
            await broker.publish([Outgoing("log", b"k", b"v")])
        assert await read_all(broker, "log") == []
    assert await broker.publish([Outgoing("log", b"k", b"v")]) == [(0, 0)]


async def test_after_close_everything_says_so(tmp_path: Path) -> None:
    async with opened(tmp_path / "broker") as broker:
        await broker.create([Topic("log", 1)])
        committer = await broker.committer("task", "group")
        reader = broker.reader()
        reader.assign({Partition("log", 0): 0})
        waiting = asyncio.create_task(reader.read(10, 30))
        assert await reader.read(10, 0) == []
    for attempt in (
        waiting,
        reader.read(1, 0),
        broker.publish([Outgoing("log", b"k", b"v")]),
        committer.commit([], {}),
        broker.join("group", "log"),
    ):
        with pytest.raises(BuddyError):
            await attempt
    await broker.close()
