"""Back-off with jitter: how long to wait before something that failed is tried again."""

from __future__ import annotations

import random
from collections.abc import Callable


class Backoff:
    """Doubles from `first` to `longest` seconds; each wait is a random half to whole of it.

    `clock` is a steady one, in milliseconds.
    """

    def __init__(self, clock: Callable[[], int], first: float = 0.2, longest: float = 5.0) -> None:
        self._clock = clock
        self._first = first
        self._longest = longest
        self._wait = 0.0
        self._until = 0

    def ready(self) -> bool:
        """Whether it may be tried now."""
        return self._clock() >= self._until

    def failed(self) -> float:
        """Note a failure; the seconds to wait."""
        self._wait = min(self._longest, self._wait * 2 or self._first)
        wait = self._wait * random.uniform(0.5, 1)
        self._until = self._clock() + int(wait * 1000)
        return wait

    def succeeded(self) -> None:
        """Begin anew with short waits, once nothing has failed for as long as the longest.

        What works now and then still fails: without that, its waits would never grow.
        """
        if self._clock() >= self._until + int(self._longest * 1000):
            self._wait = 0.0
