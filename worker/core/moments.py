"""Times on two clocks, and past times restored from stamps. Pure; `worker.clock` tells the time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple


class Moment(NamedTuple):
    """One moment on both clocks, in milliseconds."""

    wall: int
    """Since 1970, by this machine's clock: for stamps."""
    steady: int
    """Since an arbitrary moment in the past: for waiting. Meaningless to any other process."""


def restored(stamps: Sequence[int], now: Moment) -> list[Moment]:
    """Past moments on the current clocks, from the wall-clock stamps that were saved.

    The stamps are in order of occurrence. A stamp later than its successor comes from a wrong
    clock: the successor's time replaces it. So no wait ends later because of a wrong clock.
    """
    latest = now
    moments = []
    for stamp in reversed(stamps):
        wall = min(stamp, latest.wall)
        latest = Moment(wall, now.steady - (now.wall - wall))
        moments.append(latest)
    return moments[::-1]
