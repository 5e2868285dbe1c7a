"""What several partitions hold, in the order of its time, without holding all of it."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final, Generic, TypeVar

from worker.stream import Partition

Item = TypeVar("Item")

_ENOUGH: Final = 1_000
"""Items of one partition that wait for those of others: more are not asked for."""


class InTime(Generic[Item]):
    """Merges partitions that are each in order, while more is still to come of some.

    What comes after the end of a partition's history is passed on as it comes.
    """

    def __init__(self, partitions: Iterable[Partition]) -> None:
        """These have a history; of each, `ended` says when it has been read."""
        self._waiting: dict[Partition, deque[tuple[datetime, Item]]] = {
            partition: deque() for partition in partitions
        }
        self._open = set(self._waiting)

    def full(self) -> set[Partition]:
        """Those that need not be read now. Never all that still have a history to be read."""
        return {place for place, waiting in self._waiting.items() if len(waiting) >= _ENOUGH}

    def add(self, partition: Partition, at: datetime, item: Item) -> None:
        """The next item of a partition."""
        self._waiting[partition].append((at, item))

    def ended(self, partitions: Iterable[Partition]) -> None:
        """The history of these has been read, or cannot be read on."""
        self._open -= set(partitions)

    def due(self) -> Iterator[Item]:
        """Everything before which nothing can come any more. Read all of it before going on."""
        while all(self._waiting[partition] for partition in self._open):
            begun = [waiting for waiting in self._waiting.values() if waiting]
            if not begun:
                return
            yield min(begun, key=lambda waiting: waiting[0][0]).popleft()[1]
