"""Rows that a worker has accepted and that its index does not show yet.

The index follows the accepted topics and nothing else. Between a verdict and its return through
the log lies a commit. Meanwhile the tasks of one worker see each other's rows here: whatever
relies on a row is committed together with it, or after it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from worker.core.decode import Decoded
from worker.core.keys import id_bytes, ids_of
from worker.core.known import Known
from worker.stream import Partition


class Row(NamedTuple):
    """The latest row, or deletion, of a user or a match. Each is an object of its own."""

    known: bool
    address: bytes | None = None


class Written(NamedTuple):
    """A row that a round has accepted, or a deletion."""

    entity: str
    id: bytes
    row: Row
    message: int
    """Which message of the round says so."""


class RecentRows:
    """The index as the tasks of one worker see it: with the rows that it does not show yet.

    A row counts from its acceptance until the index has followed the log past it. One object lives
    as long as its worker commits without a failure: throw it away with the tasks.
    """

    def __init__(self, known: Known) -> None:
        self._known = known
        self._users: dict[bytes, Row] = {}
        self._matches: dict[bytes, Row] = {}
        self._holders: dict[bytes, dict[bytes, None]] = {}
        """By address: the users whose recent row holds it."""
        self._round: list[Written] = []
        self._placed: dict[Partition, deque[tuple[int, Written]]] = {}
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
        """The ids among these that no known user has."""
        return _unknown(ids, self._users, self._known.unknown_users)

    def unknown_matches(self, ids: Sequence[bytes]) -> list[bytes]:
        """The ids among these that no known match has."""
        return _unknown(ids, self._matches, self._known.unknown_matches)

    def taken(self, address: bytes, user: bytes) -> bool:
        """Whether another than `user` holds the address, as far as rows tell."""
        recent = self._holders.get(address)
        if recent and (len(recent) > 1 or user not in recent):
            return True
        if not self._known.taken(address, user):
            return False
        # Whoever has a recent row holds what that says.
        return any(
            holder != user and holder not in self._users for holder in self._known.holders(address)
        )

    # --- the round that is being decided on ---------------------------------------------------

    def accept(self, entity: str, row: Decoded, message: int) -> None:
        """From now on the row is known; `message` is its place in the round."""
        if entity == "users":
            self._write_user(
                id_bytes(row.key.decode()), Row(known=True, address=row.address), message
            )
        elif entity == "matches":
            self._write(entity, self._matches, id_bytes(row.key.decode()), Row(known=True), message)

    def accept_matches(self, keys: Iterable[bytes], first: int) -> None:
        """As `accept` for each of these matches, whose messages follow each other from `first`."""
        for message, id_ in enumerate(ids_of([key.decode() for key in keys]), first):
            self._write("matches", self._matches, id_, Row(known=True), message)

    def delete(self, entity: str, key: bytes, message: int) -> None:
        """From now on the row is gone; `message` is its place in the round."""
        if entity == "users":
            self._write_user(id_bytes(key.decode()), Row(known=False), message)
        elif entity == "matches":
            self._write(entity, self._matches, id_bytes(key.decode()), Row(known=False), message)

    def take_fresh(self) -> list[bytes]:
        """The ids of rows that were accepted since the last call."""
        fresh, self._fresh = self._fresh, []
        return fresh

    def take_round(self) -> list[Written]:
        """What the round has accepted and deleted: pass it to `place` once it is committed."""
        written, self._round = self._round, []
        return written

    # --- between rounds -----------------------------------------------------------------------

    def place(
        self,
        written: Sequence[Written],
        places: Sequence[tuple[int, int]],
        topics: Mapping[str, str],
    ) -> None:
        """A round is committed: partition and offset of each of its messages.

        `topics` has the accepted topic of users and of matches.
        """
        for each in written:
            number, offset = places[each.message]
            partition = Partition(topics[each.entity], number)
            self._placed.setdefault(partition, deque()).append((offset, each))

    def followed(self, positions: Mapping[Partition, int]) -> None:
        """The index has followed the log so far: it shows what lies before."""
        for partition, placed in self._placed.items():
            end = positions[partition]
            while placed and placed[0][0] < end:
                self._forget(placed.popleft()[1])

    # --- inside -------------------------------------------------------------------------------

    def _write_user(self, user: bytes, row: Row, message: int) -> None:
        self._let_go(user)
        self._write("users", self._users, user, row, message)
        if row.address is not None:
            self._holders.setdefault(row.address, {})[user] = None

    def _write(
        self, entity: str, rows: dict[bytes, Row], id_: bytes, row: Row, message: int
    ) -> None:
        rows[id_] = row
        self._round.append(Written(entity, id_, row, message))
        if row.known:
            self._fresh.append(id_)

    def _forget(self, written: Written) -> None:
        rows = self._users if written.entity == "users" else self._matches
        if rows.get(written.id) is not written.row:
            return  # there is a later one
        if written.entity == "users":
            self._let_go(written.id)
        del rows[written.id]

    def _let_go(self, user: bytes) -> None:
        """Its recent row does not count any more."""
        before = self._users.get(user)
        if before is None or before.address is None:
            return
        holders = self._holders[before.address]
        del holders[user]
        if not holders:
            del self._holders[before.address]


def _unknown(
    ids: Sequence[bytes],
    recent: Mapping[bytes, Row],
    ask: Callable[[Iterable[bytes]], list[bytes]],
) -> list[bytes]:
    """The unknown ids: `recent` says what has changed, `ask` what the index knows."""
    if not recent:
        return ask(ids)
    deleted = [id_ for id_ in ids if (row := recent.get(id_)) is not None and not row.known]
    return deleted + ask([id_ for id_ in ids if id_ not in recent])
