"""What can be wrong with the embedded broker's directory."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import re
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.paths import ROOT
from tests.unit.embedded_kit import opened, read_all
from worker.brokers.embedded import store as embedded_store
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.brokers.embedded.explanations import explain_os_error
from worker.errors import BrokerUnavailable, BuddyError, StateError
from worker.stream import OffsetRange, Partition, ProducerRecord, Topic

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
            await broker.publish([ProducerRecord("log", b"k", b"v")])
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
from worker.brokers.embedded.broker import EmbeddedBroker
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


async def test_a_running_log_that_loses_its_rights_is_an_outage(
    tmp_path: Path, broker: EmbeddedBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A service waits until they are given back, as for a right on Kafka."""
    await broker.create([Topic("log", 1)])

    def refused(path: str | Path) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    with monkeypatch.context() as rights:
        rights.setattr(embedded_store, "_place", refused)
        with pytest.raises(BrokerUnavailable, match="give this user its rights to "):
            await broker.publish([ProducerRecord("log", b"k", b"x")])
    assert await broker.publish([ProducerRecord("log", b"k", b"x")]) == [(0, 0)]


async def test_too_many_open_files(tmp_path: Path) -> None:
    with no_more_files(tmp_path):
        await fails_to_open(tmp_path / "broker", "raise the limit of open files")


@contextlib.contextmanager
def no_more_files(directory: Path) -> Iterator[None]:
    """This process can open no file meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with (directory / "lowest").open("w") as lowest:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest.fileno(), hard))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_a_limit_of_file_sizes_is_named_where_a_disk_fails(broker: EmbeddedBroker) -> None:
    await broker.create([Topic("log", 1)])
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (256 * 1024, hard))
    try:
        with pytest.raises(BrokerUnavailable, match="the quota, and the limit of file sizes"):
            await broker.publish([ProducerRecord("log", b"k", b"x" * 1_000_000)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert await broker.publish([ProducerRecord("log", b"k", b"x")]) == [(0, 0)]
    line = str(explain_os_error(OSError(errno.EFBIG, "File too large"), Path("d")))
    assert "raise the limit of file sizes" in line


async def test_a_link_in_the_place_of_a_file_beside_the_log_is_named(tmp_path: Path) -> None:
    async with opened(tmp_path / "log") as broker:
        await broker.create([Topic("log", 1)])
    theirs, link = tmp_path / "theirs", tmp_path / "log" / "log.sqlite-wal"
    theirs.write_text("a letter")
    link.unlink(missing_ok=True)
    link.symlink_to(theirs)
    with pytest.raises(StateError, match=rf"^{link} is a symbolic link, which SQLite does not"):
        async with opened(tmp_path / "log"):
            pass
    assert theirs.read_text() == "a letter"


async def test_what_stands_in_the_place_of_members_or_the_lock_is_named(
    tmp_path: Path, broker: EmbeddedBroker
) -> None:
    directory = tmp_path / "broker"
    await broker.create([Topic("log", 1)])
    member = await broker.join("group", "log")
    shutil.rmtree(directory / "members")
    (directory / "members").touch()
    says = re.escape(f"{directory / 'members'} is in the way of the log in {directory} (")
    for call in (lambda: broker.join("group", "log"), member.assignment):
        with pytest.raises(StateError, match=f"{says}.*: move it away"):
            await call()
    (directory / "members").unlink()
    assert await member.assignment() == {0}
    (directory / "upkeep.lock").unlink(missing_ok=True)
    (directory / "upkeep.lock").mkdir()
    in_the_way = re.escape(f"{directory / 'upkeep.lock'} is in the way")
    with pytest.raises(StateError, match=in_the_way):
        await broker.maintain()
    (directory / "upkeep.lock").rmdir()
    (directory / "upkeep.lock").symlink_to(tmp_path / "others")
    with pytest.raises(StateError, match=in_the_way):
        await broker.maintain()
    assert not (tmp_path / "others").exists(), "no link is followed"


async def test_an_unknown_format_is_left_alone(tmp_path: Path) -> None:
    directory = tmp_path / "broker"
    async with opened(directory) as broker:
        await broker.create([Topic("log", 1)])
    with contextlib.closing(sqlite3.connect(directory / embedded_store.FILE_NAME)) as connection:
        connection.execute("PRAGMA user_version=99")
    await fails_to_open(directory, "format 99, this program reads 3: use the release")


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
    await committer.commit([ProducerRecord("log", b"k", b"before", partition=0)], {log: 1})

    def limit(connection: sqlite3.Connection, spare: int) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count={pages + spare}").fetchone()

    await broker._writing.run(limit, 20)
    large = [
        ProducerRecord("log", b"k", b"x" * 50_000, partition=number) for number in (0, 1, 0, 1)
    ]
    with pytest.raises(StateError, match="is full: make room; nothing of this write was stored"):
        await committer.commit(large, {log: 2})
    with pytest.raises(StateError, match="is full"):
        await broker.publish(large)
    assert await broker.spans([log]) == {log: OffsetRange(0, 1)}
    assert await broker.committed("group", [log]) == {log: 1}
    await broker._writing.run(limit, 1000)
    assert await committer.commit(large, {log: 2}) == [(0, 1), (1, 0), (0, 2), (1, 1)]
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
    for attempt in (broker.publish([ProducerRecord("log", b"k", b"v")]), waiting):
        with pytest.raises(StateError, match="removed or replaced while in use"):
            await attempt


@pytest.mark.parametrize("end", ["-wal", "-shm"])
async def test_what_lies_beside_the_log_is_removed_while_in_use(
    tmp_path: Path, broker: EmbeddedBroker, end: str
) -> None:
    await broker.create([Topic("log", 1)])
    (tmp_path / "broker" / f"{embedded_store.FILE_NAME}{end}").unlink()
    for attempt in (broker.publish([ProducerRecord("log", b"k", b"v")]), broker.topics(["log"])):
        with pytest.raises(StateError, match="removed or replaced while in use"):
            await attempt


SERVICE = """
import asyncio, sys
from pathlib import Path
from worker.stream import ProducerRecord
from worker.brokers.embedded.broker import EmbeddedBroker
from worker.errors import StateError

async def main():
    broker = EmbeddedBroker(Path(sys.argv[1]))
    await broker.open()
    await broker.publish([ProducerRecord("log", b"k", b"old")])
    print("open", flush=True)
    sys.stdin.readline()
    try:
        await broker.publish([ProducerRecord("log", b"k", b"lost")])
    except StateError as error:
        print(error, flush=True)
    await broker.close()

asyncio.run(main())
"""


async def test_a_copy_is_put_over_a_log_in_use(tmp_path: Path) -> None:
    directory, file = tmp_path / "broker", tmp_path / "broker" / embedded_store.FILE_NAME
    async with opened(directory) as broker:
        await broker.create([Topic("log", 1)])
    copy = file.read_bytes()
    service = await asyncio.create_subprocess_exec(
        sys.executable, "-c", SERVICE, str(directory),
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert service.stdout is not None
    assert await service.stdout.readline() == b"open\n"
    for path in directory.glob(f"{embedded_store.FILE_NAME}-*"):
        path.unlink()
    with file.open("r+b") as there:  # as `cp` does
        there.write(copy)
        there.truncate()
    async with opened(directory) as sender:
        await sender.publish([ProducerRecord("log", b"k", b"new")])
    told, _ = await service.communicate(b"\n")
    assert b"removed or replaced while in use" in told
    assert service.returncode == 0
    async with opened(directory) as broker:
        assert [m.value for m in await read_all(broker, "log")] == [b"new"]


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
            await broker.publish([ProducerRecord("log", b"k", b"v")])
        assert await read_all(broker, "log") == []
    assert await broker.publish([ProducerRecord("log", b"k", b"v")]) == [(0, 0)]


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
        broker.publish([ProducerRecord("log", b"k", b"v")]),
        committer.commit([], {}),
        broker.join("group", "log"),
    ):
        with pytest.raises(BuddyError):
            await attempt
    await broker.close()
