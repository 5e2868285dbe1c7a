"""The file of the desk's store: any wrong byte is found, and damage heals."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.unit.desk_kit import NAMES, apply, counts, rejection
from worker.desk.database import FILE_NAME
from worker.desk.expiry import expire
from worker.desk.store import RejectionStore
from worker.errors import StateError
from worker.stream import Partition


def filled(directory: Path) -> Path:
    """A store that was closed in order; its file."""
    opened = RejectionStore(directory, NAMES)
    apply(opened, *(rejection(offset, key=str(offset)) for offset in range(50)))
    opened.close()
    return directory / FILE_NAME


@given(data=st.data())
def test_any_wrong_byte_is_found(data: st.DataObject, tmp_path_factory: Any) -> None:
    directory = tmp_path_factory.mktemp("desk") / "desk"
    file = filled(directory)
    content = bytearray(file.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
    file.write_bytes(content)
    with capture_logs() as logs:
        opened = RejectionStore(directory, NAMES)
        assert (counts(opened), opened.saved().positions) == ((0, 0), {})
        opened.close()
    (entry,) = logs
    assert (entry["event"], entry["reason"]) == ("desk_rebuilt", "its checksum is another")


def test_a_look_that_changes_nothing_leaves_the_checksum(tmp_path: Path) -> None:
    file = filled(tmp_path / "desk")
    before = file.with_name("checksum").stat().st_mtime_ns
    opened = RejectionStore(tmp_path / "desk", NAMES)
    assert counts(opened) == (50, 50)
    expire(opened.database, {Partition(NAMES.rejected("users"), 0): 0})
    opened.close()
    assert file.with_name("checksum").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    "damage",
    ["DROP TABLE counts", "UPDATE partitions SET topic = CAST(x'ff' AS TEXT)"],
)
def test_damage_under_a_killed_process_is_one_line_and_heals(tmp_path: Path, damage: str) -> None:
    """Without a checksum SQLite's own check looks at the file, and not at what rows mean."""
    file = filled(tmp_path / "desk")
    file.with_name("checksum").unlink()
    with sqlite3.connect(file) as db:
        db.execute(damage)
    opened = RejectionStore(tmp_path / "desk", NAMES)
    with pytest.raises(StateError, match="is damaged"):
        _ = counts(opened), opened.saved()
    opened.close()
    with capture_logs() as logs:
        again = RejectionStore(tmp_path / "desk", NAMES)
        assert counts(again) == (0, 0)
        again.close()
    assert [entry["event"] for entry in logs] == ["desk_rebuilt"]


def replace(file: Path) -> None:
    other = file.with_name("other")
    other.write_bytes(file.read_bytes())
    other.replace(file)


IN_USE = {
    "emptied": ("", lambda file: os.truncate(file, 0)),
    "cut to a page": ("", lambda file: os.truncate(file, 4096)),
    "replaced": ("", replace),
    "removed": ("", Path.unlink),
    "-wal removed": ("-wal", Path.unlink),
    "-wal replaced": ("-wal", replace),
    "-shm removed": ("-shm", Path.unlink),
}


@pytest.mark.parametrize("found_by", ["a pass", "a commit", "the close"])
@pytest.mark.parametrize(("suffix", "harm"), IN_USE.values(), ids=IN_USE)
def test_a_file_that_is_cut_short_or_replaced_in_use_is_noticed(
    tmp_path: Path, suffix: str, harm: Callable[[Path], None], found_by: str
) -> None:
    """SQLite has its pages in memory and notices nothing. Others would read something else."""
    filled(tmp_path / "desk")
    opened = RejectionStore(tmp_path / "desk", NAMES)
    apply(opened, rejection(50, key="50"))
    opened.database.check_in_place()
    harm(tmp_path / "desk" / f"{FILE_NAME}{suffix}")
    if found_by == "a pass":
        with pytest.raises(StateError, match="while it was in use"):
            opened.database.check_in_place()
    elif found_by == "a commit":
        with pytest.raises(StateError, match="while it was in use"):
            apply(opened, rejection(51, key="51"))
    opened.close()
    with capture_logs() as logs:
        again = RejectionStore(tmp_path / "desk", NAMES)
        assert (counts(again), again.saved().positions) == ((0, 0), {})
        again.close()
    (line,) = logs
    assert line["event"] == "desk_rebuilt"
    assert "removed, replaced or cut short in use" in line["reason"]


def test_the_file_is_for_owner_and_group(tmp_path: Path) -> None:
    assert filled(tmp_path / "desk").stat().st_mode & 0o777 == 0o640


def test_a_close_waits_for_a_thread_that_still_writes(tmp_path: Path) -> None:
    """A command that is interrupted is cancelled, and its thread goes on for a moment."""
    opened = RejectionStore(tmp_path / "desk", NAMES)
    began, may_end = threading.Event(), threading.Event()

    def write() -> None:
        with opened.database.guard(), opened.database.transaction():
            began.set()
            assert may_end.wait(30)
            opened.database.execute("INSERT INTO facts VALUES ('x', 'y')")

    writing = threading.Thread(target=write)
    closing = threading.Thread(target=opened.close)
    writing.start()
    assert began.wait(30)
    closing.start()
    may_end.set()
    writing.join(30)
    closing.join(30)
    again = RejectionStore(tmp_path / "desk", NAMES)
    assert again.database.rows("SELECT value FROM facts WHERE name = 'x'") == [("y",)]
    again.close()


def test_a_store_that_is_closed_beside_a_reader_is_not_sealed(tmp_path: Path) -> None:
    """The reader's end changes the file: the checksum would be that of another one."""
    opened = RejectionStore(tmp_path / "desk", NAMES)
    apply(opened, rejection(0))
    reader = sqlite3.connect(tmp_path / "desk" / FILE_NAME, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM rejections").fetchone()
    apply(opened, rejection(1, key="2"))
    opened.database.execute("PRAGMA busy_timeout = 1")
    opened.close()
    reader.execute("COMMIT")
    reader.close()
    with capture_logs() as logs:
        again = RejectionStore(tmp_path / "desk", NAMES)
        assert counts(again) == (2, 2)
        again.close()
    assert logs == []


@pytest.mark.parametrize("suffix", ["-wal", "-shm"])
def test_a_link_beside_the_file_is_named(tmp_path: Path, suffix: str) -> None:
    link = Path(f"{filled(tmp_path / 'desk')}{suffix}")
    link.symlink_to(tmp_path / "nowhere")
    with pytest.raises(StateError, match=rf"^{link} is a symbolic link, which is never followed"):
        RejectionStore(tmp_path / "desk", NAMES)
    assert not (tmp_path / "nowhere").exists()
