"""Unknown fields: they are dropped, and reported by name so that schema drift is visible.

Names only, never values. Senders choose the names, so their number and length are bounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from itertools import islice
from typing import Final

from worker.core.shown import shown

MOST_NAMED: Final = 50
LONGEST_NAME: Final = 64


def unknown_names(fields: Iterable[str], columns: Container[str]) -> tuple[str, ...]:
    """The first 50 fields that are not columns, each escaped and truncated to 64 characters."""
    unknown = (field for field in fields if field not in columns)
    return tuple(shown(field, LONGEST_NAME) for field in islice(unknown, MOST_NAMED))


class UnknownNames:
    """Unknown field names, at most 50 per entity, with the number of records that have them."""

    def __init__(self) -> None:
        self.by_entity: dict[str, Counter[str]] = {}

    def note(self, entity: str, names: Iterable[str]) -> None:
        """Count the names of one record; names beyond the first 50 of an entity are not kept."""
        for name in names:
            found = self.by_entity.setdefault(entity, Counter())
            if name in found or len(found) < MOST_NAMED:
                found[name] += 1

    def names(self) -> Mapping[str, list[str]]:
        """The names without counts, in the order of first occurrence."""
        return {entity: list(found) for entity, found in self.by_entity.items()}
