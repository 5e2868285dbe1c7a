"""The message key for sending a record, where the record contains a readable one."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas import Entity
from worker.core.keys import read_key


class KeyReader:
    """Reads the key from one entity's records without judging them."""

    def __init__(self, entity: Entity) -> None:
        self._entity = entity
        fields: list[Any] = [(name, Any, None) for name in entity.key]
        self._decode = msgspec.json.Decoder(msgspec.defstruct("Key", fields)).decode

    def read(self, value: bytes | None) -> bytes | None:
        """The canonical key; None if the record has no readable key: send it without one."""
        try:
            record = self._decode(value or b"")
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None
        parts = [getattr(record, name) for name in self._entity.key]
        if not all(isinstance(part, str | int) for part in parts):
            return None
        return read_key(self._entity, ":".join(map(str, parts)).encode())
