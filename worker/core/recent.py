"""Accepted rows of a worker that its index does not show yet.

The index follows the accepted topics and nothing else, so a row reaches it only after a commit.
Until then the tasks of one worker see each other's rows here. A decision that relies on such a row
is committed together with the row, or after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from worker.core.decode import Decoded
from worker.core.keys import id_bytes, ids_of
from worker.core.known import Known
from worker.stream import Partition


class RecentRow(NamedTuple):
    """The latest row, or deletion, of a user or a match. Instances are compared by identity."""

    known: bool
    address: bytes | None = None


class Written(NamedTuple):
    """A row or a deletion that a round has written."""

    entity: str
    id: bytes
    row: RecentRow
    message: int
    """The index of its message in the round."""


class RecentRows:
    """The index as the tasks of one worker see it: with the rows that it does not show yet.

    A row counts from its acceptance until the index has read past its offset. An instance is valid
    until a commit of its worker fails: discard it together with the tasks.
    """

    def __init__(self, known: Known) -> None:
        self._known = known
        self._users: dict[bytes, RecentRow] = {}
        self._matches: dict[bytes, RecentRow] = {}
        self._holders: dict[bytes, dict[bytes, None]] = {}
        """By address: the users whose recent row holds the address."""
        self._round: list[Written] = []
        self._located: dict[Partition, deque[tuple[int, Written]]] = {}
        self._fresh: list[bytes] = []

    # --- look-ups -----------------------------------------------------------------------------

    def user(self, user: bytes) -> bool:
        """Whether the user is known."""
        row = self._users.get(user)
        return self._known.user(user) if row is None else row.known

    def match(self, match: bytes) -> bool:
        """Whether the match is known."""
        row = self._matches.get(match)
        return self._known.match(match) if row is None else row.known

    def unknown_users(self, ids: Sequence[bytes]) -> list[bytes]:
        """The ids that belong to no known user."""
        return _unknown(ids, self._users, self._known.unknown_users)

    def unknown_matches(self, ids: Sequence[bytes]) -> list[bytes]:
        """The ids that belong to no known match."""
        return _unknown(ids, self._matches, self._known.unknown_matches)

    def taken(self, address: bytes, user: bytes) -> bool:
        """Whether a user other than `user` holds the address, according to rows."""
        recent = self._holders.get(address)
        if recent and (len(recent) > 1 or user not in recent):
            return True
        if not self._known.taken(address, user):
            return False
        # A recent row overrides what the index shows of its user.
        return any(
            holder != user and holder not in self._users for holder in self._known.holders(address)
        )

    # --- the current round --------------------------------------------------------------------

    def accept(self, entity: str, row: Decoded, message: int) -> None:
        """Make the row known; `message` is the index of its message in the round."""
        if entity == "users":
            self._write_user(
                id_bytes(row.key.decode()), RecentRow(known=True, address=row.address), message
            )
        elif entity == "matches":
            self._write(
                entity, self._matches, id_bytes(row.key.decode()), RecentRow(known=True), message
            )

    def accept_matches(self, keys: Iterable[bytes], first: int) -> None:
        """As `accept` for each match; their messages are consecutive, from index `first`."""
        for message, id_ in enumerate(ids_of([key.decode() for key in keys]), first):
            self._write("matches", self._matches, id_, RecentRow(known=True), message)

    def delete(self, entity: str, key: bytes, message: int) -> None:
        """Make the row unknown; `message` is the index of its message in the round."""
        if entity == "users":
            self._write_user(id_bytes(key.decode()), RecentRow(known=False), message)
        elif entity == "matches":
            self._write(
                entity, self._matches, id_bytes(key.decode()), RecentRow(known=False), message
            )

    def take_fresh(self) -> list[bytes]:
        """The ids of rows accepted since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def take_round(self) -> list[Written]:
        """The rows and deletions of the round: pass them to `locate` once it is committed."""
        written, self._round = self._round, []
        return written

    # --- between rounds -----------------------------------------------------------------------

    def locate(
        self,
        written: Sequence[Written],
        coordinates: Sequence[tuple[int, int]],
        topics: Mapping[str, str],
    ) -> None:
        """Note where the messages of a committed round are stored.

        `coordinates` has the partition and offset of each message of the round. `topics` has the
        accepted topics of users and of matches.
        """
        for each in written:
            number, offset = coordinates[each.message]
            partition = Partition(topics[each.entity], number)
            self._located.setdefault(partition, deque()).append((offset, each))

    def followed(self, positions: Mapping[Partition, int]) -> None:
        """Forget the rows below these positions: the index shows them now."""
        for partition, located in self._located.items():
            end = positions[partition]
            while located and located[0][0] < end:
                self._forget(located.popleft()[1])

    # --- inside -------------------------------------------------------------------------------

    def _write_user(self, user: bytes, row: RecentRow, message: int) -> None:
        self._let_go(user)
        self._write("users", self._users, user, row, message)
        if row.address is not None:
            self._holders.setdefault(row.address, {})[user] = None

    def _write(
        self, entity: str, rows: dict[bytes, RecentRow], id_: bytes, row: RecentRow, message: int
    ) -> None:
        rows[id_] = row
        self._round.append(Written(entity, id_, row, message))
        if row.known:
            self._fresh.append(id_)

    def _forget(self, written: Written) -> None:
        rows = self._users if written.entity == "users" else self._matches
        if rows.get(written.id) is not written.row:
            return  # a later row has replaced it
        if written.entity == "users":
            self._let_go(written.id)
        del rows[written.id]

    def _let_go(self, user: bytes) -> None:
        """Free the address of the user's recent row."""
        before = self._users.get(user)
        if before is None or before.address is None:
            return
        holders = self._holders[before.address]
        del holders[user]
        if not holders:
            del self._holders[before.address]


def _unknown(
    ids: Sequence[bytes],
    recent: Mapping[bytes, RecentRow],
    ask: Callable[[Iterable[bytes]], list[bytes]],
) -> list[bytes]:
    """The unknown ids: `recent` overrides the index, which `ask` queries."""
    if not recent:
        return ask(ids)
    deleted = [id_ for id_ in ids if (row := recent.get(id_)) is not None and not row.known]
    return deleted + ask([id_ for id_ in ids if id_ not in recent])
