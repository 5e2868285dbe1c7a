"""Accepted messages as the sink reads them. Pure.

The accepted topics are the project's own, and still the sink believes nothing: a message that is
no canonical row of its key is set aside (docs/contract.md, "State on disk"), and never a crash.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import attrgetter
from typing import Any, Final

import msgspec

from schemas import ENTITIES, Entity
from worker.core.keys import id_bytes, read_key

REFERRED: Final = frozenset(
    column.refers_to for entity in ENTITIES.values() for column in entity.columns
) - {None}
"""The entities that others refer to: users and matches."""


class Unreadable(msgspec.Struct, frozen=True):
    """Why a message is no row. The reason names no content."""

    reason: str


class RowReader:
    """Reads the accepted messages of one entity."""

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self.referred = entity.name in REFERRED
        self._decode = msgspec.json.Decoder(entity.struct).decode
        self._key = _key_reader(entity)
        self._users = [attrgetter(c.name) for c in entity.columns if c.refers_to == "users"]

    def read(self, key: bytes | None, value: bytes | None) -> bytes | Unreadable:
        """Whether the message is a row, or a deletion, of exactly that canonical key.

        If so, the 16-byte ids of the users that the row refers to, joined; they are gathered for
        entities that are themselves referred to, since only there they are kept.
        """
        if key is None:
            return Unreadable("no key")
        if value is None:
            return b"" if read_key(self.entity, key) == key else Unreadable("key not canonical")
        if b"\n" in value:  # rows are handed on as lines
            return Unreadable("row not canonical")
        try:
            row = self._decode(value)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return Unreadable("row does not decode")
        if self._key(row).encode() != key:
            return Unreadable("key is not the row's")
        if self.referred and self._users:
            return b"".join([id_bytes(column(row)) for column in self._users])
        return b""


def _key_reader(entity: Entity) -> Callable[[Any], str]:
    if len(entity.key) == 1:
        return attrgetter(*entity.key)
    parts = [attrgetter(name) for name in entity.key]
    return lambda row: ":".join([str(part(row)) for part in parts])
