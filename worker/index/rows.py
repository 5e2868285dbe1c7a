"""Reads the messages of the accepted topics as far as the index needs them.

Only this project writes those topics, so an unreadable row is somebody's mishap: it is skipped
as if it were not there, and counted; the rows around it count as ever.
"""

from __future__ import annotations

from binascii import unhexlify
from collections.abc import Sequence
from typing import Final, Literal, NamedTuple

import msgspec

from worker.brokers.contract import Message
from worker.index.contract import address_digest

Indexed = Literal["users", "matches"]
"""The entities that others refer to: those the index is made of."""

_SUFFIXES: Final[dict[str, Indexed]] = {"users": "users", "matches": "matches"}
_HYPHEN: Final = ord("-")


class _Holder(msgspec.Struct, gc=False):
    """The only field of a user's row that the index needs; the decoder skips the others."""

    email: str


class _Object(msgspec.Struct, gc=False):
    """Any JSON object: of a match only its being there counts."""


_holder: Final = msgspec.json.Decoder(_Holder).decode
_object: Final = msgspec.json.Decoder(_Object).decode

# What msgspec raises on bytes that are no such row: the last two are no MsgspecError.
_UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class Latest(NamedTuple):
    """The outcome of a run of messages: each key's latest readable row, None = deleted."""

    users: dict[bytes, bytes | None]
    """The address, as a digest, by the user's id."""
    matches: dict[bytes, bool]
    """Whether it is there, by its id."""
    unreadable: list[Message]


def indexed_entity(topic: str) -> Indexed:
    """The entity of `<prefix>.accepted.users` or `<prefix>.accepted.matches`.

    Raises ValueError for any other topic: the index must not be fed with it.
    """
    prefix, _, suffix = topic.rpartition(".accepted.")
    entity = _SUFFIXES.get(suffix)
    if not prefix or entity is None:
        raise ValueError(f"the index is not made of topic {topic}")
    return entity


def read_id(key: bytes | None) -> bytes | None:
    """The 16 bytes of an id in canonical text (any case); None if it is none."""
    if key is None or len(key) != 36 or not key[8] == key[13] == key[18] == key[23] == _HYPHEN:
        return None
    try:
        return unhexlify(key.replace(b"-", b""))
    except ValueError:
        return None


def read_address(row: bytes) -> bytes | None:
    """The digest of the address in a user's row; None if the row is unreadable."""
    try:
        return address_digest(_holder(row).email)
    except _UNDECODABLE:
        return None


def is_row(row: bytes) -> bool:
    """Whether this can be a match's row: a JSON object. The rest of it does not count here."""
    try:
        _object(row)
    except _UNDECODABLE:
        return False
    return True


def latest_rows(messages: Sequence[Message]) -> Latest:
    """What the messages come to, given that those of one partition are in order.

    A key lies in one partition, so its last message here is its latest: earlier ones need not
    be applied. Raises ValueError for a message of a topic that the index is not made of.
    """
    users: dict[bytes, bytes | None] = {}
    matches: dict[bytes, bool] = {}
    unreadable: list[Message] = []
    topic, entity = "", "users"
    for message in messages:
        if message.topic != topic:
            topic, entity = message.topic, indexed_entity(message.topic)
        id_, row = read_id(message.key), message.value
        if id_ is None:
            unreadable.append(message)
        elif entity == "users":
            address = None if row is None else read_address(row)
            if address is None and row is not None:
                unreadable.append(message)
            else:
                users[id_] = address
        elif row is None or is_row(row):
            matches[id_] = row is not None
        else:
            unreadable.append(message)
    return Latest(users, matches, unreadable)
