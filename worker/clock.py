"""Two clocks: a steady one that measures waiting, and the wall clock for stamps.

The wall clock can be set: it jumps, both ways, while a process runs. So nothing waits by it. What
leaves the process (append times, `first_read`, `accepted_at`) is stamped with it, and a stamp that
is read back is an age of at least nothing (`restored`), never a wait that has yet to begin.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from worker.core.moments import Moment

__all__ = ["STEP_MS", "Clock", "Moment", "StepWatch"]

STEP_MS: Final = 2_000
"""The wall clock has been set, and not just drifted, where it moved by so much more or less than
the steady one between two looks."""


class Clock:
    """The clocks of a process, in milliseconds. Tests give their own."""

    def __init__(
        self, wall: Callable[[], int] | None = None, steady: Callable[[], int] | None = None
    ) -> None:
        self.wall: Callable[[], int] = wall or _wall
        self.steady: Callable[[], int] = steady or _steady

    def now(self) -> Moment:
        """Both at once."""
        return Moment(self.wall(), self.steady())


class StepWatch:
    """Finds out that the wall clock has been set. Look at it more often than once a minute."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset = self._now()

    def step(self) -> int:
        """By how many milliseconds the wall clock was set since the last call; 0 if it was not."""
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
