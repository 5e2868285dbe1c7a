"""How far a backlog is judged: behind what it refers to, but nobody waits for ever."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import ENTITIES
from tests.clock_kit import SettableClock
from worker.engine.order import FOREVER, LONGEST_MS, ReadingOrder

OTHERS = [entity for entity in ENTITIES if entity not in ("users", "matches")]
moments = st.integers(0, 1_000) | st.just(FOREVER)


def until(users: int = FOREVER, matches: int = FOREVER) -> dict[str, int]:
    """Up to which append time users and matches have been read."""
    return {"users": users, "matches": matches}


@pytest.fixture
def order(clock: SettableClock) -> ReadingOrder:
    return ReadingOrder(clock.steady)


def test_with_nothing_behind_all_is_judged(order: ReadingOrder) -> None:
    limits = order.limits(until(), dict.fromkeys(ENTITIES, 7))
    assert limits == dict.fromkeys(ENTITIES, FOREVER)


def test_users_wait_for_nobody_and_matches_for_users_alone(order: ReadingOrder) -> None:
    limits = order.limits(until(users=50, matches=20), {})
    assert (limits["users"], limits["matches"]) == (FOREVER, 50)
    assert {limits[entity] for entity in OTHERS} == {20}


@given(moments, moments)
def test_nothing_is_judged_before_what_it_may_refer_to_has_been_read(
    users: int, matches: int
) -> None:
    limits = ReadingOrder(SettableClock().steady).limits(until(users, matches), {})
    assert limits["matches"] == users
    assert all(limits[entity] == min(users, matches) for entity in OTHERS)


def test_what_makes_progress_waits_for_as_long_as_it_does(
    order: ReadingOrder, clock: SettableClock
) -> None:
    for moment in range(0, 100, 10):
        limits = order.limits(until(users=moment), {"events": moment + 1})
        assert limits["events"] == moment
        clock.advance(LONGEST_MS - 1)


def test_an_input_that_is_far_behind_does_not_hold_the_others_up_for_ever(
    order: ReadingOrder, clock: SettableClock
) -> None:
    assert order.limits(until(users=10), {"events": 20})["events"] == 10
    clock.advance(LONGEST_MS - 1)
    assert order.limits(until(users=10), {"events": 20})["events"] == 10
    clock.advance(1)
    limits = order.limits(until(users=10), {"events": 20})
    assert (limits["events"], limits["checkins"]) == (FOREVER, 10), "each entity by itself"
    # Until nothing is behind any more; then the order holds again.
    assert order.limits(until(users=30), {"events": 40})["events"] == FOREVER
    assert order.limits(until(), {"events": 40})["events"] == FOREVER
    assert order.limits(until(users=50), {"events": 60})["events"] == 50


def test_who_waits_no_longer_begins_anew(order: ReadingOrder, clock: SettableClock) -> None:
    order.limits(until(users=10), {"events": 20})
    clock.advance(LONGEST_MS - 1)
    order.limits(until(users=30), {"events": 20})
    clock.advance(1)
    assert order.limits(until(users=30), {"events": 40})["events"] == 30
    clock.advance(LONGEST_MS - 1)
    assert order.limits(until(users=30), {"events": 40})["events"] == 30
