"""Incidents in the store: opened once, closed once, with what stands out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.desk_kit import NAMES, START, rejection, settling
from worker.core.violations import Code
from worker.desk.incidents import IncidentBook, IncidentReport, stands_out
from worker.desk.store import RejectionStore
from worker.desk.webhook import details, headline
from worker.stream import Partition

pytestmark = pytest.mark.thorough

SECOND = 1_000
MINUTE = 60 * SECOND
ROLE = ((Code.INVALID_ENUM, "role"),)
EMAIL = ((Code.INVALID_EMAIL, "email"),)


class Desk:
    """A store whose clock the test sets, and a stream of users."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.at = 0
        self.offset = 0
        self.judges = True
        self.changes: list[IncidentReport] = []
        self.open()

    def open(self) -> None:
        self.store = RejectionStore(self.directory, NAMES)
        self.store.clock = lambda: START + self.at
        self.store.is_live = True
        self.book = IncidentBook(self.store)

    def stream(
        self, seconds: int, bad: int, *, of: int = 100, producer: str = "crm", late: int = 0
    ) -> None:
        """So many records a second, some of them rejected; judged every second."""
        for _ in range(seconds):
            found = []
            for number in range(bad):
                kinds = EMAIL if number % 100 == 0 and producer == "crm" else ROLE
                at = self.at - late
                found.append(
                    rejection(self.offset, key=None, at=at, kinds=kinds, producer=producer)
                )
                self.offset += 1
            rows = [settling(str(n), at=self.at - late) for n in range(of - bad)]
            positions = {each.partition: each.offset + 1 for each in found}
            self.store.apply(found, rows, positions, {}, {})
            self.at += SECOND
            if self.judges:
                self.changes += self.book.detect(START + self.at, START + self.at, tells=True)

    def restart(self) -> None:
        self.store.close()
        self.open()


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    made = Desk(tmp_path / "desk")
    yield made
    made.store.close()


def test_an_incident_opens_once_and_closes_once_and_names_what_stands_out(desk: Desk) -> None:
    desk.stream(600, 1)
    assert desk.changes == []
    began = START + desk.at
    desk.stream(60, 30, producer="import")
    (opened,) = desk.changes
    assert (opened.entity, opened.closed) == ("users", None)
    assert began - 5 * SECOND <= opened.since <= began + 5 * SECOND
    assert opened.opened - began <= 15 * SECOND
    assert opened.violations == [("invalid_enum", "role")]
    assert opened.producers == ["import"]
    assert opened.partitions == [], "all come from one, as before"
    assert len(opened.examples) == 3
    assert all(one.startswith("t.rejected.users/0/") for one in opened.examples)
    assert [one.id for one in desk.book.reports(only_open=True)] == [opened.id]
    desk.stream(300, 1)
    _, closed = desk.changes
    assert (closed.id, closed.since) == (opened.id, opened.since)
    assert closed.closed is not None
    assert closed.closed <= began + 240 * SECOND
    assert closed.found >= 60 * 30
    assert desk.book.reports(only_open=True) == []
    assert desk.book.reports() == [closed]


def test_shares_of_an_entity_wait_while_damage_hides_its_verdicts(desk: Desk) -> None:
    """Without accepted rows, each record of the entity would seem to be rejected."""
    desk.stream(300, 1)
    desk.store.note_damage({Partition(NAMES.accepted("users"), 0): "damaged"})
    desk.stream(60, 10, of=10)
    assert desk.changes == []
    rows = [settling(str(n), at=desk.at - MINUTE + n) for n in range(MINUTE)]
    desk.store.apply([], rows, {}, {}, {})
    desk.store.note_damage({})
    desk.stream(60, 1)
    assert desk.changes == [], "the rows that came late count"


def test_a_spike_of_unknown_fields_is_an_incident_that_names_them(desk: Desk) -> None:
    """Also of accepted records: a renamed optional field rejects nothing."""
    known = settling("k", unknown=("nickname",))
    for second in range(120):
        if second == 60:
            known = settling("k", unknown=("nickname", "tel"))
        some = 2 if second < 60 else 40
        rows = [known._replace(at=START + desk.at)] * some
        rows += [settling(str(n), at=desk.at) for n in range(100 - some)]
        desk.store.apply([], rows, {}, {}, {})
        desk.at += SECOND
        desk.changes += desk.book.detect(START + desk.at, START + desk.at, tells=True)
    (opened,) = desk.changes
    assert (opened.entity, opened.what, opened.names) == ("users", "unknown_fields", ["tel"])
    assert opened.violations == []
    assert headline(opened).endswith("of users have fields that no column is for, 2.0 % before")
    assert "fields: tel" in details(opened)


def test_if_the_usual_ones_become_many_they_are_named(desk: Desk) -> None:
    desk.stream(300, 3)
    desk.stream(30, 30)
    (opened,) = desk.changes
    assert opened.violations == [("invalid_enum", "role")]
    assert opened.producers == ["crm"]


def test_what_was_before_the_incident_is_not_named_for_it(desk: Desk) -> None:
    """Also in the minute in which it began."""
    desk.stream(150, 10, producer="good")
    desk.stream(30, 60, producer="bad")
    (opened,) = desk.changes
    assert opened.producers == ["bad"]


def test_an_incident_that_was_over_before_it_was_found_is_told_to_nobody(desk: Desk) -> None:
    desk.judges = False
    desk.stream(60, 1)
    desk.stream(30, 30)
    desk.stream(300, 1)
    found = desk.book.detect(START + desk.at, START + desk.at, tells=True)
    assert [one.closed is None for one in found] == [True, False]
    assert desk.book.untold() == []


def test_a_restart_after_every_second_changes_nothing(desk: Desk, tmp_path: Path) -> None:
    other = Desk(tmp_path / "other")
    for bad, seconds in ((1, 60), (30, 30), (1, 150)):
        desk.stream(seconds, bad)
        for _ in range(seconds):
            other.stream(1, bad)
            other.restart()
    assert desk.changes == other.changes
    assert len(desk.changes) == 2
    other.store.close()


def test_verdicts_that_are_read_late_count(desk: Desk) -> None:
    """A broker whose clock is behind, or a commit that took long."""
    desk.stream(300, 1, late=30 * SECOND)
    desk.stream(30, 30, late=30 * SECOND)
    (opened,) = desk.changes
    assert opened.found > 100
    assert ("invalid_enum", "role") in opened.violations


def test_a_brokers_clock_that_is_ahead_counts_as_now(desk: Desk) -> None:
    desk.stream(300, 1, late=-2 * MINUTE)
    desk.stream(30, 30, late=-2 * MINUTE)
    (opened,) = desk.changes
    assert ("invalid_enum", "role") in opened.violations


@pytest.mark.parametrize("hours", [-30, -2, 2, 30])
def test_clocks_that_differ_by_hours_hide_no_incident(desk: Desk, hours: int) -> None:
    desk.at = 1_000 * 3600 * SECOND
    desk.stream(300, 1, late=hours * 3600 * SECOND)
    desk.stream(30, 30, late=hours * 3600 * SECOND)
    (opened,) = desk.changes
    assert ("invalid_enum", "role") in opened.violations
    assert desk.store.skew == -hours * 3600 * SECOND


def test_what_was_rejected_long_before_is_no_incident(desk: Desk) -> None:
    desk.at = 2 * 3600 * SECOND
    desk.store.is_live = False
    desk.stream(60, 100, late=2 * 3600 * SECOND)
    assert desk.changes == []


def test_a_clock_that_was_a_day_ahead_blinds_nobody(desk: Desk) -> None:
    desk.stream(60, 1)
    ahead = START + desk.at + 86_400 * SECOND
    desk.book.detect(ahead, ahead, tells=True)
    desk.stream(60, 1)
    desk.stream(30, 30)
    assert len(desk.changes) == 1


def test_what_is_to_be_sent_is_known_until_it_was_sent(desk: Desk) -> None:
    desk.stream(60, 1)
    desk.stream(30, 30)
    (opened,) = desk.book.untold()
    desk.restart()
    assert [one.opened for one in desk.book.untold()] == [opened.opened]
    desk.stream(200, 1)
    opening, closing = desk.book.untold()
    assert (opening.closed, closing.closed) == (None, desk.changes[-1].closed)
    desk.book.told(opening)
    assert desk.book.untold() == [closing], "receivers want to hear of both, in order"
    desk.book.told(closing)
    assert desk.book.untold() == []
    desk.stream(30, 30)
    assert len(desk.book.untold()) == 1
    desk.book.forget_untold()
    assert desk.book.untold() == []


def test_an_incident_of_a_wrong_clock_ends_when_the_clock_is_right(desk: Desk) -> None:
    ahead = 86_400 * SECOND
    desk.at = ahead
    desk.stream(60, 1, late=ahead)
    desk.stream(30, 30, late=ahead)
    desk.at -= ahead
    desk.stream(60, 1)
    opened, closed = desk.changes
    assert (closed.id, closed.closed is not None) == (opened.id, True)
    assert closed.violations == opened.violations == [("invalid_enum", "role")]
    desk.stream(30, 30)
    assert len(desk.book.reports(only_open=True)) == 1


@pytest.mark.parametrize(
    ("before", "during", "expected"),
    [
        ({"a": 50, "b": 50}, {"a": 500, "b": 500}, []),
        ({"a": 90, "b": 10}, {"a": 70, "b": 30}, ["b"]),
        ({"a": 90, "b": 10}, {"a": 81, "b": 19}, []),
        ({"a": 90, "b": 10}, {"a": 5, "b": 5, "c": 90}, ["c"]),
        ({"a": 100}, {"a": 91, "b": 9}, []),
        ({"a": 100}, {"a": 100}, []),
        ({"a": 60, "b": 40}, {"a": 85, "b": 15}, ["a"]),
        ({}, {"a": 9, "b": 30, "c": 61}, ["c", "b"]),
        ({"a": 0}, {"a": 1}, ["a"]),
        ({}, dict.fromkeys("abcdefghij", 10), ["a", "b", "c", "d", "e"]),
        ({"a": 1}, {}, []),
        ({"a": 1}, {"a": 0}, []),
    ],
)
def test_what_stands_out(
    before: dict[str, int], during: dict[str, int], expected: list[str]
) -> None:
    assert stands_out(before, during) == expected


@given(st.dictionaries(st.integers(), st.integers(1, 10**6), min_size=1), st.integers(1, 1_000))
def test_nothing_stands_out_when_all_grow_alike(before: dict[int, int], factor: int) -> None:
    assert stands_out(before, {value: factor * n for value, n in before.items()}) == []
