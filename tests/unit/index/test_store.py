"""The index on disk: killed, damaged, outgrown, shared, out of space."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lmdb
import msgspec
import pytest
from structlog.testing import capture_logs

from tests.paths import ROOT
from tests.unit.files_kit import improper
from tests.unit.index.store_kit import FIRST, TOPIC, filled, row, user
from worker.accepted import Foreign
from worker.core.known import address_digest
from worker.errors import StateError, StateLost
from worker.index import environment
from worker.index.store import IndexStore
from worker.index.tails import Tail, mark_of
from worker.stream import Message, Partition

pytestmark = pytest.mark.thorough


@pytest.fixture
def store(directory: Path) -> Iterator[IndexStore]:
    store = IndexStore(directory, map_size=256 * 1024)
    store.open()
    yield store
    store.close()


# --- killed ---------------------------------------------------------------------------------------

# State at position p = 50 n: the users 50 (n - 3) to 50 n, so rows and position can be compared.
WRITER = """
import sys
from pathlib import Path
from tests.unit.index.store_kit import FIRST, row
import msgspec
from worker.index.store import IndexStore
store = IndexStore(Path(sys.argv[1]), map_size=64 * 1024)
store.open()
for n in range(1_000_000):
    new = [row(k) for k in range(50 * n, 50 * n + 50)]
    gone = [msgspec.structs.replace(row(k), value=None) for k in range(50 * n - 150, 50 * n - 100)]
    store.apply(new + gone, {FIRST: 50 * n + 50})
    print(n, flush=True)
"""


@pytest.mark.parametrize("applied", [1, 20, 21, 22, 300])
def test_killed_at_any_moment_rows_and_position_agree(directory: Path, applied: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(directory)],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for _ in range(applied):
            assert process.stdout.readline()
        process.send_signal(signal.SIGKILL)  # it is in the middle of the next ones

    store = IndexStore(directory)
    with capture_logs() as logs:
        store.open()
    assert logs == [], "a killed process is no reason to rebuild"
    position = store.positions()[FIRST]
    assert position >= 50 * applied
    assert position % 50 == 0
    live = range(max(0, position - 150), position)
    assert store.counts() == {"users": len(live), "matches": 0, "addresses": len(live)}
    assert all(store.user(user(n).bytes) for n in live)
    assert all(store.taken(address_digest(f"{n}@x.org"), bytes(16)) for n in live)
    store.close()


# --- not to be trusted ----------------------------------------------------------------------------


def garbage(directory: Path) -> None:
    (directory / "data.mdb").write_bytes(b"not LMDB at all" * 10_000)


def shorter_than_a_page(directory: Path) -> None:
    os.truncate(directory / "data.mdb", 100)


def cut_short(directory: Path) -> None:
    os.truncate(directory / "data.mdb", 5 * 4096)


def all_zero(directory: Path) -> None:
    size = (directory / "data.mdb").stat().st_size
    (directory / "data.mdb").write_bytes(bytes(size))


def other_version(directory: Path) -> None:
    with lmdb.open(str(directory), max_dbs=9) as env, env.begin(write=True) as txn:
        txn.put(b"version", b"99", db=env.open_db(b"about", txn))


def no_version(directory: Path) -> None:
    with lmdb.open(str(directory), max_dbs=9) as env, env.begin(write=True) as txn:
        txn.delete(b"version", db=env.open_db(b"about", txn))


def addresses_missing(directory: Path) -> None:
    with lmdb.open(str(directory), max_dbs=9) as env, env.begin(write=True) as txn:
        txn.drop(env.open_db(b"addresses", txn, dupsort=True), delete=False)


def matches_missing(directory: Path) -> None:
    with lmdb.open(str(directory), max_dbs=9) as env, env.begin(write=True) as txn:
        txn.drop(env.open_db(b"matches", txn))


def nonsense_time(directory: Path) -> None:
    with lmdb.open(str(directory), max_dbs=9) as env, env.begin(write=True) as txn:
        txn.put(b"last_current", b"yesterday", db=env.open_db(b"about", txn))


def nonsense_position(directory: Path) -> None:
    with lmdb.open(str(directory), max_dbs=9) as env, env.begin(write=True) as txn:
        txn.put(b"topic", b"1", db=env.open_db(b"positions", txn))


def other_tree(directory: Path) -> None:
    with lmdb.open(str(directory), max_dbs=9) as env:
        with env.begin(write=True) as txn:
            txn.drop(env.open_db(b"addresses", txn, dupsort=True))
        with env.begin(write=True) as txn:
            env.open_db(b"addresses", txn)


def another_boot(directory: Path) -> None:
    (directory / "unflushed").write_text("an earlier boot")


def torn_mark(directory: Path) -> None:
    (directory / "unflushed").write_text("")


def found_damaged(directory: Path) -> None:
    (directory / "unflushed").write_text("damaged")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (garbage, "damaged"),
        (shorter_than_a_page, "damaged"),
        (cut_short, "cut short"),
        (all_zero, "damaged"),
        (other_version, "version 99"),
        (no_version, "version unknown"),
        (addresses_missing, "users and addresses contradict each other"),
        (matches_missing, "mdb_dbi_open"),
        (nonsense_time, "damaged"),
        (nonsense_position, "damaged"),
        (other_tree, "damaged"),
        (another_boot, "system stopped"),
        (torn_mark, "system stopped"),
        (found_damaged, "damaged"),
    ],
)
def test_what_cannot_be_trusted_is_wiped(
    directory: Path, harm: Callable[[Path], None], words: str
) -> None:
    filled(directory)
    harm(directory)
    (directory / "checksum").unlink()  # as after a kill; see below for what it finds
    store = IndexStore(directory)
    with capture_logs() as logs:
        store.open()
    assert [log["event"] for log in logs] == ["state_rebuild"]
    assert words in logs[0]["reason"]
    assert store.counts() == {"users": 0, "matches": 0, "addresses": 0}
    assert store.positions() == {}
    assert store.last_current() is None
    store.apply([row(1)], {FIRST: 2})
    store.close()

    with capture_logs() as logs:
        store.open()
    assert logs == []
    assert store.user(user(1).bytes)
    store.close()


@pytest.mark.parametrize("name", ["unflushed", "checksum", "data.mdb"])
def test_a_pipe_in_its_files_is_told_and_not_waited_for(directory: Path, name: str) -> None:
    filled(directory)
    (directory / name).unlink(missing_ok=True)
    improper(directory / name, "pipe")
    with pytest.raises(StateError, match="it is no regular file"):
        IndexStore(directory).open()


def test_damage_found_at_work_is_one_line_and_mended_by_a_restart(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(directory)
    store = IndexStore(directory)
    store.open()

    def fail(*args: object) -> bytes:
        raise lmdb.CorruptedError("mdb_get")

    monkeypatch.setattr(store, "_get", fail)
    with pytest.raises(StateLost, match=r"is damaged .*: it is rebuilt"):
        store.user(bytes(16))
    store.close()
    monkeypatch.undo()
    store.open()
    assert store.positions() == {}
    store.close()


def test_without_the_name_of_the_boot_it_is_flushed_instead(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.index.directory._BOOT", directory / "nowhere")
    filled(directory)
    store = IndexStore(directory)
    store.open()
    assert not (directory / "unflushed").exists()
    assert store.positions() == {FIRST: 1_000}
    store.close()


def test_without_preallocation_it_is_written_by_call(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "_WRITEMAP", False)
    store = IndexStore(directory, map_size=64 * 1024)
    store.open()
    store.apply([row(n) for n in range(5_000)], {FIRST: 5_000})
    store.close()
    with capture_logs() as logs:
        store.open()
    assert logs == []
    assert store.counts()["users"] == 5_000
    store.close()


def test_clear_forgets_everything_and_says_why(directory: Path) -> None:
    filled(directory)
    store = IndexStore(directory)
    store.open()
    with capture_logs() as logs:
        store.clear("its topic is a new one")
    assert logs[0]["reason"] == "its topic is a new one"
    assert (store.positions(), store.last_current()) == ({}, None)
    assert not store.user(user(1).bytes)
    assert store.apply([row(1)], {FIRST: 2}).users == [user(1).bytes]
    store.close()


# --- held, grown, out of space ----------------------------------------------------------------


def test_a_second_holder_gets_one_clear_line(store: IndexStore, directory: Path) -> None:
    with pytest.raises(StateError, match="in use by another process") as caught:
        IndexStore(directory).open()
    assert "\n" not in str(caught.value)
    assert store.counts()["users"] == 0


def test_it_grows_in_the_middle_of_a_batch(store: IndexStore, directory: Path) -> None:
    before = (directory / "data.mdb").stat().st_size
    for first in range(0, 20_000, 5_000):
        learned = store.apply([row(n) for n in range(first, first + 5_000)], {FIRST: first + 5_000})
        assert len(learned.users) == 5_000
    assert (directory / "data.mdb").stat().st_size > 4 * before
    assert store.counts() == {"users": 20_000, "matches": 0, "addresses": 20_000}
    assert all(store.user(user(n).bytes) for n in range(20_000))


def test_a_full_disk_is_one_line_and_loses_nothing(store: IndexStore, directory: Path) -> None:
    store.apply([row(1)], {FIRST: 2})
    # The file grows once, and cannot grow again.
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3 * 512 * 1024, hard))
    try:
        with pytest.raises(StateError, match=r"the disk is full .*free some space") as caught:
            store.apply([row(n) for n in range(10_000)], {FIRST: 10_000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    assert store.positions() == {FIRST: 2}
    assert store.counts()["users"] == 1
    # Space was made: it goes on.
    store.apply([row(n) for n in range(10_000)], {FIRST: 10_000})
    assert store.counts()["users"] == 10_000


def test_a_disk_full_from_the_start_is_one_line(directory: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, hard))
    try:
        with pytest.raises(StateError) as caught:
            IndexStore(directory).open()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    store = IndexStore(directory)
    store.open()
    store.close()


def test_the_file_of_locks_has_its_blocks_before_lmdb_maps_it(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without them a full disk ends the process by SIGBUS, inside `lmdb.open`.
    blocks = 0
    opening = lmdb.open

    def look(*arguments: Any, **options: Any) -> lmdb.Environment:
        nonlocal blocks
        before = (directory / "lock.mdb").stat()
        env = opening(*arguments, **options)
        assert (directory / "lock.mdb").stat().st_size == before.st_size
        blocks = before.st_blocks
        return env

    monkeypatch.setattr(lmdb, "open", look)
    store = IndexStore(directory)
    store.open()
    store.close()
    assert blocks * 512 >= (directory / "lock.mdb").stat().st_size > 0


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StateError, match="cannot be read or written") as caught:
        IndexStore(tmp_path / "file" / "index").open()
    assert "\n" not in str(caught.value)


def test_files_are_for_owner_and_group(directory: Path) -> None:
    umask = os.umask(0)
    try:
        store = IndexStore(directory)
        store.open()
        modes = {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}
        store.close()
    finally:
        os.umask(umask)
    assert directory.stat().st_mode & 0o777 == 0o750
    assert set(modes) == {"data.mdb", "lock.mdb", "owner.lock", "unflushed"}
    assert set(modes.values()) == {0o640}


# --- time and counting ----------------------------------------------------------------------------


def test_the_time_is_saved_every_few_seconds_and_at_the_end(directory: Path) -> None:
    store = IndexStore(directory)
    store.open()
    assert store.last_current() is None
    for now, saved in [(10_000, 10_000), (11_000, 10_000), (15_000, 15_000), (19_999, 15_000)]:
        store.stamp(now)
        assert store.last_current() == now
        assert store._last_saved == saved
    store.close()
    store.open()
    assert store.last_current() == 19_999
    assert store.saved().last_current == 19_999
    store.close()


def test_foreign_rows_are_counted_for_good_and_named_by_coordinates_only(
    store: IndexStore, directory: Path
) -> None:
    bad = Message(TOPIC, 0, 7, 0, str(user(7)).encode(), b'{"mail":"secret@x.org"}')
    with capture_logs() as logs:
        store.apply([row(6), bad, Message(TOPIC, 0, 8, 0, b"no id", None), row(9)], {FIRST: 10})
    assert store.foreign == store.refused() == 2
    assert store.counts()["users"] == 2
    told = {"event": "foreign_row", "log_level": "error", "reader": "index", "count": 1}
    assert logs == [
        told | {"topic": TOPIC, "partition": 0, "offset": 7, "reason": str(Foreign.ROW)},
        told | {"topic": TOPIC, "partition": 0, "offset": 8, "reason": str(Foreign.KEY)},
    ]
    store.close()
    store.open()
    assert store.refused() == 2


def test_many_foreign_rows_are_few_lines(store: IndexStore) -> None:
    bad = [Message(TOPIC, 0, n, 0, None, None) for n in range(5_000)]
    with capture_logs() as logs:
        store.apply(bad, {FIRST: 5_000})
        store.close()
    assert [entry["count"] for entry in logs] == [1] * 10 + [4_990]
    store.open()


# --- identities -----------------------------------------------------------------------------------


def test_identities_are_kept_with_the_positions(store: IndexStore, directory: Path) -> None:
    assert store.saved().identities == {}
    store.apply([row(1)], {FIRST: 2}, {TOPIC: "one"})
    store.close()
    store.open()
    assert (store.saved().positions, store.saved().identities) == ({FIRST: 2}, {TOPIC: "one"})
    store.clear("the topic was created anew")
    assert (store.saved().positions, store.saved().identities) == ({}, {})


# --- the messages read last -----------------------------------------------------------------------


def test_the_messages_read_last_go_with_the_positions(store: IndexStore, directory: Path) -> None:
    store.apply([row(1)], {FIRST: 2, Partition(TOPIC, 1): 5})
    store.apply([row(2)], {FIRST: 3, Partition(TOPIC, 1): 5})
    tails = {FIRST: Tail(0, (mark_of(row(1)), mark_of(row(2)))), Partition(TOPIC, 1): Tail(0)}
    assert store.saved().tails == tails
    store.close()
    store.open()
    assert store.saved().tails == tails
    store.clear("because")
    assert store.saved().tails == {}


def test_what_was_read_beside_is_kept_every_few_seconds_with_rows_and_at_the_end(
    store: IndexStore,
) -> None:
    def on_disk() -> int:
        return len(list(store._kept(b"beside/")))

    read = [msgspec.structs.replace(row(n), topic="progress", partition=n) for n in range(1, 5)]
    store.beside(read[:1], "id", 1_000)
    store.beside(read[1:2], "id", 5_999)
    assert on_disk() == 1
    store.beside(read[2:3], "id", 6_000)
    assert on_disk() == 3
    store.beside(read[3:], "id", 6_001)
    store.apply([row(1)], {FIRST: 2})
    assert on_disk() == 4
    store.beside([msgspec.structs.replace(read[0], offset=9)], "id", 6_002)
    kept = store.saved().beside
    assert kept[Partition("progress", 1)].position == 10
    store.close()
    store.open()
    assert store.saved().beside == kept
    store.clear("because")
    assert store.saved().beside == {}


def test_an_index_of_a_release_that_kept_none_gains_them_with_the_next_rows(
    store: IndexStore,
) -> None:
    store.apply([row(1)], {FIRST: 2})
    store._transact(
        lambda txn: txn.delete(b"tail/" + TOPIC.encode() + b"/0", b"", store._trees.about)
    )
    store._look()
    assert (store.saved().positions, store.saved().tails) == ({FIRST: 2}, {})
    store.apply([row(2)], {FIRST: 3})
    assert store.saved().tails == {FIRST: Tail(2, (mark_of(row(2)),))}


def test_a_tail_that_is_none_is_damage(store: IndexStore) -> None:
    key = b"tail/" + TOPIC.encode() + b"/0"
    store._transact(lambda txn: txn.put(key, b"?", db=store._trees.about))
    store.close()
    with capture_logs() as logs:
        store.open()
    assert ["length of a tail" in log["reason"] for log in logs] == [True]


def test_noted_tombstones_are_kept_until_the_index_is_emptied(
    store: IndexStore, directory: Path
) -> None:
    other = Partition(TOPIC, 1)
    store.note_tombstones({FIRST: 7, other: 3})
    store.note_tombstones({FIRST: 9})  # an older copy of the log was put back: `other` has none
    store.close()
    again = IndexStore(directory)
    again.open()
    assert {p: to for p, to in again.saved().tombstones.items() if to} == {FIRST: 9}
    again.clear("a test")
    assert again.saved().tombstones == {}
    again.close()
    store.open()
