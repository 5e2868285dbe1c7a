"""What one decision has accepted and the index cannot show yet.

The index follows the accepted topics and nothing else. Between a verdict and its return through
the log lies a commit; within one decision a task sees its own rows, since they are committed
together with what relies on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from worker.core.decode import Decoded
from worker.core.keys import id_bytes, ids_of
from worker.index.contract import Known


class Ahead:
    """The index as one task sees it while it decides on one batch."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._users: dict[bytes, bool] = {}
        self._matches: dict[bytes, bool] = {}
        self._addresses: dict[bytes, bytes | None] = {}

    def user(self, user: bytes) -> bool:
        """Whether the user is known."""
        here = self._users.get(user)
        return self._known.user(user) if here is None else here

    def match(self, match: bytes) -> bool:
        """Whether the match is known."""
        here = self._matches.get(match)
        return self._known.match(match) if here is None else here

    def unknown_users(self, ids: Sequence[bytes]) -> list[bytes]:
        """The ids among these that no known user has."""
        return _unknown(ids, self._users, self._known.unknown_users)

    def unknown_matches(self, ids: Sequence[bytes]) -> list[bytes]:
        """The ids among these that no known match has."""
        return _unknown(ids, self._matches, self._known.unknown_matches)

    def taken(self, address: bytes, user: bytes) -> bool:
        """Whether another than `user` holds the address, as far as rows tell."""
        holders = self._known.holders(address)
        return bool(holders) and any(
            holder != user and self._addresses.get(holder, address) == address for holder in holders
        )

    def accept_matches(self, keys: Iterable[bytes]) -> None:
        """From now on the matches of these keys are known."""
        ids = ids_of([key.decode() for key in keys])
        self._matches.update(dict.fromkeys(ids, True))

    def accept(self, entity: str, row: Decoded) -> tuple[bytes, bytes] | None:
        """From now on the row is known. The user and the address that it had in this decision."""
        if entity == "users":
            user = id_bytes(row.key.decode())
            self._users[user] = True
            return self._move(user, row.address)
        if entity == "matches":
            self._matches[id_bytes(row.key.decode())] = True
        return None

    def delete(self, entity: str, key: bytes) -> tuple[bytes, bytes] | None:
        """From now on the row is gone. The user and the address that it had in this decision."""
        if entity == "users":
            user = id_bytes(key.decode())
            self._users[user] = False
            return self._move(user, None)
        if entity == "matches":
            self._matches[id_bytes(key.decode())] = False
        return None

    def _move(self, user: bytes, address: bytes | None) -> tuple[bytes, bytes] | None:
        before = self._addresses.get(user)
        self._addresses[user] = address
        return None if before is None or before == address else (user, before)


def _unknown(
    ids: Sequence[bytes],
    here: Mapping[bytes, bool],
    ask: Callable[[Iterable[bytes]], list[bytes]],
) -> list[bytes]:
    """The unknown ids: `here` says what this decision has changed, `ask` what the index knows."""
    if not here:
        return ask(ids)
    deleted = [id_ for id_ in ids if here.get(id_) is False]
    return deleted + ask([id_ for id_ in ids if id_ not in here])
