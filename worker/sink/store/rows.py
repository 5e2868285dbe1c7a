"""What the store keeps beside the bytes of a row: the users that the row refers to. Pure."""

from __future__ import annotations

from operator import attrgetter
from typing import Any, Final

from schemas import ENTITIES, Entity
from worker.core.keys import id_bytes

REFERRED: Final = frozenset(
    column.refers_to for entity in ENTITIES.values() for column in entity.columns
) - {None}
"""The entities that others refer to: users and matches."""


class Referring:
    """How rows of one entity refer to users."""

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self.referred = entity.name in REFERRED
        self._users = [attrgetter(c.name) for c in entity.columns if c.refers_to == "users"]

    def users(self, row: Any) -> bytes:
        """The 16-byte ids of the users that a row refers to, joined.

        Empty for entities that no other entity refers to: the store keeps no ids for them.
        """
        if self.referred and self._users:
            return b"".join([id_bytes(column(row)) for column in self._users])
        return b""
