"""The index in memory: for `buddy check`, which has no broker, for tests and the simulation."""

from __future__ import annotations

from collections.abc import Iterable

from worker.accepted import Foreign, rule_of
from worker.index.rows import Indexed, address_of, id_of


class MemoryIndex:
    """The index in dicts, lost at the end of the process. Implements `Known`.

    Takes about 300 bytes per user and 120 bytes per match.
    """

    def __init__(self) -> None:
        self._users: dict[bytes, bytes] = {}
        self._matches: set[bytes] = set()
        # Tuples, since nearly every address has exactly one holder: a set would cost 200 bytes
        # more per address.
        self._holders: dict[bytes, tuple[bytes, ...]] = {}
        self.foreign = 0
        """Number of refused foreign rows (`worker.accepted`)."""

    def apply_row(self, entity: Indexed, key: bytes | None, row: bytes | None) -> bool:
        """Apply the latest row of a key, or None for a deletion; whether the id is new.

        Refuses and counts a foreign row (`worker.accepted`).
        """
        found = rule_of(entity).read(key, row)
        if isinstance(found, Foreign):
            self.foreign += 1
            return False
        id_ = id_of(key or b"")
        if entity == "users":
            return self._user(id_, None if found is None else address_of(found))
        return self._match(id_, there=found is not None)

    def learn(self, entity: Indexed, id_: bytes, address: bytes | None) -> None:
        """Add an accepted row, given by its id and, for users, its `address_digest`."""
        if entity == "users":
            self._user(id_, address)
        else:
            self._match(id_, there=True)

    def user(self, id: bytes) -> bool:  # noqa: A002 -- as in the contract
        """Whether a user of that id is known."""
        return id in self._users

    def match(self, id: bytes) -> bool:  # noqa: A002 -- as in the contract
        """Whether a match of that id is known."""
        return id in self._matches

    def unknown_users(self, ids: Iterable[bytes]) -> list[bytes]:
        """The ids among these that no known user has."""
        return [id_ for id_ in ids if id_ not in self._users]

    def unknown_matches(self, ids: Iterable[bytes]) -> list[bytes]:
        """The ids among these that no known match has."""
        return [id_ for id_ in ids if id_ not in self._matches]

    def taken(self, address: bytes, user: bytes) -> bool:
        """Whether a user other than `user` holds the address, given as `address_digest`."""
        return any(holder != user for holder in self._holders.get(address, ()))

    def holders(self, address: bytes) -> tuple[bytes, ...]:
        """The users that hold the address, in no promised order."""
        return self._holders.get(address, ())

    def counts(self) -> dict[str, int]:
        """The number of known users, matches and distinct addresses."""
        return {
            "users": len(self._users),
            "matches": len(self._matches),
            "addresses": len(self._holders),
        }

    def _user(self, id_: bytes, address: bytes | None) -> bool:
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

    def _match(self, id_: bytes, *, there: bool) -> bool:
        if not there:
            self._matches.discard(id_)
            return False
        new = id_ not in self._matches
        self._matches.add(id_)
        return new
