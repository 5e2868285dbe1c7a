"""Which finished exports are removed: by number, by age, and never what is still needed."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.sink_kit import finished
from worker.exports.order import order_of, orders, overtaken
from worker.sink.retention import GRACE_MS, Keep, Old, Retiring, old_of, to_remove

NOW = datetime(2026, 6, 1, tzinfo=UTC)


def made(days: int, feed: str | None = None, base: int | None = None) -> Old:
    """An export of so many days ago, called after them."""
    at = NOW - timedelta(days=days)
    name = f"{feed or ''}{days}"
    return Old(name, f"id-{name}", at, feed, None if base is None else f"id-{feed}{base}")


PLAIN = [made(days) for days in (1, 5, 10, 20, 30)]


@pytest.mark.parametrize(
    ("keep", "removed"),
    [
        (Keep(), []),
        (Keep(exports=5), []),
        (Keep(exports=2), ["30", "20", "10"]),
        (Keep(days=10), ["30", "20"]),
        (Keep(exports=4, days=20), ["30"]),
        (Keep(exports=2, days=20), ["30", "20", "10"]),
        (Keep(exports=4, days=5), ["30", "20", "10"]),
    ],
)
def test_beyond_either_limit(keep: Keep, removed: list[str]) -> None:
    assert to_remove(PLAIN, keep, NOW) == removed


def test_the_newest_stays_however_old_it_is() -> None:
    assert to_remove([made(400), made(500)], Keep(exports=1, days=1), NOW) == ["500"]


def test_feeds_are_counted_each_for_itself() -> None:
    there = [*PLAIN, made(2, "a"), made(40, "a"), made(300, "b")]
    assert to_remove(there, Keep(exports=1), NOW) == ["a40", "30", "20", "10", "5"]


CHAINS = [
    made(100, "w"),
    made(90, "w", 100),
    made(80, "w", 90),
    made(70, "w"),
    made(60, "w", 70),
    made(50, "w"),
    made(40, "w", 50),
]


@pytest.mark.parametrize(
    ("keep", "removed"),
    [
        (Keep(exports=1), ["w100", "w90", "w80", "w70", "w60"]),
        (Keep(exports=3), ["w100", "w90", "w80"]),
        (Keep(exports=5), []),
        (Keep(days=60), ["w100", "w90", "w80"]),
        (Keep(days=1), ["w100", "w90", "w80", "w70", "w60"]),
    ],
)
def test_a_chain_is_kept_or_removed_as_a_whole(keep: Keep, removed: list[str]) -> None:
    assert to_remove(CHAINS, keep, NOW) == removed


def test_an_increment_whose_base_has_gone_is_a_chain_of_its_own() -> None:
    there = [made(30, "w", 99), made(20, "w", 30), made(10, "w")]
    assert to_remove(there, Keep(exports=1), NOW) == ["w30", "w20"]


@st.composite
def histories(draw: st.DrawFn) -> list[Old]:
    """Exports of some feeds, each on the one before it or full."""
    there = []
    for feed in draw(st.sets(st.sampled_from(["a", "b", None]), min_size=1)):
        days = sorted(draw(st.sets(st.integers(0, 50), min_size=1, max_size=12)), reverse=True)
        before: int | None = None
        for day in days:
            goes_on = feed is not None and before is not None and draw(st.booleans())
            there.append(made(day, feed, before if goes_on else None))
            before = day
    return draw(st.permutations(there))


@given(histories(), st.integers(0, 5), st.integers(0, 30))
def test_what_is_kept_can_be_applied_and_the_newest_stay(
    there: list[Old], exports: int, days: int
) -> None:
    keep = Keep(exports, days)
    removed = to_remove(there, keep, NOW)
    kept = [export for export in there if export.name not in removed]
    ids = {export.export_id for export in kept}
    for feed in {export.feed for export in there}:
        assert max((e for e in there if e.feed == feed), key=lambda e: e.at) in kept
    assert all(export.base is None or export.base in ids for export in kept)
    assert to_remove(kept, keep, NOW) == [], "once is enough"
    if not exports and not days:
        assert removed == []
    for export in there:
        younger = [e for e in there if e.feed == export.feed and e.at > export.at]
        inside = (not exports or len(younger) < exports) and (
            not days or NOW - export.at <= timedelta(days=days)
        )
        assert not inside or export.name not in removed, "within both limits"


@pytest.mark.parametrize("later", [timedelta(), timedelta(hours=1)])
def test_a_chain_holds_together_though_the_clock_was_set_back(later: timedelta) -> None:
    full = Old("z", "full", NOW + later, "w")
    increments = [Old("a", "one", NOW, "w", "full"), Old("b", "two", NOW, "w", "one")]
    after = [Old(f"c{n}", f"{n}", NOW + timedelta(days=n), "w", "two") for n in (1, 2)]
    there = [full, *increments, *after]
    assert to_remove(there, Keep(exports=1), NOW + timedelta(days=3)) == []


def ahead(there: list[Old]) -> list[Old]:
    """The same; the first of them was stamped 400 days ahead, and marked as older than the rest."""
    orders_ = [(f"{n}", "~") for n in range(1, len(there))]
    first = msgspec.structs.replace(there[0], order=("1", "9", "~"))
    rest = zip(there[1:], orders_, strict=True)
    return [first, *(msgspec.structs.replace(one, order=order) for one, order in rest)]


def test_what_was_stamped_ahead_is_no_newer_than_what_came_after() -> None:
    there = ahead([made(-400), made(5), made(3), made(1)])
    assert to_remove(there, Keep(exports=1), NOW) == ["-400", "5", "3"]
    assert to_remove(there, Keep(exports=3), NOW) == ["-400"]


@pytest.mark.parametrize(
    ("name", "times", "days"),
    [
        ("20260522T000000Z_x", (), 10),
        ("20990101T000000Z_x", ("20260512T000000Z", "20990102T000000Z"), 20),
        ("20260530T000000Z_x", ("20240101T000000Z",), 2),
        ("20261301T000000Z_x", (), None),
    ],
)
def test_an_export_is_as_old_as_the_first_that_came_after_it(
    name: str, times: tuple[str, ...], days: int | None
) -> None:
    found = finished("x", "feed")
    old = old_of(msgspec.structs.replace(found, name=name, order=order_of(name, times)), NOW)
    assert old is None if days is None else old is not None and (NOW - old.at).days == days


def test_a_clock_that_was_behind_for_one_export_makes_none_older() -> None:
    times = ("20260520", "20260530", "20240101", "20260531")
    names = [f"{time}T000000Z_{uuid.uuid4()}" for time in times]
    marks: list[str] = []
    for place, name in enumerate(names):
        marks += overtaken(orders(names[:place], marks), name)
    there = [
        old_of(msgspec.structs.replace(finished(name, "feed"), name=name, order=order), NOW)
        for name, order in orders(names, marks).items()
    ]
    olds = [msgspec.structs.replace(old, export_id=old.name) for old in there if old is not None]
    assert to_remove(olds, Keep(days=5), NOW) == [names[0]]
    assert to_remove(olds, Keep(days=30), NOW) == []


# --- When they go ---------------------------------------------------------------------------------


def test_an_export_goes_a_while_after_it_got_beyond_the_limits() -> None:
    retiring = Retiring()
    assert retiring.update(["a"], 1_000) == []
    assert retiring.update(["a", "b"], 1_000 + GRACE_MS - 1) == []
    assert retiring.update(["a", "b"], 1_000 + GRACE_MS) == ["a"]
    assert retiring.update(["b"], 1_000 + 2 * GRACE_MS) == ["b"]


def test_a_wall_clock_that_is_wrong_for_a_moment_removes_nothing() -> None:
    retiring = Retiring()
    assert retiring.update(["a", "b"], 0) == [], "by a clock that is days ahead"
    assert retiring.update([], 2_000) == []
    assert retiring.update(["a"], GRACE_MS) == []
    assert retiring.update(["a"], 2 * GRACE_MS) == ["a"]


def test_an_export_that_is_announced_again_is_spared_with_its_chain() -> None:
    retiring = Retiring()
    retiring.update(["base", "increment"], 0)
    retiring.announced("increment", GRACE_MS - 1)
    retiring.announced("unknown", GRACE_MS)
    assert retiring.update(["base", "increment"], GRACE_MS) == []
    assert retiring.update(["base", "increment"], 2 * GRACE_MS - 1) == ["base", "increment"]
