"""Reservations: which user may have an address. docs/exactly-once.md, "Unique addresses".

The digest of an address determines the one task that owns it. A user's record is accepted only when
the owner has granted the address. The owner sees the requests of all partitions in one order, that
of its own log, and answers each once. It grants an address under two conditions:

- No other user's latest row holds the address, according to the index.
- It has not granted the address to another user whose row is still on its way.

A `Release` ends a reservation, but no message frees an address that a row holds. The index follows
the rows, so an update or a deletion of the row frees the address.

A stale index that shows no holder is safe: the owner remembers its grants until the index is known
to show the row. If the index shows another holder, a later row may have freed the address already.
Only then must the owner wait until the index shows every committed row (`contested`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import msgspec

_MOST_UNFOLLOWED: Final = 2_000
"""With this many remembered rows that the index may not show, a round must be synchronised."""


class ReservationRequest(msgspec.Struct, frozen=True, array_like=True, tag="claim"):
    """A user's record requests an address. The record is in partition `task` of users.

    `offset` is its place there (`Reading.place`), also in the messages that refer to the request.

    A record may repeat its request after a long time, when the request or its reply may have
    expired.
    """

    address: bytes
    user: bytes
    task: int
    offset: int
    attempt: int = 0


class Release(msgspec.Struct, frozen=True, array_like=True, tag="settled"):
    """The record that was granted the address is judged: rows now show the holder."""

    address: bytes
    task: int
    offset: int


class ReservationReply(msgspec.Struct, frozen=True, array_like=True):
    """The owner's reply to the record at place `offset` of the requesting task's users."""

    offset: int
    address: bytes
    granted: bool
    attempt: int = 0
    """The attempt of the request: a refusal of an earlier one says nothing about the latest."""


class Reservation(msgspec.Struct, frozen=True, array_like=True):
    """A granted address, and the records that it is granted to: (task, offset) each."""

    address: bytes
    user: bytes
    records: tuple[tuple[int, int], ...]


class Holders(Protocol):
    """Who holds an address, according to accepted rows."""

    def taken(self, address: bytes, user: bytes, /) -> bool:
        """Whether a user other than `user` holds the address."""


def owner_of(address: bytes, tasks: int) -> int:
    """The task that owns an address, given as its digest."""
    return int.from_bytes(address[:4], "big") % tasks


class Addresses:
    """The reservations of one task, whose rows the index may not show yet."""

    def __init__(self) -> None:
        self._granted: dict[bytes, Reservation] = {}
        self._unfollowed: dict[bytes, bytes] = {}
        """By address of a released reservation: the user whose row the index may not show yet."""
        self._given: set[bytes] = set()
        """The addresses granted in this round."""
        self._synchronised = False

    def __len__(self) -> int:
        """How many reservations are not released."""
        return len(self._granted)

    def __iter__(self) -> Iterator[Reservation]:
        """The reservations that are not released."""
        yield from self._granted.values()

    def restore(self, granted: Iterable[Reservation]) -> None:
        """Restore the reservations that the log holds."""
        self._granted = {entry.address: entry for entry in granted}

    def begin(self, *, synchronised: bool) -> None:
        """Begin a round.

        `synchronised`: the index shows every row that was committed when the round's batch had been
        read.
        """
        self._given.clear()
        self._synchronised = synchronised
        if synchronised:
            self._unfollowed.clear()

    @property
    def crowded(self) -> bool:
        """Whether so many rows are remembered that the next round must be synchronised."""
        return len(self._unfollowed) >= _MOST_UNFOLLOWED

    def contested(self, address: bytes, user: bytes, holders: Holders) -> bool:
        """Whether only a synchronised index can tell if the user may have the address.

        Ask before the round begins.
        """
        granted = self._granted.get(address)
        return (
            (granted is not None and granted.user != user)
            or self._unfollowed.get(address, user) != user
            or holders.taken(address, user)
        )

    def at_once(self, address: bytes, user: bytes, holders: Holders) -> bool | None:
        """Whether a record in one of this worker's tasks gets the address in this decision.

        None: unknown here; ask through the claims topic, since another user may have the address.
        Its reservation may already be released further down the log. Without one, only a
        synchronised index can tell. A grant made here need not be persisted: the row is committed
        in the same round, and shows the holder to every later owner.
        """
        granted = self._granted.get(address)
        if granted is not None and granted.user != user:
            return None
        if self._unfollowed.get(address, user) != user:
            return None
        if holders.taken(address, user):
            return False if self._synchronised or address in self._given else None
        self._given.add(address)
        return True

    def claim(self, claim: ReservationRequest, holders: Holders) -> Reservation | None:
        """The reservation to persist for a request in the log; None if another has the address.

        A request that was `contested` needs a synchronised index.
        """
        before = self._granted.get(claim.address)
        if before is not None and before.user != claim.user:
            return None
        if self._unfollowed.get(claim.address, claim.user) != claim.user:
            return None
        if holders.taken(claim.address, claim.user):
            return None
        records = {(claim.task, claim.offset), *(() if before is None else before.records)}
        granted = Reservation(claim.address, claim.user, tuple(sorted(records)))
        self._granted[claim.address] = granted
        return granted

    def settle(self, settled: Release) -> Reservation | None:
        """Apply a release. Returns the rest of the reservation, which may have no record left.

        None: there was no reservation. A record that requests twice is released twice.
        """
        granted = self._granted.pop(settled.address, None)
        if granted is None:
            return None
        records = tuple(r for r in granted.records if r != (settled.task, settled.offset))
        left = Reservation(granted.address, granted.user, records)
        if records:
            self._granted[settled.address] = left
        elif not self._synchronised:
            self._unfollowed[settled.address] = granted.user
        return left
