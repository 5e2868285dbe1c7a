"""The sink's store after its files were changed: it works, or is rebuilt in one line of the log."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path
from unittest.mock import Mock

import pytest
from structlog.testing import capture_logs

from tests.unit.rows_kit import NAMES, message, user
from worker.errors import StateError, StateLost
from worker.exports.manifest import Cut
from worker.index.tails import Tail, mark_of
from worker.sink.selection.bookmarks import Bookmarks
from worker.sink.selection.plan import Selection
from worker.sink.store import rocks
from worker.sink.store.positions import partition_key
from worker.sink.store.row_store import RowStore
from worker.stream import Partition

pytestmark = pytest.mark.thorough

USERS, OTHER = (Partition(NAMES.accepted("users"), number) for number in range(2))
COUNT = 300
ROWS = [user(n, location="x" * 100) for n in range(COUNT)]


def fill(store: RowStore) -> None:
    """Read what is missing, as the consumer does."""
    start = store.positions().get(USERS, 0)
    rows = [message("users", n, *ROWS[n]) for n in range(start, COUNT)]
    store.apply(rows, {USERS: COUNT}, {USERS.topic: "one"})


def content(store: RowStore) -> list[bytes]:
    snapshot = store.snapshot()
    try:
        return [row for block in snapshot.blocks("users") for row in block]
    finally:
        snapshot.close()


def flip(path: Path, chance: random.Random) -> None:
    held = bytearray(path.read_bytes())
    held[chance.randrange(len(held))] ^= 1 << chance.randrange(8)
    path.write_bytes(held)


def cut(path: Path, chance: random.Random) -> None:
    os.truncate(path, int(path.stat().st_size * chance.random()))


def remove(path: Path, _: random.Random) -> None:
    path.unlink()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store that was closed: a table file, and a log of what came later."""
    directory = tmp_path_factory.mktemp("whole") / "store"
    store = RowStore(directory, NAMES)
    store.apply([message("users", n, *ROWS[n]) for n in range(200)], {USERS: 200})
    assert store._db is not None
    store._db.flush(wait=True)
    fill(store)
    store.close()
    return directory


@pytest.mark.parametrize("harm", [flip, cut, remove])
def test_whatever_happens_to_a_file_the_rows_are_right_in_the_end(
    tmp_path: Path, whole: Path, harm: object
) -> None:
    chance = random.Random(4)
    names = [p.name for p in (whole / "rows").iterdir() if p.is_file() and p.stat().st_size]
    for name in sorted(names) + [n for n in sorted(names) if n.endswith(".sst")] * 3:
        directory = tmp_path / "store"
        shutil.copytree(whole, directory)
        harm(directory / "rows" / name, chance)  # type: ignore[operator]
        with capture_logs() as logs:
            store = RowStore(directory, NAMES)
            try:
                fill(store)
                found = content(store)
            except StateLost:
                store.wipe(str(store.damaged))
                fill(store)
                found = content(store)
            store.close()
        assert found == [row for _, row in ROWS]
        assert [entry["event"] for entry in logs] in ([], ["sink_store_rebuilt"])
        assert not logs or "is damaged" in logs[0]["reason"]
        shutil.rmtree(directory)


def test_a_store_whose_tables_are_left_alone_is_not_taken_for_a_new_one(
    tmp_path: Path, whole: Path
) -> None:
    shutil.copytree(whole, tmp_path / "store")
    (tmp_path / "store" / "rows" / "CURRENT").unlink()
    with capture_logs() as logs:
        store = RowStore(tmp_path / "store", NAMES)
    assert "CURRENT is missing" in logs[0]["reason"]
    assert store.lost is not None
    assert store.lost.names is None, "which bookmarks there were is not known"
    store.close()


def test_a_snapshot_that_finds_damage_tells_the_store(tmp_path: Path) -> None:
    store = RowStore(tmp_path, NAMES)
    fill(store)
    assert store._db is not None
    del store._db[b"r\x00" + ROWS[7][0]]
    snapshot = store.snapshot()
    with pytest.raises(StateLost, match=f"{COUNT - 1} of {COUNT} users were found"):
        list(snapshot.blocks("users"))
    assert store.damaged is not None
    with capture_logs() as logs:
        store.wipe(store.damaged)
    assert [entry["event"] for entry in logs] == ["sink_store_rebuilt"]
    assert store.damaged is None
    assert store.saved().positions == {}
    with pytest.raises(StateLost):  # what was taken before stays as it was
        list(snapshot.blocks("users"))
    snapshot.close()
    store.close()


def test_an_incremental_export_in_the_making_ends_with_the_store(tmp_path: Path) -> None:
    store = RowStore(tmp_path, NAMES)
    bookmarks = Bookmarks(store)
    draft = bookmarks.begin("feed", "id", Selection(("users",)), Cut({}, {}))
    store.wipe("a topic was created anew")
    with pytest.raises(StateLost, match="begin anew"):
        draft.note("users", [(b"k", b"d")])
    with pytest.raises(StateLost, match="begin anew"):
        draft.seal({"users": 1})
    with pytest.raises(StateLost, match="begin anew"):
        bookmarks.expect("feed", "hash")
    store.close()


def test_a_store_that_cannot_be_emptied_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise StateLost("d is damaged (x): it is rebuilt")

    monkeypatch.setattr(rocks, "open_database", broken)
    with pytest.raises(StateError, match="that does not help: look at its disk") as caught:
        RowStore(tmp_path, NAMES)
    assert not isinstance(caught.value, StateLost)


@pytest.mark.parametrize(
    ("text", "lost"),
    [
        ("Corruption: block checksum mismatch: x", True),
        ("IO error: No such file or directory: While open a file for random read: x", True),
        ("IO error: No space left on device: x", False),
        ("IO error: Permission denied: x", False),
    ],
)
def test_damage_is_told_from_a_full_disk(tmp_path: Path, text: str, *, lost: bool) -> None:
    with pytest.raises(StateError) as caught, rocks.guard(tmp_path):
        raise Exception(text)  # noqa: TRY002 -- as rocksdict does
    assert isinstance(caught.value, StateLost) is lost
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("reason", "lost"), [("Permission denied", False), ("No space left", False), ("EOF", True)]
)
def test_a_store_whose_files_may_not_be_read_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str, *, lost: bool
) -> None:
    text = f"IO error: While opening a file for sequentially reading: CURRENT: {reason}"
    monkeypatch.setattr(rocks, "Rdict", Mock(side_effect=Exception(text)))
    with pytest.raises(StateError) as caught:
        rocks.open_database(tmp_path)
    assert isinstance(caught.value, StateLost) is lost


def test_the_messages_read_last_go_with_the_positions(tmp_path: Path) -> None:
    store = RowStore(tmp_path, NAMES)
    first, second = (message("users", n, *ROWS[n]) for n in (1, 2))
    store.apply([first], {USERS: 2, OTHER: 5}, {USERS.topic: "one"})
    store.apply([first, second], {USERS: 3, OTHER: 5})
    tails = {USERS: Tail(0, (mark_of(first), mark_of(second))), OTHER: Tail(0)}
    assert store.saved().tails == tails
    store.close()
    store = RowStore(tmp_path, NAMES)
    assert store.saved().tails == tails
    # A release that kept none: they are gained with the next rows.
    with store.database() as db:
        for place in (USERS, OTHER):
            del db[b"t" + partition_key(place)]
    store.close()
    store = RowStore(tmp_path, NAMES)
    assert (store.saved().positions, store.saved().tails) == ({USERS: 3, OTHER: 5}, {})
    third = message("users", 3, *ROWS[3])
    store.apply([third], {USERS: 4, OTHER: 5})
    assert store.saved().tails == {USERS: Tail(3, (mark_of(third),)), OTHER: Tail(5)}
    with store.database() as db:
        db[b"t" + partition_key(USERS)] = b"?"
    store.close()
    store = RowStore(tmp_path, NAMES)
    assert "length of a tail" in (store.rebuilt or "")
    assert store.saved().tails == {}
    store.close()
