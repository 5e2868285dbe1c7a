"""Waits: backoff with jitter, intervals, a wait that an event ends, services side by side."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Coroutine
from typing import Any


class Backoff:
    """Doubles the delay from `first` to `longest` seconds; waits a random 50 to 100 % of it.

    `clock` is steady, in milliseconds.
    """

    def __init__(self, clock: Callable[[], int], first: float = 0.2, longest: float = 5.0) -> None:
        self._clock = clock
        self._first = first
        self._longest = longest
        self._wait = 0.0
        self._until = 0

    def ready(self) -> bool:
        """Whether a retry is due."""
        return self._clock() >= self._until

    def failed(self) -> float:
        """Record a failure; returns the seconds to wait."""
        self._wait = min(self._longest, self._wait * 2 or self._first)
        wait = self._wait * random.uniform(0.5, 1)
        self._until = self._clock() + int(wait * 1000)
        return wait

    def succeeded(self) -> None:
        """Reset the delay, once `longest` seconds have passed since the last wait ended.

        An operation that alternates between success and failure therefore keeps growing delays.
        """
        if self._clock() >= self._until + int(self._longest * 1000):
            self._wait = 0.0

    def untried(self) -> None:
        """Record that nothing was tried that could fail: the time before a reset begins anew."""
        self._until = max(self._until, self._clock())


class Interval:
    """Limits work to once in `milliseconds`. `clock` is steady, in milliseconds."""

    def __init__(self, clock: Callable[[], int], milliseconds: int) -> None:
        self._clock = clock
        self._milliseconds = milliseconds
        self._began = -milliseconds

    def begin_if_over(self) -> bool:
        """Begin the next interval if the last one is over; whether it was. The first one was."""
        now = self._clock()
        is_over = now - self._began >= self._milliseconds
        if is_over:
            self._began = now
        return is_over


async def wait(event: asyncio.Event, seconds: float) -> None:
    """Wait for the event, but at most so long."""
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return


async def together(stop: asyncio.Event, *services: Coroutine[Any, Any, None]) -> None:
    """Run services side by side. When one ends or fails, set `stop` and wait for the others.

    If several fail, raises the exception of the first in the order of `services`.
    """
    tasks = [asyncio.ensure_future(service) for service in services]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.set()
        results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
