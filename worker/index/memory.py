"""The index in memory: for `buddy check`, which has no broker, for tests and the simulation."""

from __future__ import annotations

from worker.index.rows import Indexed, is_row, read_address, read_id


class MemoryIndex:
    """The index in dicts: nothing is kept between runs. Fulfils `Known`.

    About 300 bytes a user and 120 a match.
    """

    def __init__(self) -> None:
        self._users: dict[bytes, bytes] = {}
        self._matches: set[bytes] = set()
        # A tuple, since nearly every address has exactly one holder: a set each would cost 200
        # bytes more.
        self._holders: dict[bytes, tuple[bytes, ...]] = {}
        self.unreadable = 0
        """Rows skipped because key or value could not be read."""

    def apply_row(self, entity: Indexed, key: bytes | None, row: bytes | None) -> bool:
        """Take the latest row of a key, None for its deletion; whether its id is newly known.

        `key` is the id as text, `row` the canonical row as JSON. An unreadable one is skipped
        and counted.
        """
        id_ = read_id(key)
        if id_ is None:
            self.unreadable += 1
            return False
        if entity == "users":
            return self._user(id_, row)
        return self._match(id_, row)

    def user(self, id: bytes) -> bool:  # noqa: A002 -- as in the contract
        """Whether a user of that id is known."""
        return id in self._users

    def match(self, id: bytes) -> bool:  # noqa: A002 -- as in the contract
        """Whether a match of that id is known."""
        return id in self._matches

    def taken(self, address: bytes, user: bytes) -> bool:
        """Whether a user other than `user` holds the address, given as `address_digest`."""
        return any(holder != user for holder in self._holders.get(address, ()))

    def holders(self, address: bytes) -> tuple[bytes, ...]:
        """The users that hold the address, in no promised order."""
        return self._holders.get(address, ())

    def counts(self) -> dict[str, int]:
        """How many users, matches and different addresses are known."""
        return {
            "users": len(self._users),
            "matches": len(self._matches),
            "addresses": len(self._holders),
        }

    def _user(self, id_: bytes, row: bytes | None) -> bool:
        address = None if row is None else read_address(row)
        if address is None and row is not None:
            self.unreadable += 1
            return False
        old = self._users.get(id_)
        if old == address:
            return False
        if old is not None:
            self._release(old, id_)
        if address is None:
            del self._users[id_]
        else:
            self._users[id_] = address
            self._holders[address] = (*self._holders.get(address, ()), id_)
        return old is None

    def _release(self, address: bytes, id_: bytes) -> None:
        others = tuple(holder for holder in self._holders[address] if holder != id_)
        if others:
            self._holders[address] = others
        else:
            del self._holders[address]

    def _match(self, id_: bytes, row: bytes | None) -> bool:
        if row is None:
            self._matches.discard(id_)
            return False
        if not is_row(row):
            self.unreadable += 1
            return False
        new = id_ not in self._matches
        self._matches.add(id_)
        return new
