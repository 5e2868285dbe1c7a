"""Fields that no column is for: they are dropped, and named, so that schema drift is seen.

Names alone, never values; what others made up is bounded in number and length.
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
    """The first 50 fields that are no columns, each as it can be shown in 64 characters."""
    unknown = (field for field in fields if field not in columns)
    return tuple(shown(field, LONGEST_NAME) for field in islice(unknown, MOST_NAMED))


class UnknownNames:
    """The names of unknown fields by entity, at most 50 each, and how many records had them."""

    def __init__(self) -> None:
        self.by_entity: dict[str, Counter[str]] = {}

    def note(self, entity: str, names: Iterable[str]) -> None:
        """One record more has these; what is beyond the 50th name of an entity is not kept."""
        for name in names:
            found = self.by_entity.setdefault(entity, Counter())
            if name in found or len(found) < MOST_NAMED:
                found[name] += 1

    def names(self) -> Mapping[str, list[str]]:
        """The names alone, in the order in which they came."""
        return {entity: list(found) for entity, found in self.by_entity.items()}
