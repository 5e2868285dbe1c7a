"""Detects partitions of which the broker delivers nothing while it answers for others.

If the framing of a batch is damaged, a broker delivers nothing behind it: its responses hold no
records, or an error that aiokafka passes over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from worker.stream import Partition

STALL_SECONDS: Final = 20.0
"""How long a partition may deliver nothing."""
_LOOK_SECONDS: Final = 1.0
"""The interval between two looks; also the most that one look counts. While the caller does not
read, nothing is fetched."""


class Stalls:
    """Measures how long partitions have delivered nothing. `clock` is steady, in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._looked = clock()
        self._seen: dict[Partition, tuple[object, float]] = {}

    @property
    def due(self) -> bool:
        """Whether to look now. A look visits every partition, so looks are a second apart.

        While a partition stalls, every read looks: a delivery ends the stall at once.
        """
        return bool(self.stalled()) or self._clock() - self._looked >= _LOOK_SECONDS

    def update(
        self, marks: Iterable[tuple[Partition, object]], *, answers: bool
    ) -> list[Partition]:
        """Record a mark for each partition being read; returns the newly stalled partitions.

        A mark changes with each delivery. None means that fetched records are at hand. `answers`
        is whether the broker has answered since the last look: that it is silent for all is an
        outage, and that time does not count.
        """
        now = self._clock()
        passed = min(_LOOK_SECONDS, now - self._looked) if answers else 0.0
        self._looked = now
        fresh = []
        for partition, mark in marks:
            before, seconds = self._seen.get(partition, (None, 0.0))
            after = seconds + passed if mark is not None and mark == before else 0.0
            self._seen[partition] = (mark, after)
            if seconds < STALL_SECONDS <= after:
                fresh.append(partition)
        return fresh

    def retain(self, partitions: Iterable[Partition]) -> None:
        """Forget all other partitions."""
        self._seen = {p: self._seen[p] for p in partitions if p in self._seen}

    def stalled(self) -> list[Partition]:
        """The partitions that have delivered nothing for too long."""
        return [p for p, (_, seconds) in self._seen.items() if seconds >= STALL_SECONDS]
