"""Which rows an export holds: the rules on users and matches that are gone, and the dates."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.unit.rows_kit import encode, event, match, milestone, user, uuid
from worker.core.keys import id_bytes
from worker.sink.selection.plan import Days, KnownRows, Picked, Picker, Reason, date_range, day_of
from worker.sink.selection.spool import kept


def known(users: set[int], matches: dict[int, tuple[int, int]], remembered: int = 100) -> KnownRows:
    held: dict[tuple[str, bytes], bytes] = {("users", id_bytes(uuid(n))): b"" for n in users}
    for n, pair in matches.items():
        held["matches", id_bytes(uuid(n))] = b"".join(id_bytes(uuid(user)) for user in pair)
    return KnownRows(lambda entity, id_: held.get((entity, id_)), remembered)


def pick(entity: str, rows: list[bytes], store: KnownRows) -> tuple[list[bytes], Picked]:
    picker = Picker(ENTITIES[entity], store)
    return kept(rows, picker.pick(rows)), picker.picked()


STORE = known({1, 2, 3}, {10: (1, 2), 11: (1, 9)})


def session(teacher: int, learner: int, of: int | None = None) -> bytes:
    fields: dict[str, Any] = {
        "session_id": uuid(50),
        "skill_id": 42,
        "skill_name": "Chess",
        "teacher_id": uuid(teacher),
        "learner_id": uuid(learner),
        "completed_at": "2024-04-10T16:00:00Z",
    }
    return encode(**(fields if of is None else fields | {"match_id": uuid(of)}))


@pytest.mark.parametrize(
    ("entity", "row", "kept", "left_out", "kept_without"),
    [
        ("users", user(1)[1], True, {}, {}),
        ("users", user(9)[1], True, {}, {}),
        ("matches", match(10, 1, 2)[1], True, {}, {}),
        ("matches", match(11, 1, 9)[1], False, {Reason.USER_GONE: 1}, {}),
        ("matches", match(11, 9, 1)[1], False, {Reason.USER_GONE: 1}, {}),
        ("matches", match(11, 8, 9)[1], False, {Reason.USER_GONE: 1}, {}),
        ("events", event(30, 10)[1], True, {}, {}),
        ("events", event(30, 99)[1], True, {}, {Reason.MATCH_GONE: 1}),
        ("events", event(30, 11)[1], True, {}, {Reason.MATCH_LEFT_OUT: 1}),
        ("milestones", milestone(7, 3)[1], True, {}, {}),
        ("milestones", milestone(7, 9)[1], False, {Reason.USER_GONE: 1}, {}),
        ("skill_sessions", session(1, 2), True, {}, {}),
        ("skill_sessions", session(1, 9), False, {Reason.USER_GONE: 1}, {}),
        ("skill_sessions", session(1, 2, 99), True, {}, {Reason.MATCH_GONE: 1}),
        ("skill_sessions", session(9, 2, 99), False, {Reason.USER_GONE: 1}, {}),
    ],
)
def test_rules(
    entity: str,
    row: bytes,
    kept: bool,
    left_out: dict[Reason, int],
    kept_without: dict[Reason, int],
) -> None:
    rows, picked = pick(entity, [row], STORE)
    assert rows == ([row] if kept else [])
    assert picked.rows == len(rows)
    assert picked.left_out == left_out
    assert picked.kept_without == kept_without


def test_attendees_are_no_references() -> None:
    row = encode(
        event_id=uuid(30),
        match_id=uuid(10),
        event_type="x",
        event_date="2024-01-01T00:00:00Z",
        attendees=[uuid(9)],
    )
    assert pick("events", [row], STORE)[0] == [row]


def test_order_and_bytes_of_the_rows_stay_over_several_blocks() -> None:
    rows = [match(n, 1, 2 if n % 3 else 9)[1] for n in range(20)]
    picker = Picker(ENTITIES["matches"], STORE)
    blocks = [rows[:7], rows[7:], []]
    picked = [row for block in blocks for row in kept(block, picker.pick(block))]
    assert picked == [row for n, row in enumerate(rows) if n % 3]
    assert picker.picked().left_out == {Reason.USER_GONE: 7}
    assert picker.picked().rows == 13


@given(
    st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), max_size=30),
    st.sets(st.integers(0, 12)),
    st.integers(1, 4),
)
def test_what_is_remembered_never_changes_an_answer(
    pairs: list[tuple[int, int]], users: set[int], remembered: int
) -> None:
    rows = [match(n, *pair)[1] for n, pair in enumerate(pairs)]
    found, _ = pick("matches", rows, known(users, {}, remembered))
    assert found == [row for row, pair in zip(rows, pairs, strict=True) if users.issuperset(pair)]


# --- Dates ----------------------------------------------------------------------------------------


def test_the_range_begins_with_the_earliest_row_that_is_exported() -> None:
    rows = [
        event(1, 10, "2024-05-01T00:00:00Z")[1],
        event(2, 10, "2023-12-31T23:59:59.999999Z")[1],
        event(3, 10, "2024-01-01T00:00:00Z")[1],
    ]
    _, events = pick("events", rows, STORE)
    _, gone = pick("matches", [match(11, 9, 9, matched_at="2001-01-01T00:00:00Z")[1]], STORE)
    assert (events.earliest, gone.earliest) == ("2023-12-31", None)
    assert date_range([events.earliest, gone.earliest], Days(), "2025-11-22") == (
        "2023-12-31",
        "2025-11-22",
    )


def test_without_rows_the_range_is_the_day_of_the_export() -> None:
    assert date_range([], Days(), "2025-11-22") == ("2025-11-22", "2025-11-22")
    assert date_range([None], Days(), "2025-11-22") == ("2025-11-22", "2025-11-22")


def test_a_row_of_a_minute_ahead_does_not_turn_the_range_round() -> None:
    _, picked = pick("events", [event(1, 10, "2025-11-23T00:00:30Z")[1]], STORE)
    assert date_range([picked.earliest], Days(), "2025-11-22") == ("2025-11-22", "2025-11-22")


@pytest.mark.parametrize("year", ["0001", "9999"])
def test_years_at_both_ends_of_the_calendar(year: str) -> None:
    _, picked = pick("events", [event(1, 10, f"{year}-12-31T23:59:59Z")[1]], STORE)
    assert picked.earliest == f"{year}-12-31"


def test_days_are_in_utc() -> None:
    assert day_of(0) == "1970-01-01"
    assert day_of(86_399_999) == "1970-01-01"
    assert day_of(86_400_000) == "1970-01-02"
