"""A disk that is full: one clear line, nothing lost, and it goes on once there is room."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.accounts import Outcomes, books_of, broker_of
from tests.acceptance.kit import Buddy
from tests.acceptance.material import user, write_rows

pytestmark = pytest.mark.acceptance

STATE, UNREACHABLE, NOBODY = 6, 4, 8
SMALL = 2 * 1024 * 1024
ROOM = 64 * 1024 * 1024

Place = Callable[..., Buddy]


class Disk:
    """A small disk: a tmpfs where mounting is permitted, else a limit on the size of files."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._mounted = self._mount(f"size={SMALL}")
        self.before: Callable[[], None] | None = None if self._mounted else _limit

    def make_room(self) -> None:
        """From now on there is room for everything."""
        self.before = None
        if self._mounted:
            assert self._mount(f"remount,size={ROOM}")

    def remove(self) -> None:
        """Unmount it."""
        if self._mounted:
            subprocess.run(["umount", "--lazy", self.directory], check=True)

    def _mount(self, options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.directory)]
        try:
            return subprocess.run(command, check=False, capture_output=True).returncode == 0
        except FileNotFoundError:
            return False


def _limit() -> None:
    # Python ignores SIGXFSZ, so that a write over the limit fails like one on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (SMALL // 2, SMALL // 2))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "small")
    yield disk
    disk.remove()


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """Makes the one place of a test."""
    made: list[Buddy] = []

    def make(broker: str | None = None, **settings: Any) -> Buddy:
        made.append(Buddy(tmp_path / "here", broker, grace_seconds=1, **settings))
        return made[-1]

    yield make
    for buddy in made:
        buddy.stop_all()


async def test_a_full_disk_under_the_log_loses_nothing(disk: Disk, place: Place) -> None:
    buddy = place(broker=f"embedded:{disk.directory / 'broker'}")
    rows = [user(location="x" * 500) for _ in range(4_000)]
    write_rows(buddy.directory, {"users": rows[:2_000]})
    buddy.run("topics", "create", before=disk.before).succeeded()
    service = buddy.start("run").ready()
    for _ in range(10):  # outcomes take room as well, so it is not known which send is refused
        refused = buddy.run("send", "users.ndjson", before=disk.before)
        if refused.code:
            break
    assert "disk" in refused.complained(refused.code)
    assert refused.code in (STATE, UNREACHABLE)
    shown = buddy.run("status", "--json", before=disk.before)
    assert shown.json["entities"]["users"]["read"] >= 0, f"{shown}"

    disk.make_room()
    if service.process.poll() is None:
        service.stop()
    else:
        ended = service.end()
        assert ended.code in (STATE, UNREACHABLE), f"{ended}"
        assert "disk" in ended.err.splitlines()[-1]
        assert len(service.complaints) == 1
    service = buddy.start("run").ready()
    write_rows(buddy.directory, {"users": rows[2_000:]})
    buddy.run("send", "users.ndjson", "--wait", "--json").succeeded()
    service.stop().succeeded()
    (await books_of(buddy)).balance()


def test_a_full_disk_under_idle_services_is_told(disk: Disk, place: Place) -> None:
    """They write nothing, so nothing fails. A little is left here, for the last of the start."""
    if disk.before is not None:
        pytest.skip("no rights to mount a disk of its own")
    disk.make_room()
    buddy = place(broker=f"embedded:{disk.directory / 'broker'}")
    buddy.run("topics", "create").succeeded()
    service = buddy.start("run").ready()
    buddy.run("status").succeeded()
    filler = disk.directory / "filler"
    with filler.open("wb") as file:
        free = shutil.disk_usage(disk.directory).free
        os.posix_fallocate(file.fileno(), 0, free - 512 * 1024)
    service.wait_for("log_disk_full")
    (told,) = service.logged("log_disk_full")
    reason = f"the disk of the log in {disk.directory / 'broker'} is full"
    assert told["reason"].startswith(reason)
    status = buddy.run("status")
    assert reason in status.complained(NOBODY)
    filler.unlink()
    buddy.run("status").succeeded()
    service.stop().succeeded()


async def test_a_full_disk_under_the_state_ends_the_worker_with_one_line(
    disk: Disk, place: Place
) -> None:
    """The log lies elsewhere; whatever was not written here is made again from it."""
    buddy = place()
    write_rows(buddy.directory, {"users": [user(location="x" * 2_000) for _ in range(3_000)]})
    buddy.run("topics", "create").succeeded()
    service = buddy.start("--data", disk.directory, "run", before=disk.before)
    buddy.run("send", "users.ndjson").succeeded()
    ended = service.end()
    assert ended.code == STATE, f"{ended}"
    line = ended.err.splitlines()[-1]
    assert line.startswith(f"buddy: {disk.directory}"), line

    disk.make_room()
    service = buddy.start("--data", disk.directory, "run").ready()
    async with broker_of(buddy) as broker:
        outcomes = Outcomes(broker, buddy.names)
        await outcomes.open()
        await outcomes.reach(3_000)
        await outcomes.close()
    answer = buddy.run("export", "--wait", "--json").succeeded().json
    assert answer["counts"]["users"] == 3_000
    service.stop().succeeded()
    (await books_of(buddy)).balance()


def test_a_full_disk_under_the_exports_fails_the_export_alone(disk: Disk, place: Place) -> None:
    buddy = place(exports=disk.directory / "exports")
    write_rows(buddy.directory, {"users": [user(location="x" * 2_000) for _ in range(3_000)]})
    service = buddy.start("run").ready()
    buddy.run("send", "users.ndjson", "--wait", "--json").succeeded()
    service.stop().succeeded()
    service = buddy.start("run", before=disk.before).ready()
    assert "export failed" in buddy.run("export", "--wait").complained(1)
    if disk.before is not None:
        service.stop().succeeded()
        service = buddy.start("run").ready()
    disk.make_room()
    answer = buddy.run("export", "--wait", "--json").succeeded().json
    assert answer["counts"]["users"] == 3_000
    assert {path.name for path in (disk.directory / "exports").glob("2*")} == {answer["directory"]}
    service.stop().succeeded()


def test_a_disk_that_is_still_full_at_the_start_is_called_full(disk: Disk, place: Place) -> None:
    """SQLite cannot make its shared memory there, and calls that a disk I/O error."""
    if disk.before is not None:
        pytest.skip("needs a small disk of its own, and mounting is not permitted")
    buddy = place(broker=f"embedded:{disk.directory / 'broker'}")
    buddy.run("topics", "create").succeeded()
    with pytest.raises(OSError, match="No space left"):
        (disk.directory / "filling").write_bytes(b"x" * SMALL)
    assert "is full: make room" in buddy.run("topics", "create").complained(STATE)
