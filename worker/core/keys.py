"""Keys of records: their canonical form, and how message keys are read.

Rules: docs/contract.md, "Entities and keys".
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Collection
from struct import iter_unpack

from schemas import Entity, Kind
from worker.core.rules import read_uuid

_LONGEST_INTEGER = 16  # digits of 2^53 - 1


def form_of(entity: Entity) -> str:
    """The form of an entity's key, in column names: `milestone_id:user_id`."""
    return ":".join(entity.key)


def read_key(entity: Entity, key: bytes) -> bytes | None:
    """The canonical form of a message key; None if it is not a key of the entity.

    UUIDs may be in any case, integers are decimal. A composite key is written `a:b`.
    """
    try:
        parts = key.decode().split(":")
    except UnicodeDecodeError:
        return None
    if len(parts) != len(entity.key):
        return None
    canonical = []
    for name, part in zip(entity.key, parts, strict=True):
        column = entity.column(name)
        if column.kind is Kind.UUID:
            text = read_uuid(part)
        else:
            text = _read_integer(part, column.highest or 0)
        if text is None:
            return None
        canonical.append(text)
    return ":".join(canonical).encode()


def _read_integer(text: str, highest: int) -> str | None:
    if not (text.isascii() and text.isdigit() and len(text) <= _LONGEST_INTEGER):
        return None
    value = int(text)
    return str(value) if 1 <= value <= highest else None


def key_of(entity: Entity, values: dict[str, object]) -> bytes | None:
    """The canonical key of a record from its checked values; None if a part is missing."""
    parts = [values.get(name) for name in entity.key]
    return None if None in parts else ":".join(map(str, parts)).encode()


def id_bytes(uuid: str) -> bytes:
    """The 16 bytes of a UUID in canonical form: its id in the index."""
    return bytes.fromhex(uuid.replace("-", ""))


def ids_of(uuids: Collection[str]) -> list[bytes]:
    """`id_bytes` of each UUID, cheaper than one call each."""
    joined = unhexlify("".join(uuids).encode().translate(None, b"-"))
    return [id_ for (id_,) in iter_unpack("16s", joined)]
