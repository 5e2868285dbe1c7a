"""Reads the messages of the accepted topics as far as the index needs them.

What is a row says `worker.accepted`, for the sink as well. Anything else is skipped as if it were
not there; the rows around it count as ever.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

from worker.accepted import Foreign, Refused, read_rows
from worker.core.known import address_digest
from worker.stream import Message

Indexed = Literal["users", "matches"]
"""The entities that others refer to: those the index is made of."""

_SUFFIXES: Final[dict[str, Indexed]] = {"users": "users", "matches": "matches"}


class Latest(NamedTuple):
    """The outcome of a run of messages: each key's latest row, None = deleted."""

    users: dict[bytes, bytes | None]
    """The address, as a digest, by the user's id."""
    matches: dict[bytes, bool]
    """Whether it is there, by its id."""
    refused: list[Refused]


def indexed_entity(topic: str) -> Indexed:
    """The entity of `<prefix>.accepted.users` or `<prefix>.accepted.matches`.

    Raises ValueError for any other topic: the index must not be fed with it.
    """
    prefix, _, suffix = topic.rpartition(".accepted.")
    entity = _SUFFIXES.get(suffix)
    if not prefix or entity is None:
        raise ValueError(f"the index is not made of topic {topic}")
    return entity


def id_of(key: bytes) -> bytes:
    """The 16 bytes of an id, given as a canonical key."""
    return unhexlify(key.replace(b"-", b""))


def address_of(row: Any) -> bytes:
    """The digest of the address in a user's row."""
    return address_digest(row.email)


def latest_rows(messages: Sequence[Message], partitions: Mapping[str, int]) -> Latest:
    """What the messages come to, given that those of one partition are in order.

    A key lies in one partition, so its last message here is its latest: earlier ones need not
    be applied. `partitions` is as in `read_rows`. Raises ValueError for a message of a topic that
    the index is not made of.
    """
    users: dict[bytes, bytes | None] = {}
    matches: dict[bytes, bool] = {}
    refused: list[Refused] = []
    for topic in {message.topic for message in messages}:
        indexed_entity(topic)
    for rule, found in read_rows(messages, partitions):
        is_user = rule.entity.name == "users"
        for message, row in found:
            if isinstance(row, Foreign):
                refused.append(Refused(message, row))
                continue
            id_ = id_of(message.key or b"")
            if is_user:
                users[id_] = None if row is None else address_of(row)
            else:
                matches[id_] = row is not None
    return Latest(users, matches, refused)
