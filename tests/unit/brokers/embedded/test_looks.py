"""An embedded broker that only looks: it asks and reads, and leaves the disk as it was."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from tests.clock_kit import SettableClock
from tests.contract.helpers import damage_embedded
from tests.unit.embedded_kit import old_log, opened, read_all
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.clock import Clock
from worker.errors import BrokerUnavailable, BuddyError, StateError
from worker.stream import GroupMember, Partition, ProducerRecord, Topic

LOG = Partition("log", 0)


def held(directory: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in directory.rglob("*") if p.is_file()}


async def look(directory: Path, clock: Clock | None = None) -> list[bytes | None]:
    broker = EmbeddedBroker(directory, clock=clock, looks=True)
    try:
        await broker.open()
        return [message.value for message in await read_all(broker, "log")]
    finally:
        await broker.close()


@pytest.fixture
async def written(tmp_path: Path) -> Path:
    """A log that was closed in order."""
    async with opened(tmp_path / "broker") as broker:
        await broker.create([Topic("log", 1)])
        await broker.publish([ProducerRecord("log", b"k", b"v")])
    return tmp_path / "broker"


async def test_where_there_is_no_log_none_is_made(tmp_path: Path) -> None:
    for directory in (tmp_path / "nowhere" / "broker", tmp_path):
        with pytest.raises(BrokerUnavailable, match="is --broker right"):
            await look(directory)
    assert list(tmp_path.iterdir()) == []


async def test_a_log_in_the_making_is_none_yet(tmp_path: Path) -> None:
    (tmp_path / "log.sqlite").touch()
    with pytest.raises(BrokerUnavailable, match="There is no log"):
        await look(tmp_path)
    assert held(tmp_path) == {"log.sqlite": b""}


async def test_what_is_no_log_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no log")
    (tmp_path / "log.sqlite").write_bytes(b"no log")
    for directory, says in ((tmp_path / "file", "is a file"), (tmp_path, "not a log")):
        with pytest.raises(StateError, match=says):
            await look(directory)


async def test_a_look_leaves_nothing_behind(written: Path) -> None:
    before = held(written)
    assert await look(written) == [b"v"]
    assert held(written) == before


async def test_a_look_at_what_killed_processes_left(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    async with opened(tmp_path / "broker") as broker:
        await broker.create([Topic("log", 1)])
        await broker.publish([ProducerRecord("log", b"k", b"v")])
        shutil.copytree(tmp_path / "broker", copy)
    assert (copy / "log.sqlite-wal").stat().st_size > 0
    assert await look(copy) == [b"v"]


async def test_whoever_only_looks_writes_nothing(written: Path) -> None:
    broker = EmbeddedBroker(written, looks=True)
    await broker.open()
    for attempt in (
        broker.publish([ProducerRecord("log", None, b"w")]),
        broker.create([Topic("other", 1)]),
        broker.join("group", "log"),
        broker.committer("name", "group"),
    ):
        with pytest.raises(BuddyError):
            await attempt
    await broker.close()
    assert await look(written) == [b"v"]


async def test_members_are_seen_as_long_as_they_live(tmp_path: Path) -> None:
    clock = SettableClock()
    async with opened(tmp_path / "broker", clock) as broker:
        await broker.create([Topic("log", 3)])
        member = await broker.join("group", "log")
        frozen = await broker.join("group", "log")
        looker = EmbeddedBroker(tmp_path / "broker", clock=clock, looks=True)
        await looker.open()
        seen = await looker.members("group")
        assert [sorted(one.numbers) for one in seen] == [[0, 1], [2]]
        clock.advance(7_000)
        await member.assignment()
        assert frozen.seat is not None
        assert member.seat is not None
        assert await looker.members("group") == [
            GroupMember(member.seat.name, frozenset({0, 1, 2}))
        ]
        await looker.close()


async def test_whoever_only_looks_reads_no_earlier_format(tmp_path: Path) -> None:
    old_log(tmp_path)
    with pytest.raises(StateError, match="start a worker or a sink once"):
        await look(tmp_path)
    async with opened(tmp_path):
        pass
    assert await look(tmp_path) == [b"v"]


async def test_damage_that_a_look_comes_across_is_known_and_no_log_line(written: Path) -> None:
    async with opened(written) as broker:
        await damage_embedded(broker, LOG)
    before = held(written)
    looker = EmbeddedBroker(written, looks=True)
    await looker.open()
    reader = looker.reader()
    reader.assign({LOG: 0})
    with capture_logs() as logs:
        assert await reader.read(1, 0.0) == []
    assert reader.damaged().keys() == {LOG}
    assert logs == []
    assert [line.partition(" (")[0] for line in await looker.damage()] == [
        "log/0 is damaged from offset 0 up to 1"
    ]
    await looker.close()
    assert held(written) == before
