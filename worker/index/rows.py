"""Decodes the messages of the accepted topics for the index.

`worker.accepted` defines what counts as a row, for the sink too. Other messages are refused and
leave the state of their key unchanged.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from worker.accepted import Foreign, ForeignMessage, read_rows
from worker.core.known import address_digest
from worker.stream import Message

Indexed = Literal["users", "matches"]
"""The entities that other records refer to: the content of the index."""

_SUFFIXES: Final[dict[str, Indexed]] = {"users": "users", "matches": "matches"}


class Latest(NamedTuple):
    """The latest row of each key in a run of messages, and the refused messages."""

    users: dict[bytes, bytes | None]
    """The `address_digest` by user id; None if the user was deleted."""
    matches: dict[bytes, bool]
    """Whether the match exists, by match id; False if it was deleted."""
    refused: list[ForeignMessage]


def indexed_entity(topic: str) -> Indexed:
    """The entity of `<prefix>.accepted.users` or `<prefix>.accepted.matches`.

    Raises ValueError for any other topic, which must not feed the index.
    """
    prefix, _, suffix = topic.rpartition(".accepted.")
    entity = _SUFFIXES.get(suffix)
    if not prefix or entity is None:
        raise ValueError(f"the index is not made of topic {topic}")
    return entity


def id_of(key: bytes) -> bytes:
    """The 16 bytes of the id in a canonical key."""
    return unhexlify(key.replace(b"-", b""))


def address_of(row: Any) -> bytes:
    """The digest of the address in a user's row."""
    return address_digest(row.email)


def latest_rows(messages: Sequence[Message], partitions: Mapping[str, int]) -> Latest:
    """The latest row of each key; the messages of each partition must be in offset order.

    All messages of a key are in one partition, so its last message here is the latest; earlier
    messages need not be applied. `partitions` is as in `read_rows`. Raises ValueError for a
    message of any other topic than accepted users or matches.
    """
    users: dict[bytes, bytes | None] = {}
    matches: dict[bytes, bool] = {}
    refused: list[ForeignMessage] = []
    for topic in {message.topic for message in messages}:
        indexed_entity(topic)
    for rule, found in read_rows(messages, partitions):
        is_user = rule.entity.name == "users"
        for message, row in found:
            if isinstance(row, Foreign):
                refused.append(ForeignMessage(message, row))
                continue
            id_ = id_of(message.key or b"")
            if is_user:
                users[id_] = None if row is None else address_of(row)
            else:
                matches[id_] = row is not None
    return Latest(users, matches, refused)
