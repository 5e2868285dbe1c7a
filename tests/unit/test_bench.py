"""The arithmetic of the bench: what it makes of what it has measured, and the records it makes."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from itertools import pairwise
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.bench import hotkey, index_sizes, mix
from tests.bench.figures import Aims, Cost, Figure, beside_bare
from tests.bench.index import made_id
from tests.bench.lag import LOWEST, PRECISION, grows, lags, search
from tests.bench.scaling import Measured, Shape, are_shared, figures, tasks
from tests.bench.waiting import Needs, Ready
from worker.core.decode import Decoded, decoders
from worker.demo.record import Record
from worker.stream import Message

EVER = datetime.max.replace(tzinfo=UTC)
AIMS = Aims(share=40.0, cpu=2.5)


def decoded(record: Record) -> Decoded:
    key = (record.key or "").encode()
    outcome = decoders()[record.entity].decode(record.value, key, EVER)
    assert isinstance(outcome, Decoded)
    return outcome


# --- figures --------------------------------------------------------------------------------------


def test_a_cost_as_a_rate_and_as_cpu_a_record() -> None:
    cost = Cost(records=2_000, seconds=4.0, cpu=1.0)
    assert (cost.rate, cost.micros) == (500.0, 500.0)


def test_idle_cost_is_taken_off_for_as_long_as_it_was_watched() -> None:
    assert Cost(1_000, 2.0, 1.0).without(idle=0.1, seconds=5.0).micros == pytest.approx(500.0)


def test_shares_are_medians_of_the_rounds_not_quotients_of_medians() -> None:
    # A machine that drifts slows both down: the quotient of one round is to be believed.
    loops = [Cost(100, 1.0, 1.0), Cost(100, 2.0, 2.0), Cost(100, 4.0, 4.0)]
    rounds = [(Cost(100, 2.0, 2.0), loops[0]), (Cost(100, 4.0, 5.0), loops[1])]
    rounds.append((Cost(100, 5.0, 12.0), loops[2]))
    rate, share, cpu, times = beside_bare("s", "t", rounds, AIMS)
    assert (rate.value, rate.beside["bare copy loop"]) == (25.0, 50.0)
    assert (share.value, share.met) == (50.0, True)
    assert (cpu.value, cpu.beside["bare copy loop"]) == (50_000.0, 20_000.0)
    assert (times.value, times.met) == (2.5, True)
    assert times.note == "from 2 to 3"


@pytest.mark.parametrize(
    ("value", "aim", "at_most", "met"),
    [
        (40.0, 40.0, False, True),
        (39.9, 40.0, False, False),
        (2.5, 2.5, True, True),
        (2.6, 2.5, True, False),
        (1.0, None, True, None),
    ],
)
def test_an_aim_is_met_at_its_limit(
    value: float, aim: float | None, at_most: bool, met: bool | None
) -> None:
    figure = Figure(section="s", name="n", value=value, unit="u", aim=aim, at_most=at_most)
    assert figure.met is met


# --- lag, and the search for the highest rate -----------------------------------------------------

moments = st.lists(st.integers(0, 50), max_size=30).map(sorted)


@given(moments, moments, moments)
def test_lag_is_what_was_appended_by_then_and_not_judged(
    appended: list[float], judged: list[float], at: list[float]
) -> None:
    assert lags(appended, judged, at) == [
        sum(m <= moment for m in appended) - sum(m <= moment for m in judged) for moment in at
    ]


@given(st.integers(0, 100_000), st.floats(0.0, 0.9), st.integers(100, 50_000))
def test_lag_grows_where_more_than_a_fiftieth_is_left(base: int, left: float, rate: int) -> None:
    assume(abs(left - 0.02) > 1e-6)  # there the sums are rounded either way
    lag = [base + left * rate * second for second in range(1, 61)]
    assert grows(lag, rate, 60.0) == (left > 0.02)


def test_a_tenth_of_a_second_is_noise_in_a_short_run() -> None:
    assert not grows([0, 0, 90, 90, 90, 90], rate=1_000, seconds=1.0)
    assert grows([0, 0, 90, 90, 110, 110], rate=1_000, seconds=1.0)


def test_lag_that_goes_down_does_not_grow() -> None:
    assert not grows([9_000, 5_000, 2_000, 100, 0, 0], rate=1_000, seconds=60.0)


@given(st.floats(LOWEST * 1.1, 1e6), st.floats(LOWEST, 1e6))
def test_the_search_ends_close_below_what_is_sustained(capacity: float, first: float) -> None:
    asked: list[float] = []

    def sustains(rate: float) -> bool:
        asked.append(rate)
        return rate <= capacity

    found = search(sustains, first)
    assert found.good <= capacity < found.bad <= PRECISION * found.good
    assert found.steps == len(asked) <= 60
    assert {found.good, found.bad} <= set(asked)


def test_the_search_takes_few_steps_from_a_good_guess() -> None:
    assert search(lambda rate: rate <= 20_000, first=16_000).steps <= 6


def test_what_sustains_nothing_has_no_rate() -> None:
    found = search(lambda _rate: False, first=16_000)
    assert (found.good, found.bad) == (0.0, LOWEST)


# --- who could have been judged at once -----------------------------------------------------------

USER, OTHER = (
    f"550e8400-e29b-41d4-a716-44665544000{n}"
    for n in range(2)
)  # fmt: skip
MATCH = "660e8400-e29b-41d4-a716-446655440001"


def user(key: str, address: str = "ada@example.org") -> Message:
    row = (
        f'{{"id":"{key}","email":"{address}","first_name":"Ada","last_name":"Moe",'
        '"role":"participant","joined_at":"2024-01-15T10:00:00Z"}'
    )
    return Message("buddy.in.users", 0, 0, 0, key.encode(), row.encode())


def match(buddy: str = OTHER) -> Message:
    row = (
        f'{{"match_id":"{MATCH}","participant_id":"{USER}","buddy_id":"{buddy}",'
        '"matched_at":"2024-02-01T10:00:00Z","status":"active"}'
    )
    return Message("buddy.in.matches", 0, 0, 0, MATCH.encode(), row.encode())


def checkin() -> Message:
    key = "770e8400-e29b-41d4-a716-446655440001"
    row = f'{{"checkin_id":"{key}","match_id":"{MATCH}","checkin_date":"2024-02-01T10:00:00Z"}}'
    return Message("buddy.in.checkins", 0, 0, 0, key.encode(), row.encode())


def test_a_record_without_references_needs_nothing() -> None:
    assert Ready().note("users", user(USER), 5.0) == Needs(0.0, refers=False)


def test_a_record_needs_the_last_of_what_it_refers_to() -> None:
    ready = Ready()
    ready.note("users", user(USER), 5.0)
    ready.note("users", user(OTHER), 9.0)
    assert ready.note("matches", match(), 2.0) == Needs(9.0, refers=True)


def test_a_record_needs_what_its_references_need() -> None:
    ready = Ready()
    ready.note("users", user(USER), 5.0)
    ready.note("users", user(OTHER), 9.0)
    ready.note("matches", match(), 2.0)
    assert ready.note("checkins", checkin(), 3.0) == Needs(9.0, refers=True)


def test_a_later_version_needs_the_earlier_one_and_moves_no_reference() -> None:
    ready = Ready()
    ready.note("users", user(USER), 5.0)
    ready.note("users", user(OTHER), 5.0)
    assert ready.note("users", user(USER, "b@example.org"), 20.0) == Needs(5.0, refers=False)
    assert ready.note("matches", match(), 30.0) == Needs(5.0, refers=True)


def test_a_reference_to_nobody_or_to_a_bad_row_is_never_there() -> None:
    ready = Ready()
    ready.note("users", user(USER), 5.0)
    ready.note("users", user(OTHER, "no address"), 5.0)
    assert ready.note("matches", match(), 30.0) == Needs(math.inf, refers=True)
    assert Ready(unknown=0.0).note("matches", match(), 30.0) == Needs(0.0, refers=True)


# --- workers and partitions -----------------------------------------------------------------------


def measured(micros: float) -> Measured:
    cost = Cost(1_000, 1.0, micros / 1_000)
    return Measured(cost, cost, 3.0, Cost(1_000, 0.1, 0.005))


def test_a_shape_is_compared_with_the_first_of_the_same_round() -> None:
    first = [measured(100), measured(200), measured(400)]
    other = [measured(110), measured(240), measured(600)]
    found = figures("partitions", Shape(1, 12, 1.0), other, first)
    assert [f.value for f in found] == pytest.approx([240.0, 1_000.0, 3.0, 1.2])
    assert [f.met for f in found] == [None, None, False, True]


def test_the_first_shape_is_not_compared_with_itself() -> None:
    rounds = [measured(100)]
    assert len(figures("partitions", Shape(1, 4), rounds, rounds)) == 3


@pytest.mark.parametrize(
    ("owned", "shared"),
    [
        ([{0, 1, 2, 3}], True),
        ([{0, 1, 2}], False),
        ([{0, 1}, {2, 3}], True),
        ([{0, 1, 2, 3}, set()], False),
        ([{0, 1, 2}, {3}], False),
        ([{0, 1}, {2}, {3}], True),
    ],
)
def test_tasks_are_shared_when_all_are_owned_and_nobody_has_two_more(
    owned: list[set[int]], shared: bool
) -> None:
    assert are_shared(owned, Shape(len(owned), 4)) is shared


def test_a_workers_tasks_are_those_started_and_not_dropped() -> None:
    lines = [("task_started", 0), ("task_started", 1), ("task_dropped", 0), ("task_started", 2)]
    events = [{"event": event, "task": task} for event, task in lines]
    service = SimpleNamespace(events=[{"event": "worker_ready"}, *events])
    assert tasks(cast("Any", service)) == {1, 2}


# --- records --------------------------------------------------------------------------------------


def test_users_differ_and_are_good() -> None:
    rows = [decoded(record) for record in mix.users(300)]
    assert len({row.key for row in rows}) == len({row.address for row in rows}) == 300


def test_records_are_the_same_in_every_run() -> None:
    assert list(mix.users(20)) == list(mix.users(20))
    assert list(hotkey.updates(20, moves=True)) == list(hotkey.updates(20, moves=True))


@pytest.mark.parametrize(("moves", "addresses"), [(False, 1), (True, 50)])
def test_versions_of_a_hot_key_differ(moves: bool, addresses: int) -> None:
    rows = [decoded(record) for record in hotkey.updates(50, moves=moves)]
    assert len({row.key for row in rows}) == 1
    assert len({row.address for row in rows}) == addresses
    assert all(earlier.row != later.row for earlier, later in pairwise(rows))


def test_orphans_are_good_but_for_their_user() -> None:
    rows = [decoded(record) for record in hotkey.orphans(20)]
    assert len({row.key for row in rows}) == len({row.users for row in rows}) == 20


def test_records_refer_to_users_of_the_index_alone() -> None:
    there = {made_id("users", number) for number in range(50)}
    rows = [decoded(record) for record in index_sizes.referring(200, 50, Random(1))]
    assert len({row.key for row in rows}) == 200
    assert all(row.users and {*row.users} <= there and not any(row.matches) for row in rows)
