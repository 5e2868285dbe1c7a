"""Clocks that tests set."""

from __future__ import annotations

from worker.clock import Clock

START = 1_767_225_600_000  # 2026-01-01T00:00:00Z


class SettableClock(Clock):
    """Stands still until a test moves it."""

    def __init__(self, wall: int = START, steady: int = 1_000_000) -> None:
        super().__init__(lambda: self._wall, lambda: self._steady)
        self._wall = wall
        self._steady = steady

    def advance(self, milliseconds: int) -> None:
        """Time passes, on both clocks."""
        self._wall += milliseconds
        self._steady += milliseconds

    def step(self, milliseconds: int) -> None:
        """Somebody sets the wall clock; no time passes."""
        self._wall += milliseconds
