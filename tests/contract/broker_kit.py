"""What the fixtures of a broker give to tests, a clock that they set, and names of their own."""

from __future__ import annotations

import time
import uuid
from collections.abc import Awaitable, Callable

from worker.brokers.contract import Broker
from worker.stream import Partition

RETENTION_MS = 3_600_000

Connect = Callable[[], Broker]
Another = Callable[[], Awaitable[Broker]]
MakeTopic = Callable[..., Awaitable[str]]
DeleteTopic = Callable[[str], Awaitable[None]]
Truncate = Callable[[Partition, int], Awaitable[None]]
Expire = Callable[[Partition], Awaitable[None]]


class Clock:
    """Milliseconds: `now` put forward is time that passes, put back somebody set the clock."""

    def __init__(self) -> None:
        self._wall = time.time_ns() // 1_000_000
        self._steady = time.monotonic_ns() // 1_000_000

    @property
    def now(self) -> int:
        return self._wall

    @now.setter
    def now(self, wall: int) -> None:
        self._steady += max(0, wall - self._wall)
        self._wall = wall

    def __call__(self) -> int:
        return self._wall

    def wall(self) -> int:
        return self._wall

    def steady(self) -> int:
        return self._steady


def unique(what: str) -> str:
    """A name that no other test has."""
    return f"{what}-{uuid.uuid4().hex}"
