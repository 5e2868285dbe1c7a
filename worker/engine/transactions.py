"""Transactions of others that stay open: nobody can read what lies behind them. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NamedTuple

from worker.stream import Partition

_OPEN_MS: Final = 15_000
"""A transaction that holds up a partition for so long is told of."""


class Blocked(NamedTuple):
    """So many records lie behind a transaction that has been open at an offset for so long."""

    place: Partition
    offset: int
    records: int
    seconds: int

    def told(self) -> dict[str, object]:
        """For a log line."""
        return {
            "topic": self.place.topic,
            "partition": self.place.number,
            "offset": self.offset,
            "count": self.records,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        return (
            f"{self.records} records of {self.place.topic}/{self.place.number} are behind a"
            f" transaction that has been open at offset {self.offset} for {self.seconds} s:"
            " end it where it was begun"
        )


class OpenTransactions:
    """Notes how far partitions can be read. `clock` is a steady one, in milliseconds."""

    def __init__(self, clock: Callable[[], int]) -> None:
        self._clock = clock
        self._open: dict[Partition, tuple[int, int]] = {}
        """Where a partition goes no further, and since when: more lies behind, not committed."""

    def look(self, ends: Mapping[Partition, tuple[int, int]]) -> Blocked | None:
        """The one that has stood still longest, if it is worth telling.

        `ends`: how far each can be read, and where it really ends.
        """
        now = self._clock()
        before = self._open
        self._open = {
            place: before[place] if before.get(place, (-1, 0))[0] == stable else (stable, now)
            for place, (stable, end) in ends.items()
            if end > stable
        }
        blocked = {place: now - since for place, (_, since) in self._open.items()}
        if max(blocked.values(), default=0) < _OPEN_MS:
            return None
        place = max(blocked, key=lambda place: blocked[place])
        stable, end = ends[place]
        return Blocked(place, stable, end - stable, blocked[place] // 1000)
