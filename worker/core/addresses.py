"""Addresses: who may have one. docs/exactly-once.md, "Unique addresses".

Every address has one task that owns it, by its digest. A user's record is accepted only when the
owner has granted it the address: the owner sees the claims of all partitions in one order, its
own log, and answers each once. It grants what no other user's latest row holds (the index says
so) and what it has not granted to another whose row is still on its way. Nothing is released by
message: an update or a deletion frees an address by itself, since the index follows the rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import msgspec


class Claim(msgspec.Struct, frozen=True, array_like=True, tag="claim"):
    """A user's record asks for an address; it stands at `offset` in partition `task` of users."""

    address: bytes
    user: bytes
    task: int
    offset: int


class Settled(msgspec.Struct, frozen=True, array_like=True, tag="settled"):
    """The record that was granted the address has been judged: rows tell who holds it now."""

    address: bytes
    task: int
    offset: int


class Grant(msgspec.Struct, frozen=True, array_like=True):
    """The owner's answer to the record at that offset of the task's users."""

    offset: int
    address: bytes
    granted: bool


class Granted(msgspec.Struct, frozen=True, array_like=True):
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
    """The addresses that one task has granted and whose rows may still be on their way."""

    def __init__(self) -> None:
        self._granted: dict[bytes, Granted] = {}
        self._at_once: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._granted) + len(self._at_once)

    def restore(self, granted: Iterable[Granted]) -> None:
        """Take up what the log says had been granted."""
        self._granted = {entry.address: entry for entry in granted}

    def at_once(self, address: bytes, user: bytes, holders: Holders) -> bool | None:
        """Whether a record of this very task, which is being decided on, gets the address.

        None: it has been granted to another by way of the log, so this one has to claim it there
        as well; it may have been settled meanwhile, further down. What is granted here need not be
        kept: if it commits, the row itself tells whoever comes after us.
        """
        granted = self._granted.get(address)
        if granted is not None and granted.user != user:
            return None
        if self._at_once.get(address, user) != user or holders.taken(address, user):
            return False
        self._at_once[address] = user
        return True

    def followed(self) -> None:
        """The index shows the rows of all earlier decisions of this task."""
        self._at_once.clear()

    def leave(self, user: bytes, address: bytes) -> None:
        """A record of this task moves the user away from what an earlier one got at once."""
        if self._at_once.get(address) == user:
            del self._at_once[address]

    def claim(self, claim: Claim, holders: Holders) -> Granted | None:
        """What is granted to a claim in the log, to be kept; None if another has the address."""
        before = self._granted.get(claim.address)
        if before is not None and before.user != claim.user:
            return None
        if self._at_once.get(claim.address, claim.user) != claim.user:
            return None
        if holders.taken(claim.address, claim.user):
            return None
        records = {(claim.task, claim.offset), *(() if before is None else before.records)}
        granted = Granted(claim.address, claim.user, tuple(sorted(records)))
        self._granted[claim.address] = granted
        return granted

    def settle(self, settled: Settled) -> Granted | None:
        """The record has been judged; what is still to be kept of the grant, if anything."""
        granted = self._granted.pop(settled.address, None)
        if granted is None:
            return None
        records = tuple(r for r in granted.records if r != (settled.task, settled.offset))
        if not records:
            return None
        kept = self._granted[settled.address] = Granted(granted.address, granted.user, records)
        return kept
