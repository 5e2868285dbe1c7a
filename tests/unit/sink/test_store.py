"""The sink's store: what holds whatever batches arrive, and what happens on a bad disk."""

from __future__ import annotations

import random
import re
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.rows_kit import NAMES, event, match, message, milestone, user, uuid
from worker.brokers.partitioner import partition_for
from worker.core.topics import Names
from worker.errors import StateError
from worker.sink.export import check_rooms, clear_spool
from worker.sink.store import opening, rocks
from worker.sink.store.row_store import RowStore
from worker.sink.store.snapshot import ROW_HEADER
from worker.stream import Message, Partition

USERS = Partition(NAMES.accepted("users"), 0)


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[RowStore]:
    held = RowStore(tmp_path, NAMES)
    yield held
    held.close()


def rows(held: RowStore, entity: str) -> list[bytes]:
    snapshot = held.snapshot()
    try:
        return [row for block in snapshot.blocks(entity) for row in block]
    finally:
        snapshot.close()


def test_rows_come_in_the_order_of_their_keys_whatever_the_order_of_arrival(
    opened: RowStore,
) -> None:
    arrivals = [user(n) for n in (3, 1, 2)]
    applied = opened.apply([message("users", i, *a) for i, a in enumerate(arrivals)], {USERS: 7})
    assert applied.changed == 3
    assert rows(opened, "users") == [user(n)[1] for n in (1, 2, 3)]
    assert opened.positions() == {USERS: 7}
    assert opened.counts()["users"] == 3


def test_entities_do_not_mix(opened: RowStore) -> None:
    opened.apply(
        [
            message("users", 0, *user(1)),
            message("matches", 0, *match(1, 1, 1)),
            message("events", 0, *event(1, 1)),
            message("milestones", 0, *milestone(1, 1)),
        ],
        {},
    )
    assert {name: len(rows(opened, name)) for name in ENTITIES} == opened.counts()
    assert rows(opened, "matches") == [match(1, 1, 1)[1]]


def test_an_update_replaces_and_a_deletion_removes(opened: RowStore) -> None:
    key, first = user(1)
    _, second = user(1, first_name="Bob")
    opened.apply([message("users", 0, key, first)], {})
    assert opened.apply([message("users", 1, key, second)], {}).changed == 1
    assert rows(opened, "users") == [second]
    assert opened.apply([message("users", 2, key, None)], {}).deleted == 1
    assert rows(opened, "users") == []
    assert opened.counts()["users"] == 0
    assert opened.apply([message("users", 3, key, None)], {}).repeats == 1
    assert opened.counts()["users"] == 0


def test_an_identical_repeat_changes_nothing_but_the_position(opened: RowStore) -> None:
    key, row = user(1)
    opened.apply([message("users", 0, key, row)], {})
    before = _stored(opened, key)
    applied = opened.apply([message("users", 5, key, row)], {})
    assert (applied.changed, applied.repeats) == (0, 1)
    assert _stored(opened, key) == before
    assert ROW_HEADER.unpack(before[: ROW_HEADER.size]) == (0, 0, 1_000)
    assert opened.positions() == {USERS: 6}


def test_versions_of_a_key_from_two_input_partitions_are_noted(opened: RowStore) -> None:
    """As from a producer that puts keys elsewhere than Kafka's default partitioner does."""
    key, _ = user(1)

    def version(offset: int, source: bytes, value: bytes | None) -> Message:
        plain = message("users", offset, key, value)
        return msgspec.structs.replace(plain, headers=(("buddy-source", source),))

    names = ("Ada", "Bea", "Cleo", "Dora")
    values = [user(1, first_name=name)[1] for name in names]
    one, other = (f"{NAMES.input('users')}/{place}".encode() for place in ("1/7", "2/9"))
    assert opened.apply([version(0, one, values[0]), version(1, one, values[1])], {}).split == ()
    (split,) = opened.apply([version(2, other, values[2])], {}).split
    assert (split.before, split.now, split.message.offset) == (1, 2, 2)
    assert opened.apply([version(3, one, values[2])], {}).split == (), "an identical repeat"
    both = [version(4, other, values[3]), version(5, one, None)]
    assert [s.message.offset for s in opened.apply(both, {}).split] == [5]
    opened.apply([version(6, one, values[0])], {})
    assert len(opened.apply([version(7, other, None)], {}).split) == 1
    assert opened.apply([version(8, b"", values[0]), version(9, b"x/-3/y", None)], {}).split == ()


def _stored(held: RowStore, key: bytes) -> bytes:
    assert held._db is not None
    value = held._db.get(b"r\x00" + key)
    assert isinstance(value, bytes)
    return value


def test_what_is_below_the_position_is_skipped(opened: RowStore) -> None:
    key, row = user(1)
    opened.apply([message("users", 4, key, row)], {})
    applied = opened.apply([message("users", 3, key, None), message("users", 4, *user(2))], {})
    assert applied.skipped == 2
    assert rows(opened, "users") == [row]


def test_positions_never_move_back(opened: RowStore) -> None:
    opened.apply([], {USERS: 9})
    opened.apply([], {USERS: 4})
    assert opened.positions() == {USERS: 9}


def test_unreadable_messages_are_set_aside_with_their_coordinates(opened: RowStore) -> None:
    good, row = user(1)
    applied = opened.apply(
        [
            message("users", 0, good, row),
            message("users", 1, good, b"nonsense"),
            message("users", 2, None, b"\xff", partition=300),
        ],
        {},
    )
    assert [(m.partition, m.offset) for m, _ in applied.refused] == [(0, 1), (300, 2)]
    assert opened.foreign() == {"users": 2}
    assert [(s.partition, s.offset, s.value) for s in opened.set_aside()] == [
        (0, 1, b"nonsense"),
        (300, 2, b"\xff"),
    ]
    assert rows(opened, "users") == [row], "an unreadable update leaves the row as it is"


def test_foreign_messages_that_hide_a_row_are_told(opened: RowStore) -> None:
    """The log is compacted by key: it will keep the foreign message, and drop the row."""
    key, row = user(1)
    other, _ = user(2)
    home = {USERS: 0}
    applied = opened.apply(
        [message("users", 0, key, b"early"), message("users", 1, key, row)], home
    )
    assert (len(applied.refused), applied.hiding) == (1, ()), "a row that follows is safe"
    applied = opened.apply(
        [
            message("users", 2, other, b"nonsense"),
            message("users", 3, key, b"nonsense"),
            message("users", 4, None, b"nonsense"),
        ],
        home,
    )
    assert [(m.partition, m.offset) for m, _ in applied.hiding] == [(0, 3)]
    two = {USERS: 0, USERS._replace(number=1): 0}
    elsewhere = 1 - partition_for(key, 2)
    applied = opened.apply([message("users", 9, key, b"nonsense", partition=elsewhere)], two)
    assert (len(applied.refused), applied.hiding) == (1, ()), "another partition hides nothing"


def test_the_store_is_the_same_after_it_was_closed(tmp_path: Path) -> None:
    held = RowStore(tmp_path, NAMES)
    held.apply([message("users", 0, *user(1)), message("users", 1, b"?", b"?")], {USERS: 5})
    held.mark_current(77)
    held.close()
    held.close()
    again = RowStore(tmp_path, NAMES)
    assert again.rebuilt is None
    assert again.positions() == {USERS: 5}
    assert (again.counts()["users"], again.foreign(), again.last_current) == (
        1,
        {"users": 1},
        77,
    )
    assert rows(again, "users") == [user(1)[1]]
    again.close()


# --- Snapshots ------------------------------------------------------------------------------------


def test_a_snapshot_shows_nothing_of_what_comes_later(opened: RowStore) -> None:
    opened.apply([message("users", n, *user(n)) for n in range(50)], {})
    snapshot = opened.snapshot()
    blocks = snapshot.blocks("users", size=1000)
    first = next(blocks)
    changes = [message("users", 50 + n, user(n)[0], None) for n in range(0, 50, 2)]
    opened.apply([*changes, message("users", 100, *user(99))], {})
    assert first + [r for block in blocks for r in block] == [user(n)[1] for n in range(50)]
    assert snapshot.positions == {USERS: 50}
    assert snapshot.users_of("users", bytes.fromhex(uuid(0).replace("-", ""))) == b""
    snapshot.close()
    assert len(rows(opened, "users")) == 26


def test_blocks_hold_about_as_many_bytes_as_asked_for(opened: RowStore) -> None:
    opened.apply([message("users", n, *user(n)) for n in range(100)], {})
    snapshot = opened.snapshot()
    sizes = [sum(map(len, block)) for block in snapshot.blocks("users", size=2000)]
    snapshot.close()
    assert len(sizes) > 5
    assert all(2000 <= size < 2500 for size in sizes[:-1])


def test_known_ids_follow_the_rows(opened: RowStore) -> None:
    opened.apply([message("users", 0, *user(1)), message("matches", 0, *match(5, 1, 2))], {})
    opened.apply(
        [message("matches", 1, *match(5, 1, 3)), message("users", 1, user(1)[0], None)], {}
    )
    snapshot = opened.snapshot()
    assert snapshot.users_of("users", _id(1)) is None
    assert snapshot.users_of("matches", _id(5)) == _id(1) + _id(3)
    assert snapshot.users_of("matches", _id(1)) is None
    snapshot.close()
    with pytest.raises(StateError, match=r"snapshot .* is closed"):
        snapshot.users_of("users", _id(1))


def _id(n: int) -> bytes:
    return bytes.fromhex(uuid(n).replace("-", ""))


def test_a_scan_that_misses_rows_is_an_error(opened: RowStore) -> None:
    opened.apply([message("users", n, *user(n)) for n in range(3)], {})
    assert opened._db is not None
    del opened._db[b"r\x00" + user(1)[0]]
    with pytest.raises(StateError, match="is damaged"):
        rows(opened, "users")


def test_closing_the_store_closes_its_snapshots_and_frees_the_directory(tmp_path: Path) -> None:
    held = RowStore(tmp_path, NAMES)
    snapshot = held.snapshot()
    held.close()
    with pytest.raises(StateError):
        list(snapshot.blocks("users"))
    RowStore(tmp_path, NAMES).close()
    with pytest.raises(StateError, match="is closed"):
        held.snapshot()


# --- Formats and faults ---------------------------------------------------------------------------


def test_a_store_of_another_format_is_wiped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = RowStore(tmp_path, NAMES)
    held.apply([message("users", 0, *user(1))], {})
    held.close()
    monkeypatch.setattr(opening, "FORMAT", opening.FORMAT + 1)
    with monkeypatch.context():
        again = RowStore(tmp_path, NAMES)
    assert again.rebuilt is not None
    assert (again.positions(), again.counts()["users"]) == ({}, 0)
    again.close()


def test_a_store_of_another_prefix_is_wiped(tmp_path: Path) -> None:
    held = RowStore(tmp_path, NAMES)
    held.apply([message("users", 0, *user(1))], {})
    held.close()
    again = RowStore(tmp_path, Names("other"))
    assert again.rebuilt is not None
    assert again.positions() == {}
    again.close()


@pytest.mark.parametrize("aside", [False, True])
def test_new_columns_wipe_the_store_only_if_rows_had_been_set_aside(
    tmp_path: Path, aside: bool
) -> None:
    held = RowStore(tmp_path, NAMES)
    held.apply([message("users", 0, *user(1))], {})
    if aside:
        held.apply([message("users", 1, user(1)[0], b'{"new_column":1}')], {})
    stamp = msgspec.structs.replace(held._made_for, columns=(("id",),))
    assert held._db is not None
    held._db[b"mformat"] = msgspec.msgpack.encode(stamp)
    held.close()
    again = RowStore(tmp_path, NAMES)
    assert (again.rebuilt is not None) is aside
    assert len(rows(again, "users")) == (0 if aside else 1)
    again.close()
    assert RowStore(tmp_path, NAMES).rebuilt is None


@pytest.mark.parametrize("victim", ["CURRENT", "MANIFEST-*", "OPTIONS-*", "*.log"])
def test_a_damaged_store_is_rebuilt_or_goes_on(tmp_path: Path, victim: str) -> None:
    held = RowStore(tmp_path, NAMES)
    held.apply([message("users", 0, *user(1))], {})
    held.close()
    for path in (tmp_path / "rows").glob(victim):
        path.write_bytes(b"garbage")
    again = RowStore(tmp_path, NAMES)
    assert (again.counts()["users"] == 1) is (again.rebuilt is None)
    assert len(rows(again, "users")) == again.counts()["users"]
    again.close()


def test_a_store_that_was_removed_while_open_is_rebuilt(tmp_path: Path) -> None:
    held = RowStore(tmp_path, NAMES)
    held.apply([message("users", 0, *user(1))], {})
    shutil.rmtree(tmp_path / "rows")
    held.wipe("it was removed")
    assert held.counts()["users"] == 0
    held.apply([message("users", 0, *user(1))], {})
    assert len(rows(held, "users")) == 1
    held.close()


def test_a_second_opening_is_one_clear_line(tmp_path: Path) -> None:
    held = RowStore(tmp_path, NAMES)
    with pytest.raises(StateError, match=r"in use by another sink: stop that one") as raised:
        RowStore(tmp_path, NAMES)
    assert "\n" not in str(raised.value)
    held.close()


def test_a_file_in_the_way_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StateError, match=r"file is in the way of a directory: move it away"):
        RowStore(tmp_path / "file", NAMES)


THEIRS = {"letter.txt", "CURRENT", "000099.sst", "000008.log"}


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A directory of somebody else, with files such as a database has."""
    (tmp_path / "theirs").mkdir()
    for name in THEIRS:
        (tmp_path / "theirs" / name).write_text("precious")
    return tmp_path / "theirs"


def intact(theirs: Path) -> set[str]:
    return {path.name for path in theirs.iterdir() if path.read_bytes() == b"precious"}


@pytest.mark.parametrize("room", ["rows", "spool", "snapshots"])
def test_nothing_is_removed_through_a_link(tmp_path: Path, theirs: Path, room: str) -> None:
    store = tmp_path / "sink"
    store.mkdir()
    (store / room).symlink_to(theirs)
    says = re.escape(f"{store / room} is a symbolic link, which is never followed: remove it")
    clear_spool(store)
    with pytest.raises(StateError, match=says):
        RowStore(store, NAMES) if room == "rows" else check_rooms(store)
    assert intact(theirs) == {path.name for path in theirs.iterdir()} == THEIRS


@pytest.mark.parametrize("name", ["LOCK", "LOG", "000099.log"])
def test_no_file_of_the_database_is_written_through_a_link(tmp_path: Path, name: str) -> None:
    RowStore(tmp_path / "sink", NAMES).close()
    link = tmp_path / "sink" / "rows" / name
    link.unlink(missing_ok=True)
    link.symlink_to(tmp_path / "others")
    with pytest.raises(StateError, match=rf"^{link} is a symbolic link, which is never followed"):
        RowStore(tmp_path / "sink", NAMES)
    assert not (tmp_path / "others").exists()


def test_a_wipe_removes_nothing_through_a_link(tmp_path: Path, theirs: Path) -> None:
    """RocksDB, which was open, has its files under the names of then: it may replace such files."""
    held = RowStore(tmp_path / "sink", NAMES)
    (tmp_path / "sink" / "rows").rename(tmp_path / "moved")
    (tmp_path / "sink" / "rows").symlink_to(theirs)
    with pytest.raises(StateError, match="is a symbolic link, which is never followed"):
        held.wipe("a topic was created anew")
    assert "letter.txt" in intact(theirs)


def test_the_directory_of_the_store_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "other disk").mkdir()
    (tmp_path / "sink").symlink_to(tmp_path / "other disk")
    held = RowStore(tmp_path / "sink", NAMES)
    held.wipe("a topic was created anew")
    held.close()
    assert (tmp_path / "other disk" / "rows").is_dir()


def test_directories_are_for_owner_and_group(tmp_path: Path) -> None:
    held = RowStore(tmp_path / "state" / "sink", NAMES)
    held.close()
    for made in ("sink", "sink/rows"):
        assert (tmp_path / "state" / made).stat().st_mode & 0o007 == 0


def test_a_full_disk_is_one_clear_line_and_nothing_is_half_applied(opened: RowStore) -> None:
    opened.apply([message("users", 0, *user(1))], {})
    noise = random.Random(1)
    big = [user(n, location=noise.randbytes(50_000).hex()) for n in range(2, 6)]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        with pytest.raises(StateError, match="the disk is full: free some space"):
            opened.apply([message("users", n, *b) for n, b in enumerate(big, 1)], {})
        assert opened.positions() == {USERS: 1}
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    opened.close()
    again = RowStore(opened.directory, NAMES)
    assert (again.rebuilt, again.positions(), again.counts()["users"]) == (None, {USERS: 1}, 1)
    assert rows(again, "users") == [user(1)[1]]
    again.close()


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("IO error: No space left on device: /x", "the disk is full"),
        ("IO error: While lock file: /x/LOCK: Resource temporarily unavailable", "another sink"),
        ("IO error: Permission denied", "d cannot be read or written: check its owner and rights"),
        ("IO error: While mkdir: d/snapshots/x.tmp: Permission denied", "d cannot be read"),
        ("strange\nthing", "cannot be used: strange thing"),
    ],
)
def test_errors_of_the_disk_are_one_line(text: str, line: str) -> None:
    said = rocks.in_one_line(Path("d"), Exception(text))
    assert line in said
    assert "\n" not in said


def test_a_missing_right_is_told_of_what_lacks_it(tmp_path: Path) -> None:
    rows = tmp_path / "rows"
    rows.mkdir()
    (rows / "9.sst").touch()
    text = f"IO error: While open a file for {{}}: {rows}/{{}}: Permission denied"
    for file, named in (("9.sst", rows / "9.sst"), ("10.log", rows)):
        said = rocks.in_one_line(tmp_path, Exception(text.format("appending", file)))
        assert said == f"{named} cannot be read or written: check its owner and rights"


# --- Any history ----------------------------------------------------------------------------------


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Message], list[list[Message]]]:
    """A log of two entities over two partitions, and how it is read: in batches, with repeats."""
    log: list[Message] = []
    ends = dict.fromkeys([(e, p) for e in ("users", "milestones") for p in (0, 1)], 0)
    for _ in range(draw(st.integers(0, 40))):
        entity = draw(st.sampled_from(["users", "milestones"]))
        n, version = draw(st.integers(0, 5)), draw(st.integers(0, 2))
        key, value = user(n, first_name=f"v{version}") if entity == "users" else milestone(n + 1, 0)
        what = draw(st.sampled_from(["row", "row", "row", "deletion", "unreadable"]))
        sent = {"row": value, "deletion": None, "unreadable": b"?"}[what]
        partition = n % 2
        offset = ends[entity, partition] + draw(st.integers(0, 2))  # logs have gaps
        ends[entity, partition] = offset + 1
        log.append(message(entity, offset, key, sent, partition))
    batches = []
    start = 0
    while start < len(log):
        end = draw(st.integers(start + 1, len(log)))
        batches.append(log[draw(st.integers(0, start)) : end])
        start = end
    return log, batches


@given(histories())
def test_any_history_in_any_batches_gives_the_latest_rows(
    history: tuple[list[Message], list[list[Message]]],
) -> None:
    log, batches = history
    latest: dict[str, dict[bytes, bytes]] = {name: {} for name in ENTITIES}
    for m in log:
        held = latest[NAMES.entity_of(m.topic)]
        if m.value is None:
            held.pop(m.key or b"", None)
        elif m.value != b"?":
            held[m.key or b""] = m.value
    with tempfile.TemporaryDirectory() as directory:
        opened = RowStore(Path(directory), NAMES)
        for batch in batches:
            opened.apply(batch, {})
        found = {name: rows(opened, name) for name in ENTITIES}
        counted, asides = opened.counts(), sum(opened.foreign().values())
        opened.close()
    assert found == {name: [held[key] for key in sorted(held)] for name, held in latest.items()}
    assert counted == {name: len(held) for name, held in latest.items()}
    assert asides == sum(m.value == b"?" for m in log)


def test_noted_tombstones_are_kept_until_the_store_is_emptied(tmp_path: Path) -> None:
    held = RowStore(tmp_path, NAMES)
    held.note_tombstones({USERS: 7})
    held.note_tombstones({USERS: 9})
    held.close()
    again = RowStore(tmp_path, NAMES)
    assert again.saved().tombstones == {USERS: 9}
    again.wipe("a test")
    assert again.saved().tombstones == {}
    again.close()
