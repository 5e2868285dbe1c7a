"""Calls to a disk that hang: frozen, or on a server that is away.

No time-out ends such a call, and nothing can cancel the thread that makes it. So it is noticed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

HANG_SECONDS: Final = 20.0
"""A call that has not moved for so long hangs."""


class Calls:
    """The calls to the disk of one directory that have not returned. Any thread may use it."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`clock` is a steady one, in seconds."""
        self._root = root
        self._clock = clock
        self._moved: dict[object, float] = {}
        """By call the moment at which it began, or moved last."""

    @contextmanager
    def running(self) -> Iterator[Callable[[], None]]:
        """Watch the calls made in the block; what it gives says that they get on."""
        call = object()

        def moved() -> None:
            self._moved[call] = self._clock()

        moved()
        try:
            yield moved
        finally:
            del self._moved[call]

    def hang(self) -> str | None:
        """In one line that a call hangs, and for how long; None where none does."""
        now = self._clock()
        seconds = max((now - moved for moved in list(self._moved.values())), default=0.0)
        if seconds < HANG_SECONDS:
            return None
        return f"the disk of {self._root} has not answered for {seconds:.0f} s"
