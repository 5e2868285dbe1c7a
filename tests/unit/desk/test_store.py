"""The store of rejections: what it counts, what settles it, and what it survives."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tests.unit.desk_kit import NAMES, START, apply, counts, rejection, settling
from worker.core.topics import Names
from worker.core.violations import Code
from worker.desk import expiry, queries, store
from worker.desk.database import FILE_NAME
from worker.desk.expiry import expire
from worker.desk.queries import Filter
from worker.desk.seen import key_digest
from worker.desk.store import RejectionStore, Replayed
from worker.errors import StateError
from worker.index.tails import Tail
from worker.stream import Partition

MINUTE = 60_000


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[RejectionStore]:
    opened = RejectionStore(tmp_path / "desk", NAMES)
    yield opened
    opened.close()


def test_a_rejection_is_settled_by_a_later_row_of_its_key(desk: RejectionStore) -> None:
    apply(desk, rejection(0, key="1", at=5), rejection(1, key="2", at=5))
    assert counts(desk) == (2, 2)
    apply(desk, settled=(settling("1", at=6, partition=9),))
    assert counts(desk) == (2, 1)
    apply(desk, settled=(settling("2", at=6, deleted=True),))
    states = [one.state for one in queries.listed(desk, Filter(), 9, everything=True)]
    assert states == ["deleted", "accepted"]
    assert queries.listed(desk, Filter(), 9, everything=False) == []


@pytest.mark.parametrize(
    ("at", "partition", "offset", "settles"),
    [
        (4, 1, 9, False),  # before the rejection
        (5, 1, 9, False),  # at the same moment, from another partition: nobody knows
        (6, 1, 0, True),
        (5, 0, 8, True),  # the next record of the same partition, in the same round
        (4, 0, 8, False),  # of an earlier topic of that name: offsets have begun again
        (5, 0, 6, False),
        (6, 0, 6, True),  # `reprocess` has judged an earlier version again
    ],
)
def test_what_comes_after_a_rejection(
    desk: RejectionStore, at: int, partition: int, offset: int, settles: bool
) -> None:
    apply(desk, rejection(0, at=5, source=(0, 7)))
    apply(desk, settled=(settling(at=at, partition=partition, offset=offset),))
    assert counts(desk) == (1, int(not settles))


@pytest.mark.parametrize("ahead", [-3, 0, 3])
@pytest.mark.parametrize(("offset", "settles"), [(6, False), (8, True)])
def test_what_a_round_decides_is_in_the_order_of_its_input(
    desk: RejectionStore, ahead: int, offset: int, settles: bool
) -> None:
    """The broker may append the rows of a transaction before its rejections, or after them."""
    apply(desk, rejection(0, at=10, source=(0, 7), judged=5))
    apply(desk, settled=(settling(at=10 + ahead, offset=offset, judged=5),))
    assert counts(desk) == (1, int(not settles))


def test_keys_of_other_entities_and_rejections_without_a_key_stay_open(
    desk: RejectionStore,
) -> None:
    apply(desk, rejection(0, entity="events"), rejection(0, key=None))
    apply(desk, settled=(settling("1", at=MINUTE),))
    assert counts(desk) == (2, 2)


def test_an_orphan_names_the_rejection_that_caused_it(desk: RejectionStore) -> None:
    wanted = (key_digest("users", "7"), key_digest("users", "1"))
    apply(
        desk,
        rejection(0, key="1"),
        rejection(1, key="1", source=(0, 5)),
        rejection(0, entity="matches", kinds=[(Code.ORPHANED_USER_ID, "mentor_id")], wanted=wanted),
        rejection(1, entity="matches", kinds=[(Code.ORPHANED_USER_ID, "mentor_id")]),
    )
    newest = queries.listed(desk, Filter(entity="matches"), 9, everything=False)
    assert [one.cause for one in newest] == [None, "t.in.users/0/5"]
    found = {(kind.entity, kind.code): c for kind, c in queries.summary(desk, Filter()).kinds}
    assert found["users", "invalid_enum"].consequences == 1
    assert found["matches", "orphaned_user_id"].consequences == 0


def test_old_rejections_go_with_their_counts(desk: RejectionStore) -> None:
    found = [rejection(at, key=str(at), at=at * MINUTE) for at in range(120)]
    partition = found[0].partition
    apply(desk, *found, rejection(0, partition=1))
    apply(desk, settled=(settling("5", at=121 * MINUTE), settling("100", at=121 * MINUTE)))
    assert expire(desk.database, {partition: 60}) == 60
    assert counts(desk) == (61, 60)
    assert counts(desk, since=START + MINUTE, until=START + 60 * MINUTE) == (0, 0)
    assert expire(desk.database, {partition: 60}) == 0
    assert expire(desk.database, {partition: 500}) == 60
    assert counts(desk) == (1, 1)


def test_damage_that_is_found_at_work_is_mended_by_the_next_command(tmp_path: Path) -> None:
    opened = RejectionStore(tmp_path, NAMES)
    apply(opened, rejection(0))
    opened.database.execute("UPDATE partitions SET tail = x'01'")
    with pytest.raises(StateError, match="it is rebuilt"):
        opened.saved()
    opened.close()
    with capture_logs() as logs:
        opened = RejectionStore(tmp_path, NAMES)
    assert [entry["reason"] for entry in logs] == [
        "it was found to be damaged (the length of a tail is wrong)"
    ]
    assert opened.saved().positions == {}
    opened.close()
    opened = RejectionStore(tmp_path, NAMES)
    assert counts(opened) == (0, 0)
    opened.close()


def test_the_oldest_go_where_there_are_too_many(
    desk: RejectionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expiry, "_REMOVED_AT_ONCE", 2)
    apply(desk, *(rejection(n, key=str(n)) for n in range(9)))
    with capture_logs() as logs:
        assert expire(desk.database, {}, most=4) == 5
    assert [(entry["event"], entry["removed"]) for entry in logs] == [("desk_full", 5)]
    assert [one.source for one in queries.listed(desk, Filter(), 9, everything=True)] == [
        f"t.in.users/0/{n}" for n in (8, 7, 6, 5)
    ]
    assert expire(desk.database, {}, most=4) == 0


def test_senders_cannot_make_it_grow_without_end(
    desk: RejectionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_MOST_PRODUCERS", 2)
    monkeypatch.setattr(store, "_MOST_KINDS", 2)
    apply(
        desk,
        *(rejection(n, producer=f"p{n}", kinds=[(Code.WRONG_TYPE, f"f{n}")]) for n in range(9)),
    )
    assert counts(desk, producer=store.OTHERS) == (7, 7)
    assert counts(desk, code=store.OTHERS) == (7, 7)
    assert counts(desk, producer="p8") == (0, 0)


def test_a_failed_call_changes_nothing(
    desk: RejectionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    apply(desk, rejection(0))
    new = rejection(0, producer="new", partition=1)

    def fail(_: object) -> None:
        raise sqlite3.OperationalError("disk I/O error")

    with monkeypatch.context() as patch:
        patch.setattr(desk, "_settle", fail)
        with pytest.raises(StateError, match="disk I/O error"):
            apply(desk, new)
    assert counts(desk) == (1, 1)
    assert new.partition not in desk.saved().positions
    apply(desk, new)
    assert counts(desk, producer="new") == (1, 1)


def test_it_goes_on_where_it_was(tmp_path: Path) -> None:
    partition = Partition(NAMES.rejected("users"), 0)
    for offset in range(3):
        opened = RejectionStore(tmp_path, NAMES)
        assert opened.saved().positions == ({partition: offset} if offset else {})
        opened.apply(
            [rejection(offset, key=str(offset))],
            [],
            {partition: offset + 1},
            {partition.topic: "id"},
            {partition: Tail(offset)},
        )
        opened.close()
    opened = RejectionStore(tmp_path, NAMES)
    saved = opened.saved()
    assert (saved.identities, saved.tails) == ({partition.topic: "id"}, {partition: Tail(2)})
    assert counts(opened) == (3, 3)
    opened.close()


def test_a_second_process_gets_one_clear_line(desk: RejectionStore, tmp_path: Path) -> None:
    assert counts(desk) == (0, 0)
    with pytest.raises(StateError, match="is in use by another process"):
        RejectionStore(tmp_path / "desk", NAMES)


@pytest.mark.parametrize("prefix", ["t", "other"])
def test_a_store_that_cannot_be_used_is_emptied(tmp_path: Path, prefix: str) -> None:
    opened = RejectionStore(tmp_path, NAMES)
    apply(opened, rejection(0))
    opened.close()
    if prefix == "t":
        (tmp_path / FILE_NAME).write_bytes(b"no database" * 1000)
    with capture_logs() as logs:
        opened = RejectionStore(tmp_path, Names(prefix))
    assert [entry["event"] for entry in logs] == ["desk_rebuilt"]
    assert counts(opened) == (0, 0)
    opened.close()


def test_a_wiped_store_is_empty(desk: RejectionStore) -> None:
    apply(desk, rejection(0))
    with capture_logs() as logs:
        desk.wipe("a topic was created anew")
    assert [(entry["event"], entry["reason"]) for entry in logs] == [
        ("desk_rebuilt", "a topic was created anew")
    ]
    assert (counts(desk), desk.saved().positions) == ((0, 0), {})


def test_what_sqlite_refuses_is_one_line(
    desk: RejectionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(desk, "_settle", fail)
    with pytest.raises(StateError, match="cannot be written, the disk is full"):
        apply(desk, rejection(0))


def test_a_summary_of_a_damaged_store_is_one_line(tmp_path: Path) -> None:
    opened = RejectionStore(tmp_path, NAMES)
    apply(opened, rejection(0))
    opened.database.execute("DROP TABLE counts")
    with pytest.raises(StateError, match="no such table: counts"):
        counts(opened)
    opened.close()


def test_over_time_is_of_what_was_chosen(desk: RejectionStore) -> None:
    apply(desk, *(rejection(n, key=str(n % 2), at=n * MINUTE) for n in range(8)))
    span: dict[str, Any] = {"since": START, "until": START + 8 * MINUTE}
    assert queries.over_time(desk, Filter(**span), 4) == [2, 2, 2, 2]
    assert queries.over_time(desk, Filter(entity="users", key="1", **span), 4) == [1, 1, 1, 1]
    assert queries.over_time(desk, Filter(producer="nobody", **span), 4) == [0, 0, 0, 0]


keys = st.sampled_from(["1", "2", "3"])
steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("reject"),
            keys,
            st.integers(0, 200),
            st.sampled_from([Code.INVALID_ENUM, Code.WRONG_TYPE]),
            st.integers(0, 1),
            st.sampled_from(["", "a"]),
        ),
        st.tuples(st.just("settle"), keys, st.integers(0, 200)),
        st.tuples(st.just("expire"), st.integers(0, 200)),
    ),
    max_size=25,
)


@given(steps, st.integers(0, 200), st.integers(0, 200))
def test_counts_are_those_of_the_rejections(
    tmp_path_factory: pytest.TempPathFactory,
    taken: list[tuple[Any, ...]],
    since: int,
    until: int,
) -> None:
    desk = RejectionStore(tmp_path_factory.mktemp("desk"), NAMES)
    there: dict[int, tuple[str, int, Code, int, str, bool]] = {}
    for number, (what, *rest) in enumerate(taken):
        if what == "reject":
            key, at, code, partition, producer = rest
            one = rejection(
                number,
                key=key,
                at=at * MINUTE,
                kinds=[(code, "f")],
                partition=partition,
                source=(9, 0),
                producer=producer,
            )
            apply(desk, one)
            there[number] = (key, at, code, partition, producer, True)
        elif what == "settle":
            key, at = rest
            apply(desk, settled=(settling(key, at=at * MINUTE + 1, partition=7),))
            for n, (k, a, code, partition, producer, open_) in there.items():
                still = open_ and not (k == key and at >= a)
                there[n] = (k, a, code, partition, producer, still)
        else:
            limit = number * rest[0] // 200
            expire(desk.database, {Partition(NAMES.rejected("users"), q): limit for q in range(2)})
            there = {n: one for n, one in there.items() if n >= limit}
    for chosen in (
        Filter(),
        Filter(code="wrong_type"),
        Filter(producer="a"),
        Filter(entity="users", key="2"),
        Filter(since=START + since * MINUTE, until=START + until * MINUTE),
        Filter(since=START + since * MINUTE, producer="", field="f"),
    ):
        expected = [
            open_
            for key, at, code, _, producer, open_ in there.values()
            if chosen.code in (None, code.value)
            and chosen.producer in (None, producer)
            and chosen.key in (None, key)
            and (chosen.since is None or at >= since)
            and (chosen.until is None or at < until)
        ]
        found = queries.summary(desk, chosen)
        assert (found.records, found.open) == (len(expected), sum(expected)), chosen
    desk.close()


def replayed(*offsets: int, key: str | None = "1") -> list[Replayed]:
    digest = None if key is None else key_digest("users", key)
    where = Partition(NAMES.rejected("users"), 0)
    return [Replayed(digest, where, offset, START) for offset in offsets]


@pytest.mark.parametrize("key", ["1", None])
def test_a_replayed_rejection_is_open_no_more(desk: RejectionStore, key: str | None) -> None:
    apply(desk, *(rejection(offset, key=key) for offset in range(4)))
    desk.apply([], [], {}, {}, {}, replayed(1, 2, 9, key=key))
    desk.apply([], [], {}, {}, {}, replayed(2, key=key))
    assert counts(desk) == (4, 2)
    listed = queries.listed(desk, Filter(), 9, everything=True)
    assert [one.state for one in listed] == ["open", "replayed", "replayed", "open"]
    assert [one.coordinate for one in queries.listed(desk, Filter(), 9, everything=False)] == [
        f"{NAMES.rejected('users')}/0/{offset}" for offset in (3, 0)
    ]


@pytest.mark.parametrize("key", ["1", None])
def test_an_audit_of_an_earlier_topic_or_of_another_key_says_nothing(
    desk: RejectionStore, key: str | None
) -> None:
    apply(desk, rejection(0, key=key, at=3_600_000))
    desk.apply([], [], {}, {}, {}, replayed(0, key=key))
    desk.apply([], [], {}, {}, {}, replayed(0, key="2" if key else "1"))
    assert counts(desk) == (1, 1)


def test_of_a_key_only_the_newest_rejection_is_not_outdated(desk: RejectionStore) -> None:
    apply(desk, *(rejection(n, key=key) for n, key in enumerate(["1", "2", "1", None, None])))
    found = queries.candidates(desk, Filter(), ("users",), 0, 9, consequences=False)
    assert [one.superseded for one in found] == [True, False, False, False, False]


@pytest.mark.parametrize("replay_first", [True, False])
def test_replayed_and_accepted_end_alike_in_any_order(
    desk: RejectionStore, replay_first: bool
) -> None:
    apply(desk, rejection(0))
    for is_replay in (replay_first, not replay_first):
        if is_replay:
            desk.apply([], [], {}, {}, {}, replayed(0))
        else:
            apply(desk, settled=(settling(at=1),))
    assert counts(desk) == (1, 0)
    (one,) = queries.listed(desk, Filter(), 9, everything=True)
    assert one.state == "replayed"


def test_candidates_come_in_pages_with_the_orphans_they_caused(desk: RejectionStore) -> None:
    caused = rejection(
        0, entity="matches", kinds=((Code.ORPHANED_USER_ID, "buddy_id"),),
        wanted=(key_digest("users", "1"),), key="m",
    )  # fmt: skip
    other = rejection(1, entity="matches", kinds=((Code.ORPHANED_USER_ID, "buddy_id"),), key="n")
    apply(desk, *(rejection(offset, key=str(offset)) for offset in range(5)), caused, other)
    chosen = Filter(code=Code.INVALID_ENUM)
    first = queries.candidates(desk, chosen, ("users",), 0, 3, consequences=False)
    rest = queries.candidates(desk, chosen, ("users",), first[-1].number, 3, consequences=False)
    assert [one.offset for one in (*first, *rest)] == [0, 1, 2, 3, 4]
    assert queries.candidates(desk, chosen, ("matches",), 0, 9, consequences=False) == []
    (orphan,) = queries.candidates(desk, chosen, ("matches",), 0, 9, consequences=True)
    assert (orphan.partition.topic, orphan.offset) == (NAMES.rejected("matches"), 0)
    assert queries.orphans_of(desk, chosen) == 1
    assert queries.orphans_of(desk, Filter(entity="events")) == 0
    source = f"{NAMES.input('matches')}/0/0"
    assert queries.candidate_at(desk, source) == orphan._replace(number=0)
    assert queries.candidate_at(desk, f"{NAMES.input('matches')}/0/7") is None


def test_noted_tombstones_are_kept_until_the_store_is_emptied(tmp_path: Path) -> None:
    users = Partition(NAMES.accepted("users"), 0)
    held = RejectionStore(tmp_path / "desk", NAMES)
    assert held.saved().tombstones == {}
    held.note_tombstones({users: 7})
    held.note_tombstones({users: 9})
    held.close()
    again = RejectionStore(tmp_path / "desk", NAMES)
    assert again.saved().tombstones == {users: 9}
    again.wipe("a test")
    assert again.saved().tombstones == {}
    again.close()
