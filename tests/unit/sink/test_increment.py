"""Incremental exports: what was delivered, and what brings it to the present.

Applied in their order, base and increments give exactly the full export of the same cut.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.rows_kit import NAMES, match, user, uuid
from tests.unit.sink_kit import (
    KINDS,
    UNWATCHED,
    Change,
    World,
    changes,
    checkin,
    finished,
    read_spooled,
    references,
    selections,
)
from worker.exports.manifest import Cut
from worker.exports.order import order_of
from worker.exports.places.place import Finished
from worker.sink.selection.bookmarks import Bookmarks, FullBecause, Generation
from worker.sink.selection.compare import ComparedRow, Gone, compare, digest_of
from worker.sink.selection.increment import BaseDamagedError, Increment, spool_increment
from worker.sink.selection.plan import Days, Reason, Selection
from worker.sink.store.rocks import after, until
from worker.sink.store.row_store import RowStore
from worker.sink.store.snapshot import DELIVERED

ALL = Selection(KINDS)


class Feed:
    """A world, one bookmark in it, and a downstream that applies what it is given."""

    def __init__(self, directory: Path) -> None:
        self.world = World(directory / "store", NAMES)
        self.bookmarks = Bookmarks(self.world.store)
        self.held: dict[str, dict[bytes, bytes]] = {}
        self.published: dict[str, Finished] = {}
        self._directory = directory
        self._count = 0

    def export(
        self, selection: Selection = ALL, name: str = "feed", *, finish: bool = True
    ) -> tuple[Generation | FullBecause, Increment]:
        """One incremental export; unless `finish`, it fails before it is published."""
        self._count += 1
        export_id = f"e{self._count}"
        room = self._directory / f"room{self._count}"
        room.mkdir()
        snapshot = self.world.store.snapshot()
        base = self.find(name, selection)
        draft = self.bookmarks.begin(name, export_id, selection, Cut())
        mark = base if isinstance(base, Generation) else None
        made = spool_increment(snapshot, selection, room, UNWATCHED, draft, mark)
        snapshot.close()
        if finish:
            self.bookmarks.expect(name, f"hash of {export_id}")
            self.published[export_id] = finished(export_id, name)
        self.bookmarks.reconcile(self.published.get)
        return base, made

    def find(self, name: str = "feed", selection: Selection = ALL) -> Generation | FullBecause:
        """The base of the next export, as what is published says."""
        return self.bookmarks.find(name, selection, reversed(self.published.values()))

    def take(self, base: Generation | FullBecause, made: Increment) -> None:
        """Apply an export as its manifest says: everything anew without a base."""
        rows = read_spooled(made.spooled)
        if not isinstance(base, Generation):
            self.held = {entity: {} for entity in rows}
            assert made.deletions is None
        for deletion in lines(made):
            assert self.held[deletion["entity"]].pop(deletion["key"].encode(), None) is not None
        for entity, some in rows.items():
            for row in some:
                self.held[entity][key_of(entity, row)] = row


def key_of(entity: str, row: bytes) -> bytes:
    names = {"users": "id", "matches": "match_id", "checkins": "checkin_id"}
    return str(json.loads(row)[names.get(entity, "session_id")]).encode()


def lines(made: Increment) -> list[dict[str, str]]:
    if made.deletions is None:
        return []
    return [json.loads(line) for line in made.deletions.path.read_text().splitlines()]


@pytest.fixture
def feed(tmp_path: Path) -> Iterator[Feed]:
    made = Feed(tmp_path)
    yield made
    made.world.store.close()


# --- Comparing ------------------------------------------------------------------------------------

_keys = st.dictionaries(st.binary(max_size=2), st.binary(max_size=2), max_size=12)


@given(_keys, _keys, st.dictionaries(st.binary(max_size=2), st.sampled_from(Reason)))
def test_the_base_with_changes_and_deletions_is_what_belongs(
    before: dict[bytes, bytes], store: dict[bytes, bytes], fates: dict[bytes, Reason]
) -> None:
    current = [(key, row, fates.get(key)) for key, row in sorted(store.items())]
    base = ((key, digest_of(row)) for key, row in sorted(before.items()))
    held = dict(before)
    for one in compare(current, base):
        if isinstance(one, Gone):
            del held[one.key]
            assert one.reason is (fates[one.key] if one.key in store else Reason.DELETED)
        elif one.changed:
            assert held.get(one.key) != one.row
            held[one.key] = one.row
        assert not isinstance(one, ComparedRow) or one.digest == digest_of(one.row)
    assert held == {key: row for key, row in store.items() if key not in fates}


# --- Any history ----------------------------------------------------------------------------------


@given(
    selections() | st.just(ALL),
    st.lists(st.tuples(st.lists(changes(), max_size=25), st.booleans()), min_size=1, max_size=6),
)
def test_base_and_increments_are_the_full_export_of_the_same_cut(
    selection: Selection, rounds: list[tuple[list[Change], bool]]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        feed = Feed(Path(directory))
        finished = None
        for history, finish in rounds:
            feed.world.apply(history)
            base, made = feed.export(selection, finish=finish)
            full = feed.world.full(selection)
            assert made.totals == {entity: len(rows) for entity, rows in full.items()}
            assert (base.export_id if isinstance(base, Generation) else None) == finished
            check_counts(feed.world, base, made, full)
            if finish:
                finished = list(feed.published)[-1]
                feed.take(base, made)
                held = {entity: dict(sorted(rows.items())) for entity, rows in feed.held.items()}
                assert held == full
        feed.world.store.close()


def check_counts(
    world: World,
    base: Generation | FullBecause,
    made: Increment,
    full: dict[str, dict[bytes, bytes]],
) -> None:
    rows = read_spooled(made.spooled)
    here = {(entity, key_of(entity, row)) for entity, some in rows.items() for row in some}
    assert dict(made.spooled.rows) == {entity: len(some) for entity, some in rows.items()}
    into = {
        (name, id_)
        for entity, some in rows.items()
        for row in some
        for name, id_ in references(entity, row)
        if id_.encode() in full.get(name, {}) and (name, id_.encode()) not in here
    }
    expected = {name: sum(one == name for one, _ in into) for name in ("users", "matches")}
    assert dict(made.into_base) == {name: n for name, n in expected.items() if n}
    if not isinstance(base, Generation):
        assert made.into_base == {}
    counted: dict[str, dict[str, int]] = {}
    for deletion in lines(made):
        entity, key, reason = deletion["entity"], deletion["key"].encode(), deletion["reason"]
        counted.setdefault(entity, {}).setdefault(reason, 0)
        counted[entity][reason] += 1
        row = world.rows[entity].get(key)
        if row is None:
            assert reason == "deleted"
        else:
            assert reason in ("out_of_range", "user_gone")
            assert reason != "user_gone" or world.lacks_user(entity, row)
    assert {e: dict(reasons) for e, reasons in made.deleted.items()} == counted


# --- One by one -----------------------------------------------------------------------------------


def test_a_story(feed: Feed) -> None:
    feed.world.apply(
        [
            ("users", *user(1)),
            ("users", *user(2)),
            ("matches", *match(11, 1, 2)),
            ("checkins", *checkin(21, 11, "2024-01-03")),
        ]
    )
    base, made = feed.export()
    assert base is FullBecause.NO_BASE
    assert dict(made.spooled.rows) == dict.fromkeys(KINDS, 0) | {
        "users": 2,
        "matches": 1,
        "checkins": 1,
    }

    base, made = feed.export()
    assert isinstance(base, Generation)
    assert base.export_id == "e1"
    assert base.directory == feed.published["e1"].name
    assert set(made.spooled.rows.values()) == {0}
    assert lines(made) == []

    feed.world.apply(
        [
            ("users", *user(1)),
            ("users", *user(3)),
            ("checkins", *checkin(22, 11, "2024-01-03")),
            ("users", user(2)[0], None),
        ]
    )
    base, made = feed.export()
    assert dict(made.spooled.rows) == dict.fromkeys(KINDS, 0) | {"users": 1, "checkins": 1}
    assert lines(made) == [
        {"entity": "matches", "key": uuid(11), "reason": "user_gone"},
        {"entity": "users", "key": uuid(2), "reason": "deleted"},
    ], "those that refer first"
    assert made.into_base == {}, "its match has gone"

    feed.world.apply([("users", *user(2))])
    base, made = feed.export()
    assert dict(made.spooled.rows) == dict.fromkeys(KINDS, 0) | {"users": 1, "matches": 1}
    assert made.into_base == {"users": 1}, "the user who comes back is here, the other is not"
    assert made.spooled.earliest == {
        "users": "2024-01-15",
        "matches": "2024-02-01",
        "skill_sessions": None,
        "checkins": None,
    }


def test_a_row_may_leave_the_range(feed: Feed) -> None:
    january = Selection(("checkins", "matches", "users"), Days("2024-01-01", "2024-01-31"))
    feed.world.apply(
        [
            ("users", *user(1, joined_at="2020-01-01T00:00:00Z")),
            ("matches", *match(11, 1, 1)),
            ("checkins", *checkin(21, 11, "2024-01-03")),
        ]
    )
    feed.export(january)
    feed.world.apply([("checkins", *checkin(21, 11, "2024-03-03"))])
    _, made = feed.export(january)
    assert lines(made) == [
        {"entity": "checkins", "key": uuid(21), "reason": "out_of_range"},
        {"entity": "matches", "key": uuid(11), "reason": "out_of_range"},
        {"entity": "users", "key": uuid(1), "reason": "out_of_range"},
    ]


def test_names_do_not_disturb_each_other(feed: Feed) -> None:
    feed.world.apply([("users", *user(1))])
    feed.export(name="a")
    feed.world.apply([("users", *user(2))])
    feed.export(name="b")
    feed.world.apply([("users", *user(3))])
    made = {name: feed.export(name=name)[1].spooled.rows["users"] for name in ("a", "b")}
    assert made == {"a": 2, "b": 1}
    assert feed.bookmarks.names() == ["a", "b"]


@pytest.mark.parametrize(
    "other", [Selection(("users",)), Selection(KINDS, Days("2024-01-01")), Selection(KINDS[1:])]
)
def test_other_options_have_no_base(feed: Feed, other: Selection) -> None:
    feed.world.apply([("users", *user(1))])
    feed.export()
    base, made = feed.export(other)
    assert base is FullBecause.OTHER_OPTIONS
    assert made.deletions is None
    assert isinstance(feed.export(other)[0], Generation), "from now on these are the feed's"


def test_a_failed_export_leaves_the_bookmark_and_nothing_else(feed: Feed) -> None:
    feed.world.apply([("users", *user(n)) for n in (1, 2, 3)])
    feed.export()
    feed.world.apply([("users", *user(4))])
    for _ in range(3):
        base, made = feed.export(finish=False)
        assert isinstance(base, Generation)
        assert (base.export_id, made.spooled.rows["users"]) == ("e1", 1)
    assert delivered(feed.world.store) == 3


def delivered(store: RowStore) -> int:
    with store.database() as db:
        return len(list(db.keys(from_key=DELIVERED, read_opt=until(after(DELIVERED)))))


def test_after_a_crash_the_place_tells_what_counts(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    feed.world.apply([("users", *user(1))])
    feed.export()
    feed.world.apply([("users", *user(2))])
    snapshot = feed.world.store.snapshot()
    for published in (False, True):
        (tmp_path / f"again{published}").mkdir()
        base = feed.find()
        assert isinstance(base, Generation)
        draft = feed.bookmarks.begin("feed", "late", ALL, Cut(accepted={"users": {0: 2}}))
        spool_increment(snapshot, ALL, tmp_path / f"again{published}", UNWATCHED, draft, base)
        feed.bookmarks.expect("feed", "hash of late")
        feed.world.store.close()  # and now the process is gone
        feed.world.store = RowStore(tmp_path / "store", NAMES)
        feed.bookmarks = Bookmarks(feed.world.store)
        snapshot = feed.world.store.snapshot()
        if published:
            feed.published["late"] = finished("late", "feed")
        feed.bookmarks.reconcile(feed.published.get)
        found = feed.find()
        assert isinstance(found, Generation)
        assert found.export_id == ("late" if published else "e1")
        assert delivered(feed.world.store) == sum(found.rows.values()) == (2 if published else 1)
    assert isinstance(found, Generation)
    assert found.cut.accepted == {"users": {0: 2}}
    assert found.base().manifest_sha256 == "hash of late"
    feed.world.store.close()


def test_a_rebuilt_store_says_so_for_ever_or_until_the_next_export(tmp_path: Path) -> None:
    feed = Feed(tmp_path)
    feed.world.apply([("users", *user(1))])
    feed.export()
    feed.world.store.wipe("it was last current 90 h ago")
    assert feed.bookmarks.find("feed", ALL, ()) is FullBecause.STORE_REBUILT
    assert feed.bookmarks.find("other", ALL, ()) is FullBecause.NO_BASE
    feed.world.store.wipe("once more")
    feed.world.store.close()
    feed.world.store = RowStore(tmp_path / "store", NAMES)
    feed.bookmarks = Bookmarks(feed.world.store)
    assert feed.bookmarks.find("feed", ALL, ()) is FullBecause.STORE_REBUILT
    feed.export()
    assert isinstance(feed.find(), Generation)
    feed.world.store.close()


def test_a_store_that_could_not_be_read_may_have_had_any_bookmark(tmp_path: Path) -> None:
    RowStore(tmp_path, NAMES).close()
    (tmp_path / "rows" / "CURRENT").write_bytes(b"garbage")
    store = RowStore(tmp_path, NAMES)
    assert Bookmarks(store).find("any", ALL, ()) is FullBecause.STORE_REBUILT
    store.close()


def test_a_base_that_is_not_whole_is_no_base(feed: Feed, tmp_path: Path) -> None:
    feed.world.apply([("users", *user(n)) for n in (1, 2, 3)])
    feed.export()
    with feed.world.store.database() as db:
        del db[next(iter(db.keys(from_key=DELIVERED)))]
    with pytest.raises(BaseDamagedError):
        feed.export()
    feed.bookmarks.forget("feed")
    feed.bookmarks.reconcile(feed.published.get)
    assert delivered(feed.world.store) == 0
    assert feed.bookmarks.find("feed", ALL, ()) is FullBecause.NO_BASE


# --- Two sinks ------------------------------------------------------------------------------------


def test_an_export_that_another_sink_has_published_is_not_adopted(feed: Feed) -> None:
    feed.world.apply([("users", *user(1))])
    feed.published["e1"] = msgspec.structs.replace(
        finished("e1", "feed"), manifest_sha256="another"
    )
    feed.bookmarks.begin("feed", "e1", ALL, Cut()).seal({})
    feed.bookmarks.expect("feed", "hash of e1")
    feed.bookmarks.reconcile(feed.published.get)
    assert feed.bookmarks.names() == []
    theirs = [feed.published["e1"]]
    assert feed.bookmarks.find("feed", ALL, theirs) is FullBecause.OTHER_SINK


def test_a_newer_export_of_another_sink_means_a_full_one(feed: Feed) -> None:
    feed.world.apply([("users", *user(1))])
    feed.export()
    mine = feed.published["e1"]
    others = [finished("e9", "other", 9), finished("e8", "feed", 8), mine]
    assert feed.bookmarks.find("feed", ALL, others) is FullBecause.OTHER_SINK
    assert isinstance(feed.bookmarks.find("feed", ALL, [others[0], mine]), Generation)
    older = [mine, finished("e0", "feed")]
    assert isinstance(feed.bookmarks.find("feed", ALL, older), Generation)
    assert feed.bookmarks.find("other", ALL, others) is FullBecause.OTHER_SINK
    assert feed.bookmarks.find("third", ALL, others) is FullBecause.NO_BASE


def test_only_what_is_newer_than_the_bookmark_is_read(feed: Feed) -> None:
    feed.export()
    newest_first = iter([finished("e9", "other", 9), feed.published["e1"], finished("e0", "feed")])
    feed.bookmarks.find("feed", ALL, newest_first)
    assert [export.name[-2:] for export in newest_first] == ["e0"]


def test_a_stamp_that_ran_ahead_hides_no_export_of_another_sink(feed: Feed) -> None:
    feed.world.apply([("users", *user(1))])
    feed.export()
    later = finished("e8", "feed", 8)
    ahead = feed.published["e1"]
    name = f"20991122T103000Z_{ahead.manifest.export_id}"
    feed.published["e1"] = msgspec.structs.replace(ahead, name=name)
    feed.bookmarks.begin("feed", "e1", ALL, Cut()).seal({})
    feed.bookmarks.expect("feed", "hash of e1")
    feed.bookmarks.reconcile(feed.published.get)
    marked = msgspec.structs.replace(feed.published["e1"], order=order_of(name, [later.order[0]]))
    assert marked.order < later.order
    assert feed.bookmarks.find("feed", ALL, [later, marked]) is FullBecause.OTHER_SINK
    assert isinstance(feed.bookmarks.find("feed", ALL, [marked]), Generation)
    assert feed.bookmarks.find("feed", ALL, []) is FullBecause.BASE_GONE


def test_of_a_bookmark_whose_export_was_removed_the_time_says_what_is_newer(feed: Feed) -> None:
    feed.world.apply([("users", *user(1))])
    feed.export()
    newer, older = finished("e8", "feed", 8), finished("e7", "feed", 0)
    assert feed.bookmarks.find("feed", ALL, [newer, older]) is FullBecause.OTHER_SINK
    assert feed.bookmarks.find("feed", ALL, [older]) is FullBecause.BASE_GONE
