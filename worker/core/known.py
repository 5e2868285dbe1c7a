"""The interface of the index; `MemoryIndex` and `IndexStore` implement it.

The index is a pure function of the accepted topics of users and matches: of the last message of
each key in its partition. The order in which partitions are read makes no difference
(docs/contract.md, "References"). An address therefore keeps *all* users whose latest row holds it.
Only a user's own update or deletion removes the user.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple, Protocol


class Known(Protocol):
    """Look-ups. An id is the 16 bytes of its UUID."""

    def user(self, id: bytes) -> bool:  # noqa: A002 -- the field's own name
        """Whether a user with that id is known."""

    def match(self, id: bytes) -> bool:  # noqa: A002 -- the field's own name
        """Whether a match with that id is known."""

    def unknown_users(self, ids: Iterable[bytes]) -> list[bytes]:
        """The ids that belong to no known user."""

    def unknown_matches(self, ids: Iterable[bytes]) -> list[bytes]:
        """The ids that belong to no known match."""

    def taken(self, address: bytes, user: bytes) -> bool:
        """Whether a user other than `user` holds the address, given as `address_digest`."""

    def holders(self, address: bytes) -> tuple[bytes, ...]:
        """The users that hold the address: at most one, except while the index catches up.

        In no promised order.
        """


class IndexDelta(NamedTuple):
    """The ids that were unknown before an update of the index and are known after it."""

    users: list[bytes]
    matches: list[bytes]


def address_digest(email: str) -> bytes:
    """The 16-byte digest of an address in canonical form (lower case).

    Two addresses share a digest with a probability of 2^-128. Making such a pair on purpose takes
    at least 2^64 attempts. The address itself is never stored.
    """
    return blake2b(email.encode(), digest_size=16).digest()
