"""Reservations: which user may have an address. docs/exactly-once.md, "Unique addresses".

The digest of an address determines the one task that owns it. A user's record is accepted only when
the owner has granted the address. The owner sees the requests of all partitions in one order, that
of its own log, and answers each, perhaps twice. It grants an address under two conditions:

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

_MOST_RELEASED: Final = 2_000
"""With this many remembered rows that the index may not show, a round must be synchronised."""


class ReservationRequest(msgspec.Struct, frozen=True, array_like=True, tag="claim"):
    """A user's record requests an address. The record is in partition `task` of users.

    `ordinal` is its number there (`Reading.ordinal`), also in messages that refer to the request.

    A record repeats its request if it gets no reply for minutes: the request or its reply may have
    expired, or a truncated topic may have lost it.
    """

    address: bytes
    user: bytes
    task: int
    ordinal: int
    attempt: int = 0


class Release(msgspec.Struct, frozen=True, array_like=True, tag="settled"):
    """The record that was granted the address is judged: if it was accepted, its row shows that."""

    address: bytes
    task: int
    ordinal: int


class ReservationReply(msgspec.Struct, frozen=True, array_like=True):
    """The owner's reply to the record `ordinal` of the requesting task's users."""

    ordinal: int
    address: bytes
    granted: bool
    attempt: int = 0
    """The attempt of the request: a refusal of an earlier one says nothing about the latest."""


class Reservation(msgspec.Struct, frozen=True, array_like=True):
    """A granted address, and the records that it is granted to: (task, ordinal) each."""

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
    """The reservations of one task whose rows the index may not show yet.

    A reservation that is released has no records. It stays until the index is known to show its
    row.
    """

    def __init__(self) -> None:
        self._reserved: dict[bytes, Reservation] = {}
        """By address."""
        self._released = 0
        """How many of them have no records."""
        self._given: set[bytes] = set()
        """The addresses granted in this round to records of this worker's tasks."""
        self._synchronised = False

    def __len__(self) -> int:
        """How many reservations are not released."""
        return len(self._reserved) - self._released

    def __iter__(self) -> Iterator[Reservation]:
        """The reservations that are not released."""
        return (reservation for reservation in self._reserved.values() if reservation.records)

    def restore(self, reservations: Iterable[Reservation]) -> None:
        """Restore the reservations that the log holds."""
        self._reserved = {entry.address: entry for entry in reservations}

    def begin(self, *, synchronised: bool) -> None:
        """Begin a round.

        `synchronised`: the index shows every row that was committed when the round's batch had been
        read.
        """
        self._given.clear()
        self._synchronised = synchronised
        if synchronised and self._released:
            self._reserved = {entry.address: entry for entry in self}
            self._released = 0

    @property
    def crowded(self) -> bool:
        """Whether so many rows are remembered that the next round must be synchronised."""
        return self._released >= _MOST_RELEASED

    def contested(self, address: bytes, user: bytes, holders: Holders) -> bool:
        """Whether only a synchronised index can tell if the user may have the address.

        Ask before the round begins.
        """
        return self._is_anothers(address, user) or holders.taken(address, user)

    def grant_at_once(self, address: bytes, user: bytes, holders: Holders) -> bool | None:
        """Whether a record in one of this worker's tasks gets the address in this decision.

        None: unknown here; ask through the claims topic, since another user may have the address.
        Its reservation may already be released further down the log. Without one, only a
        synchronised index can tell. A grant made here need not be persisted: the row is committed
        in the same round, and shows the holder to every later owner.
        """
        if self._is_anothers(address, user):
            return None
        if holders.taken(address, user):
            return False if self._synchronised or address in self._given else None
        self._given.add(address)
        return True

    def reserve(self, request: ReservationRequest, holders: Holders) -> Reservation | None:
        """The reservation to persist for a request in the log; None if another has the address.

        A request that was `contested` needs a synchronised index.
        """
        address, user = request.address, request.user
        if self._is_anothers(address, user) or holders.taken(address, user):
            return None
        before = self._reserved.get(address)
        records = {(request.task, request.ordinal), *(() if before is None else before.records)}
        return self._put(Reservation(address, user, tuple(sorted(records))))

    def release(self, release: Release) -> Reservation | None:
        """Apply a release. Returns the rest of the reservation, which may have no record left.

        None: there was no reservation. A record that requests twice is released twice.
        """
        before = self._reserved.get(release.address)
        if before is None or not before.records:
            return None
        records = tuple(r for r in before.records if r != (release.task, release.ordinal))
        return self._put(Reservation(before.address, before.user, records))

    def _is_anothers(self, address: bytes, user: bytes) -> bool:
        """Whether the address is reserved for another user, or was until a moment ago."""
        reservation = self._reserved.get(address)
        return reservation is not None and reservation.user != user

    def _put(self, reservation: Reservation) -> Reservation:
        before = self._reserved.pop(reservation.address, None)
        self._released -= before is not None and not before.records
        if reservation.records or not self._synchronised:
            self._reserved[reservation.address] = reservation
            self._released += not reservation.records
        return reservation
