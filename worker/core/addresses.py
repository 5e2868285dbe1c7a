"""Addresses: who may have one. docs/exactly-once.md, "Unique addresses".

Every address has one task that owns it, by its digest. A user's record is accepted only when the
owner has granted it the address: the owner sees the claims of all partitions in one order, its
own log, and answers each once. It grants what no other user's latest row holds (the index says
so) and what it has not granted to another whose row is still on its way. Nothing is released by
message: an update or a deletion frees an address by itself, since the index follows the rows.

That the index is behind does no harm where it names nobody: whoever holds an address has been
granted it here, and that is remembered until the index is known to show the row. Where it names
another, the row may have been followed by one that frees the address: only then has the owner to
wait until the index shows every row that is committed (`contested`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Final, Protocol

import msgspec

_MOST_UNFOLLOWED: Final = 2_000
"""So many rows that the index may not show are remembered before it is waited for."""


class ReservationRequest(msgspec.Struct, frozen=True, array_like=True, tag="claim"):
    """A user's record asks for an address. It is of partition `task` of users.

    `offset` is its place there (`Reading.place`), in what refers to it as well.

    It may ask again after a long time, when the first question or its answer may have expired.
    """

    address: bytes
    user: bytes
    task: int
    offset: int
    attempt: int = 0


class Release(msgspec.Struct, frozen=True, array_like=True, tag="settled"):
    """The record that was granted the address has been judged: rows tell who holds it now."""

    address: bytes
    task: int
    offset: int


class ReservationReply(msgspec.Struct, frozen=True, array_like=True):
    """The owner's answer to the record at that offset of the task's users."""

    offset: int
    address: bytes
    granted: bool
    attempt: int = 0
    """That of the claim: a refusal of an earlier one says nothing of the latest."""


class Reservation(msgspec.Struct, frozen=True, array_like=True):
    """An address that was granted, and for which records: (task, offset) each."""

    address: bytes
    user: bytes
    records: tuple[tuple[int, int], ...]


class Holders(Protocol):
    """Who holds an address as far as accepted rows tell."""

    def taken(self, address: bytes, user: bytes, /) -> bool:
        """Whether another than `user` holds the address."""


def owner_of(address: bytes, tasks: int) -> int:
    """The task that decides on an address, given as its digest."""
    return int.from_bytes(address[:4], "big") % tasks


class Addresses:
    """The addresses that one task has granted and whose rows the index may not show yet."""

    def __init__(self) -> None:
        self._granted: dict[bytes, Reservation] = {}
        self._unfollowed: dict[bytes, bytes] = {}
        """Of grants that another worker has settled: the user whose row the index may not show."""
        self._given: set[bytes] = set()
        """Which addresses this very round has given."""
        self._synchronised = False

    def __len__(self) -> int:
        """How many grants have not been settled."""
        return len(self._granted)

    def __iter__(self) -> Iterator[Reservation]:
        """The grants that have not been settled."""
        yield from self._granted.values()

    def restore(self, granted: Iterable[Reservation]) -> None:
        """Take up what the log says had been granted."""
        self._granted = {entry.address: entry for entry in granted}

    def begin(self, *, synchronised: bool) -> None:
        """A round begins.

        `synchronised`: the index shows every row that was committed when its batch had been read.
        """
        self._given.clear()
        self._synchronised = synchronised
        if synchronised:
            self._unfollowed.clear()

    @property
    def crowded(self) -> bool:
        """Whether so much is remembered that the next decision has to be synchronised."""
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
        """Whether a record of a task of this very worker, which is being decided on, gets it.

        None: it has to be claimed by way of the log, since another may have it. If it has been
        granted there, that may have been settled meanwhile, further down; otherwise it takes a
        synchronised index to tell. What is granted here need not be kept: the row is committed in
        the same round, and tells whoever comes after us.
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
        """What is granted to a claim in the log, to be kept; None if another has the address.

        A claim that was `contested` wants a synchronised index.
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
        """The record has been judged. What is left of the grant, maybe for no record any more.

        None: there was none, since a record that claims twice is settled twice.
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
