"""Two clocks: a steady (monotonic) one to measure waiting, and the wall clock for timestamps.

The wall clock can be set while a process runs: it jumps both ways. So nothing waits by it. It only
gives the timestamps that leave the process (append times, `first_read`, `accepted_at`). A timestamp
that is read back is clamped to now (`worker.core.moments.restored`), so it is never in the future.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from worker.core.moments import Moment

__all__ = ["STEP_MS", "Clock", "Moment", "StepWatch"]

STEP_MS: Final = 2_000
"""The wall clock counts as set if, between two checks, it moved by this much more or less than the
steady clock. Less is drift."""


class Clock:
    """The clocks of a process, in milliseconds. Tests pass their own."""

    def __init__(
        self, wall: Callable[[], int] | None = None, steady: Callable[[], int] | None = None
    ) -> None:
        self.wall: Callable[[], int] = wall or _wall
        self.steady: Callable[[], int] = steady or _steady

    def now(self) -> Moment:
        """The time on both clocks."""
        return Moment(self.wall(), self.steady())


class StepWatch:
    """Detects that the wall clock was set. Call `step` more often than once a minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = self._now()

    def step(self) -> int:
        """By how many milliseconds the wall clock was set since the last call; else 0."""
        offset = self._now()
        moved, self._offset = offset - self._offset, offset
        return moved if abs(moved) >= STEP_MS else 0

    def _now(self) -> int:
        now = self._clock.now()
        return now.wall - now.steady


def _wall() -> int:
    return time.time_ns() // 1_000_000


def _steady() -> int:
    return time.monotonic_ns() // 1_000_000
