"""Moments on two clocks, and stamps that are read back. Pure; `worker.clock` tells the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Moment(NamedTuple):
    """One moment on both clocks, in milliseconds."""

    wall: int
    """Since 1970, as this machine believes: for stamps."""
    steady: int
    """Since some moment in the past: for waiting. Means nothing to any other process."""


def restored(stamps: Sequence[int], now: Moment) -> list[Moment]:
    """Moments of the past, of which only stamps are left, on the clocks of now.

    They happened in the order given. So where a stamp is later than one after it, a clock was
    wrong, and the later one counts: no wait ends later because of it.
    """
    latest = now
    moments = []
    for stamp in reversed(stamps):
        wall = min(stamp, latest.wall)
        latest = Moment(wall, now.steady - (now.wall - wall))
        moments.append(latest)
    return moments[::-1]
