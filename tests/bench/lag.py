"""Lag: records appended to the inputs whose outcome has not been appended yet. And the search for
the highest rate at which it does not grow. Values in, values out."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import NamedTuple

from tests.bench.figures import middle

PRECISION = 1.05
"""The search ends when the lowest bad rate is at most so many times the highest good one."""
LOWEST = 50.0
"""Records a second. What cannot keep up with so few has no live rate."""
_GROWTH_SHARE = 0.02
_GROWTH_SECONDS = 0.1
_STEP = 1.25


def lags(appended: Sequence[float], judged: Sequence[float], at: Sequence[float]) -> list[int]:
    """How many records had no outcome at each moment; both sequences are in order."""
    return [bisect_right(appended, moment) - bisect_right(judged, moment) for moment in at]


def grows(lag: Sequence[float], rate: float, seconds: float) -> bool:
    """Whether lag noted at equal distances over so many seconds goes up.

    The medians of the first and the last third are compared. A worker that falls behind by 2 % of
    the rate has a growing lag; a tenth of a second's records are noise.
    """
    third = max(1, len(lag) // 3)
    growth = (middle(lag[-third:]) - middle(lag[:third])) / rate
    return growth > max(_GROWTH_SECONDS, _GROWTH_SHARE * seconds * 2 / 3)


class Searched(NamedTuple):
    """The highest rate that was good, the lowest that was bad, and the number of steps.

    0 where not even `LOWEST` was good.
    """

    good: float
    bad: float
    steps: int


def search(sustains: Callable[[float], bool], first: float) -> Searched:
    """A quarter up or half down from `first` until one is good and one bad, then bisection."""
    good, bad, steps, rate = 0.0, float("inf"), 0, first
    while bad > PRECISION * good and bad > LOWEST:
        steps += 1
        if sustains(rate):
            good = rate
        else:
            bad = rate
        if bad == float("inf"):
            rate = good * _STEP
        elif good == 0:
            rate = max(LOWEST, bad / 2)
        else:
            rate = (good * bad) ** 0.5
    return Searched(good, bad, steps)
