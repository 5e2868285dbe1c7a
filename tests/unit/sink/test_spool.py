"""Which rows an export holds: entities, days, and what the rows in the range refer to."""

from __future__ import annotations

import tempfile
from pathlib import Path

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
    read_spooled,
    selections,
    session,
    spooled,
)
from worker.errors import StateError
from worker.exports.spool import read_blocks
from worker.sink.selection import ids
from worker.sink.selection.ids import Ids
from worker.sink.selection.plan import Days, Reason, Selection
from worker.sink.selection.spool import AbandonedError, LineFile, Waiter, spool

HISTORY: list[Change] = [
    ("users", *user(1, joined_at="2020-01-01T00:00:00Z")),
    ("users", *user(2, joined_at="2020-01-02T00:00:00Z")),
    ("users", *user(3, joined_at="2024-01-03T00:00:00Z")),
    ("users", *user(4, joined_at="2020-01-04T00:00:00Z")),
    ("matches", *match(11, 1, 2, matched_at="2021-01-01T00:00:00Z")),
    ("matches", *match(12, 1, 9, matched_at="2021-01-01T00:00:00Z")),
    ("matches", *match(13, 4, 4, matched_at="2021-01-01T00:00:00Z")),
    ("checkins", *checkin(21, 11, "2024-01-03")),
    ("checkins", *checkin(22, 12, "2024-01-03")),
    ("checkins", *checkin(23, 13, "2024-01-04")),
    ("skill_sessions", *session(31, 3, 9, 13, "2024-01-03")),
]


def export(tmp_path: Path, *entities: str, days: Days) -> tuple[dict[str, list[str]], World]:
    world = World(tmp_path / "store", NAMES)
    world.apply(HISTORY)
    snapshot = world.store.snapshot()
    found = spooled(snapshot, Selection(entities, days), tmp_path / "room")
    world.store.close()
    keys = {name: {row: key for key, row in rows.items()} for name, rows in world.rows.items()}
    read = read_spooled(found)
    assert {name: len(rows) for name, rows in read.items()} == dict(found.rows)
    return {n: [keys[n][row].decode() for row in rows] for n, rows in read.items()}, world


THIRD = Days("2024-01-03", "2024-01-03")


@pytest.mark.parametrize(
    ("entities", "days", "expected"),
    [
        (KINDS, THIRD, {"users": [1, 2, 3], "matches": [11], "checkins": [21, 22]}),
        (("users", "checkins"), THIRD, {"users": [3], "checkins": [21, 22]}),
        (("users",), THIRD, {"users": [3]}),
        (("matches", "checkins"), THIRD, {"matches": [11], "checkins": [21, 22]}),
        (("matches",), Days("2021-01-01", "2021-01-01"), {"matches": [11, 13]}),
        (KINDS, Days("2024-01-04", None), {"users": [4], "matches": [13], "checkins": [23]}),
        (KINDS, Days(None, "2019-12-31"), {}),
        (KINDS, Days(None, "2020-01-01"), {"users": [1]}),
    ],
)
def test_what_a_row_in_range_refers_to_comes_along(
    tmp_path: Path, entities: tuple[str, ...], days: Days, expected: dict[str, list[int]]
) -> None:
    found, _ = export(tmp_path, *entities, days=days)
    assert found == {name: [uuid(n) for n in expected.get(name, [])] for name in entities}


def test_what_was_not_asked_for_is_not_counted(tmp_path: Path) -> None:
    world = World(tmp_path / "store", NAMES)
    world.apply(HISTORY)
    snapshot = world.store.snapshot()
    picked = spooled(snapshot, Selection(KINDS, THIRD), tmp_path / "room").picked
    world.store.close()
    assert picked["skill_sessions"].left_out == {Reason.USER_GONE: 1}
    assert picked["matches"].left_out == {Reason.USER_GONE: 1}, "it was wanted by a check-in"
    assert picked["checkins"].kept_without == {Reason.MATCH_LEFT_OUT: 1}
    assert picked["users"].left_out == {}
    assert picked["users"].earliest == "2020-01-01"


@given(st.lists(changes(), max_size=40), selections(), st.integers(1, 3))
def test_any_history_and_selection_gives_what_the_contract_says(
    history: list[Change], selection: Selection, run: int
) -> None:
    with tempfile.TemporaryDirectory() as directory, pytest.MonkeyPatch.context() as patch:
        patch.setattr(ids.Ids.__init__, "__defaults__", (run,))
        world = World(Path(directory) / "store", NAMES)
        world.apply(history)
        snapshot = world.store.snapshot()
        found = read_spooled(spooled(snapshot, selection, Path(directory) / "room"))
        world.store.close()
    expected = world.full(selection)
    assert found == {name: list(rows.values()) for name, rows in expected.items()}


def test_nobody_waits_any_more(tmp_path: Path) -> None:
    world = World(tmp_path / "store", NAMES)
    world.apply(HISTORY)
    snapshot = world.store.snapshot()
    with pytest.raises(AbandonedError):
        spool(
            snapshot, Selection(KINDS), tmp_path, Waiter(lambda _done, _total: None, lambda: True)
        )
    world.store.close()


@given(st.lists(st.integers(0, 30)), st.integers(1, 5))
def test_ids_come_in_order_whatever_the_order_they_were_given_in(
    given_ids: list[int], run: int
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        held = Ids(Path(directory), "some", run)
        for n in given_ids:
            held.add(uuid(n))
        found = list(held.ascending())
        files = list(Path(directory).iterdir())
    assert found == sorted(found)
    assert set(found) == set(map(uuid, given_ids))
    assert len(set(given_ids)) < run or files, "no more than a run is in memory"


def test_ids_that_the_disk_has_changed_are_no_ids(tmp_path: Path) -> None:
    held = Ids(tmp_path, "some", 1)
    held.add(uuid(1))
    (run,) = tmp_path.iterdir()
    run.write_bytes(run.read_bytes().replace(b"1", b"2"))
    with pytest.raises(StateError, match="does not hold what was written"):
        list(held.ascending())


def test_lines_are_private_and_added_where_that_is_wanted(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    with LineFile(path) as file:
        file.write([b"a", b"b"])
    with LineFile(path, file.spooled()) as file:
        file.write([b"c" * 2_000_000])
        file.write([])
    assert path.read_bytes() == b"a\nb\n" + b"c" * 2_000_000 + b"\n"
    rows = [row for block in read_blocks(file.spooled()) for row in block]
    assert rows == [b"a", b"b", b"c" * 2_000_000]
    assert path.stat().st_mode & 0o077 == 0
    assert UNWATCHED.abandoned() is False
