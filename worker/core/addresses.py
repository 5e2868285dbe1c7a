"""Addresses: who may have one. docs/exactly-once.md, "Unique addresses".

Every address has one task that owns it, by its digest. A user's record is accepted only when the
owner has granted it the address: the owner sees the claims of all partitions in one order, its
own log, and answers each once. It grants what no other user's latest row holds (the index says
so) and what it has not granted to another whose row is still on its way. Nothing is released by
message: an update or a deletion frees an address by itself, since the index follows the rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import msgspec


class Claim(msgspec.Struct, frozen=True, array_like=True):
    """A user's record asks for an address; it stands at `offset` in partition `task` of users."""

    address: bytes
    user: bytes
    task: int
    offset: int


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """The owner's answer to the record at that offset of the task's users."""

    offset: int
    granted: bool


class Granted(msgspec.Struct, frozen=True, array_like=True):
    """An address that was granted, and for which records: by task the highest offset."""

    address: bytes
    user: bytes
    records: dict[int, int]


class Holders(Protocol):
    """Who holds an address as far as accepted rows tell."""

    def taken(self, address: bytes, user: bytes, /) -> bool:
        """Whether another than `user` holds the address."""


def owner_of(address: bytes, tasks: int) -> int:
    """The task that decides on an address, given as its digest."""
    return int.from_bytes(address[:4], "big") % tasks


class Addresses:
    """The addresses that one task has granted and whose rows may still be on their way."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._granted: dict[bytes, Granted] = {}
        self._kept: set[bytes] = set()
        self._judged: Mapping[int, int] = {}

    def __len__(self) -> int:
        return len(self._granted)

    def restore(self, granted: Iterable[Granted]) -> None:
        """Take up what the log says had been granted."""
        self._granted = {entry.address: entry for entry in granted}
        self._kept = set(self._granted)

    def claim(self, claim: Claim, holders: Holders) -> Granted | None:
        """What is granted to the claim now, None if another holds or has been granted it.

        A claim whose record has been judged meanwhile is a repeated one: nothing is granted to
        it, or the address would be kept for nobody. What is granted to another task has to be
        kept in the log. What is granted to a record of this task need not: if that commits, the
        row itself tells whoever comes after us.
        """
        if claim.offset < self._judged.get(claim.task, 0):
            return None
        before = self._granted.get(claim.address)
        if before is not None and before.user != claim.user:
            return None
        if holders.taken(claim.address, claim.user):
            return None
        records = {} if before is None else dict(before.records)
        records[claim.task] = max(claim.offset, records.get(claim.task, -1))
        granted = Granted(claim.address, claim.user, records)
        self._granted[claim.address] = granted
        if claim.task != self._number:
            self._kept.add(claim.address)
        return granted

    def leave(self, user: bytes, address: bytes) -> None:
        """A record of this task moves the user away from an address granted to an earlier one."""
        granted = self._granted.get(address)
        if granted is not None and granted.user == user and set(granted.records) == {self._number}:
            del self._granted[address]

    def settle(self, judged: Mapping[int, int]) -> list[bytes]:
        """Forget what was granted to records before these offsets: the index has their rows.

        Returns the addresses that the log keeps no longer.
        """
        self._judged = judged
        settled = [
            granted.address
            for granted in self._granted.values()
            if all(offset < judged.get(task, 0) for task, offset in granted.records.items())
        ]
        for address in settled:
            del self._granted[address]
        gone = [address for address in settled if address in self._kept]
        self._kept.difference_update(gone)
        return gone
