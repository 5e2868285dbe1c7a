"""Copies of parked records that the log holds although their records will be read.

They are left where the checkpoint that went with them is lost.
"""

from __future__ import annotations

from collections.abc import Collection
from itertools import takewhile

from worker.core.reading import Reading


class UnneededCopies:
    """By entity, the ordinals of these records. Add those of an entity in ascending order."""

    def __init__(self) -> None:
        # Dicts without values are sets that keep insertion order.
        self._ordinals: dict[str, dict[int, None]] = {}

    def add(self, entity: str, ordinal: int) -> None:
        """Add a record that will be read."""
        self._ordinals.setdefault(entity, {})[ordinal] = None

    def of(self, entity: str) -> Collection[int]:
        """The ordinals of an entity."""
        return self._ordinals.get(entity, {}).keys()

    def remove(self, entity: str, ordinal: int) -> None:
        """Remove a record: it has been read. KeyError if it is not there."""
        del self._ordinals[entity][ordinal]

    def counts(self) -> dict[str, int]:
        """How many copies there are, by entity."""
        return {entity: len(ordinals) for entity, ordinals in self._ordinals.items()}

    def unread(self, reading: Reading) -> int:
        """How many copies there are of records that have never been read.

        A record before the position was skipped as damaged, and keeps its copy.
        """
        many = 0
        for entity, ordinals in self._ordinals.items():
            first = reading.ordinal(entity, reading.reached.get(entity, 0))
            many += len(ordinals) - sum(1 for _ in takewhile(first.__gt__, ordinals))
        return many
