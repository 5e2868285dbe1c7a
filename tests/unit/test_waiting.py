"""How often work is done that is due once in a while."""

from __future__ import annotations

from worker.waiting import Interval


def test_an_interval_begins_at_the_first_call_and_then_whenever_the_last_one_is_over() -> None:
    now = 0
    interval = Interval(lambda: now, 5_000)
    for now, begins in (
        (0, True),
        (4_999, False),
        (5_000, True),
        (9_999, False),
        (17_000, True),
        (21_999, False),
        (22_000, True),
    ):
        assert interval.begin_if_over() is begins, now
