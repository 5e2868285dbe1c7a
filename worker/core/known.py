"""What the index answers; `MemoryIndex` and `IndexStore` fulfil it alike.

The index is a pure function of the accepted topics of users and matches: of each key's latest
message, the last one in its partition. In which order partitions are read makes no difference
(docs/contract.md, "References"): an address therefore keeps *all* users whose latest row holds
it, and is given up by one only through that user's own update or deletion.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple, Protocol


class Known(Protocol):
    """Look-ups. An id is the 16 bytes of its UUID."""

    def user(self, id: bytes) -> bool:  # noqa: A002 -- the field's own name
        """Whether a user of that id is known."""

    def match(self, id: bytes) -> bool:  # noqa: A002 -- the field's own name
        """Whether a match of that id is known."""

    def unknown_users(self, ids: Iterable[bytes]) -> list[bytes]:
        """The ids among these that no known user has."""

    def unknown_matches(self, ids: Iterable[bytes]) -> list[bytes]:
        """The ids among these that no known match has."""

    def taken(self, address: bytes, user: bytes) -> bool:
        """Whether a user other than `user` holds the address, given as `address_digest`."""

    def holders(self, address: bytes) -> tuple[bytes, ...]:
        """The users that hold the address: one at most, save while the index catches up.

        In no promised order.
        """


class IndexDelta(NamedTuple):
    """The ids that were unknown before an update of the index and are known after it."""

    users: list[bytes]
    matches: list[bytes]


def address_digest(email: str) -> bytes:
    """The 16 bytes that stand for an address, as it is in a canonical row (lower case).

    Two addresses share a digest with a chance of 2^-128; nobody can make such a pair on purpose
    with less than 2^64 attempts. The address itself is never kept.
    """
    return blake2b(email.encode(), digest_size=16).digest()
