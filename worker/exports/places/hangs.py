"""Detects calls to a disk that hang: the disk is frozen, or its server is away.

No time-out ends such a call, and its thread cannot be cancelled. So the hang is reported.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

HANG_SECONDS: Final = 20.0
"""A call without progress for this long counts as hanging."""


class Calls:
    """The pending calls to the disk of one directory. Thread-safe."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is monotonic, in seconds."""
        self._root = root
        self._clock = clock
        self._moved: dict[object, float] = {}
        """By call, when it began or last made progress."""

    @contextmanager
    def running(self) -> Iterator[Callable[[], None]]:
        """Watch the calls made in the block. Yields a function that reports their progress."""
        call = object()

        def moved() -> None:
            self._moved[call] = self._clock()

        moved()
        try:
            yield moved
        finally:
            del self._moved[call]

    def hang(self) -> str | None:
        """One line that says that a call hangs, and for how long; None if none does."""
        now = self._clock()
        seconds = max((now - moved for moved in list(self._moved.values())), default=0.0)
        if seconds < HANG_SECONDS:
            return None
        return f"the disk of {self._root} has not answered for {seconds:.0f} s"
