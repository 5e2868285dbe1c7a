"""What only the embedded broker promises: crashes, several processes, writes as a whole."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.clock_kit import SettableClock
from tests.contract.helpers import delete_embedded_topic
from tests.paths import ROOT
from tests.unit.embedded_kit import opened, read_all
from worker.brokers.embedded import log as embedded_log
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.brokers.embedded.group import share
from worker.brokers.embedded.store import FILE_NAME
from worker.brokers.embedded.topics import Catalogue, create
from worker.errors import ConfigurationError, MissingTopic
from worker.stream import Message, Partition, ProducerRecord, Topic

# --- Several processes, and their end ---------------------------------------------------------

PRELUDE = """
import asyncio, sys
from pathlib import Path
from worker.stream import ProducerRecord, Partition
from worker.brokers.embedded.broker import EmbeddedBroker

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
        messages = [ProducerRecord("log", b"k", b"%d" % number, partition=p % 2) for p in range(6)]
        await committer.commit(messages, {Partition("log", 0): number})
        print(number, flush=True)
"""

PUBLISHING = """
    for number in range(60):
        await broker.publish(
            [ProducerRecord("log", argument.encode(), b"%d" % (number * 10 + n)) for n in range(10)]
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
        await committer.commit([ProducerRecord("log", b"k", b"after", partition=0)], {})
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


async def test_a_killed_member_is_dead_at_once(tmp_path: Path) -> None:
    clock = SettableClock(steady=0)  # no heartbeat grows old by it: the lock alone must tell
    directory = tmp_path / "broker"
    async with opened(directory, clock) as broker:
        await broker.create([Topic("log", 4)])
        with process(JOINING, directory) as child:
            assert line_of(child) == "[0, 1, 2, 3]"
            member = await broker.join("group", "log")
            assert await member.assignment() == {2, 3}
            child.send_signal(signal.SIGKILL)
            await asyncio.to_thread(child.wait, 30)
            assert await member.assignment() == {0, 1, 2, 3}
        assert len(list((directory / "members").iterdir())) == 1


async def test_a_frozen_member_is_dead_after_its_session_and_joins_again_when_it_thaws(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    await broker.create([Topic("log", 4)])
    async with opened(tmp_path / "broker", clock) as other:
        frozen, awake = await broker.join("group", "log"), await other.join("group", "log")
        assert await frozen.assignment() == {0, 1}
        assert await awake.assignment() == {2, 3}
        clock.advance(5_900)
        assert await awake.assignment() == {2, 3}
        clock.advance(200)
        assert await awake.assignment() == {0, 1, 2, 3}
        assert await frozen.assignment() == {2, 3}  # at the end of the row now
        assert await awake.assignment() == {0, 1}
        await awake.close()
        assert await frozen.assignment() == {0, 1, 2, 3}
    await frozen.close()
    assert list((tmp_path / "broker" / "members").iterdir()) == []


async def test_a_clock_that_is_set_ends_no_membership(
    tmp_path: Path, broker: EmbeddedBroker, clock: SettableClock
) -> None:
    await broker.create([Topic("log", 4)])
    async with opened(tmp_path / "broker", clock) as other:
        one, two = await broker.join("group", "log"), await other.join("group", "log")
        for step in (3_600_000, -7_200_000):
            clock.step(step)
            assert await one.assignment() == {0, 1}
            assert await two.assignment() == {2, 3}


async def test_a_member_learns_that_its_topic_was_made_anew(broker: EmbeddedBroker) -> None:
    await broker.create([Topic("log", 4)])
    member = await broker.join("group", "log")
    await delete_embedded_topic(broker, "log")
    with pytest.raises(MissingTopic):
        await member.assignment()
    await broker.create([Topic("log", 2)])
    assert await member.assignment() == {0, 1}


async def test_a_topic_made_anew_between_placing_and_writing(
    broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers of its partitions may be another topic's by then."""
    await broker.create([Topic("log", 1), Topic("other", 1)])
    arrange = embedded_log.arrange

    def overtaken(*arguments: Any) -> list[embedded_log.Load]:
        loads = arrange(*arguments)
        monkeypatch.undo()
        connection = broker._writing._ready()
        connection.execute("DELETE FROM partitions")
        connection.execute("DELETE FROM topics")
        create(connection, Catalogue(), [Topic("other", 1), Topic("log", 1)], 0)
        return loads

    monkeypatch.setattr(embedded_log, "arrange", overtaken)
    await broker.publish([ProducerRecord("log", b"k", b"v")])
    assert len(await read_all(broker, "log")) == 1
    assert await read_all(broker, "other") == []


async def test_seats_that_no_member_stands_for_are_removed_and_nothing_else(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    await broker.create([Topic("log", 1)])
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    for name in ("notes.txt", "0" * 32):
        (foreign / name).touch()
    (tmp_path / "broker" / "members").symlink_to(foreign)
    member = await broker.join("group", "log")
    assert member.seat is not None
    assert {path.name for path in foreign.iterdir()} == {"notes.txt", member.seat.name}
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
    written = await broker.publish([ProducerRecord("log", b"k", value) for value in contents])
    assert written == [(0, offset) for offset in range(100)]
    messages = await read_all(broker, "log")
    assert [(m.offset, m.value) for m in messages] == list(enumerate(contents))


async def test_append_times_never_go_back(broker: EmbeddedBroker, clock: SettableClock) -> None:
    await broker.create([Topic("log", 1)])
    start = clock.wall()
    for step in (0, -5000, 3, -1, 10):
        clock.step(step)
        await broker.publish([ProducerRecord("log", b"k", b"v")])
    times = [message.timestamp - start for message in await read_all(broker, "log")]
    assert times == [0, 0, 0, 0, 0]
    clock.step(start + 7 - clock.wall())
    await broker.publish([ProducerRecord("log", b"k", b"v")])
    assert (await read_all(broker, "log"))[-1].timestamp == start + 7


async def test_of_each_of_many_partitions_little_is_read_at_once(broker: EmbeddedBroker) -> None:
    """What is read goes to the partition's task, and each has its share of the memory."""
    await broker.create([Topic("log", 16)])
    for number in range(40):
        await broker.publish(
            [ProducerRecord("log", b"k", b"%d" % number + bytes(200_000), partition=0)]
        )

    async def first_read(partitions: int) -> int:
        reader = broker.reader()
        reader.assign({Partition("log", p): 0 for p in range(partitions)})
        return sum(len(m.value or b"") for m in await reader.read(5_000, 0))

    assert await first_read(1) > 6 * 1024 * 1024
    assert 0 < await first_read(16) <= 1024 * 1024
    assert len(await read_all(broker, "log")) == 40


async def test_a_cancelled_publish_happens_or_does_not(broker: EmbeddedBroker) -> None:
    await broker.create([Topic("log", 2)])
    for number in range(40):
        writing = asyncio.create_task(
            broker.publish(
                [ProducerRecord("log", b"k", b"%d" % number, partition=p) for p in (0, 1)]
            )
        )
        for _ in range(number % 4):
            await asyncio.sleep(0)
        writing.cancel()
        await asyncio.wait({writing})
    await broker.publish([ProducerRecord("log", b"k", b"last", partition=p) for p in (0, 1)])
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


async def test_names_of_closed_committers_do_not_pile_up(tmp_path: Path) -> None:
    async with opened(tmp_path) as broker:
        for number in range(5):
            await (await broker.committer(f"name-{number}", "group")).close()
        kept = await broker.committer("kept", "group")
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as connection:
        assert connection.execute("SELECT name FROM committers").fetchall() == [("kept",)]
    await kept.close()  # the log is closed: nothing to complain about
