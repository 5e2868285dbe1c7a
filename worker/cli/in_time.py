"""Merges partitions into order of time, without all of their history in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import Final, Generic, TypeVar

from worker.stream import Partition

Item = TypeVar("Item")

_ENOUGH: Final = 1_000
"""Number of waiting items at which a partition needs no further reading."""


class InTime(Generic[Item]):
    """Merges partitions that are each in order of time, while they are still being read.

    Once the history of all partitions has been read, items pass through as they arrive.
    """

    def __init__(self, partitions: Iterable[Partition]) -> None:
        """`partitions` have a history, until `ended` says that it has been read."""
        self._waiting: dict[Partition, deque[tuple[datetime, Item]]] = {
            partition: deque() for partition in partitions
        }
        self._open = set(self._waiting)

    def full(self) -> set[Partition]:
        """The partitions that need no reading now: never all of those with unread history."""
        return {
            partition for partition, waiting in self._waiting.items() if len(waiting) >= _ENOUGH
        }

    def add(self, partition: Partition, at: datetime, item: Item) -> None:
        """Add the next item of a partition."""
        self._waiting[partition].append((at, item))

    def ended(self, partitions: Iterable[Partition]) -> None:
        """Note that the history of these partitions has been read, or cannot be read further."""
        self._open -= set(partitions)

    def due(self) -> Iterator[Item]:
        """The items that no unread item can precede, in order. Exhaust it before the next call."""
        while all(self._waiting[partition] for partition in self._open):
            begun = [waiting for waiting in self._waiting.values() if waiting]
            if not begun:
                return
            yield min(begun, key=lambda waiting: waiting[0][0]).popleft()[1]
