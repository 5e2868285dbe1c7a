"""The two clocks: what is read back of stamps, and whether somebody has set the wall clock."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tests.clock_kit import SettableClock
from worker.clock import STEP_MS, StepWatch
from worker.core.moments import Moment, restored

DAY = 24 * 3600 * 1000
NOW = Moment(1_767_225_600_000, 5_000_000)


def test_a_stamp_of_the_future_is_of_now() -> None:
    assert restored([NOW.wall + DAY], NOW) == [NOW]
    assert restored([NOW.wall - 7_000], NOW) == [Moment(NOW.wall - 7_000, NOW.steady - 7_000)]


def test_what_happened_before_something_is_at_least_as_old() -> None:
    # Read one after the other; the clock was a day ahead while the first one was.
    first, second = restored([NOW.wall + DAY, NOW.wall - 9_000], NOW)
    assert first == second == Moment(NOW.wall - 9_000, NOW.steady - 9_000)


@given(st.lists(st.integers(NOW.wall - DAY, NOW.wall + DAY)))
def test_moments_come_in_order_and_none_lies_ahead(stamps: list[int]) -> None:
    moments = restored(stamps, NOW)
    assert [m.steady for m in moments] == sorted(m.steady for m in moments)
    for moment, stamp in zip(moments, stamps, strict=True):
        assert moment.steady <= NOW.steady
        assert moment.wall <= stamp
    assert all(NOW.wall - m.wall == NOW.steady - m.steady for m in moments)


def test_a_clock_that_is_set_is_noticed_once_and_by_how_much() -> None:
    clock = SettableClock()
    watch = StepWatch(clock)
    clock.advance(DAY)
    assert watch.step() == 0
    clock.step(-3_600_000)
    assert watch.step() == -3_600_000
    assert watch.step() == 0
    clock.step(DAY)
    clock.advance(60_000)
    assert watch.step() == DAY


def test_a_clock_that_drifts_is_not_set() -> None:
    clock = SettableClock()
    watch = StepWatch(clock)
    for _ in range(10):
        clock.step(STEP_MS - 1)
        assert watch.step() == 0
