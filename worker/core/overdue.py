"""Reservations that stay unreleased: the reply that granted one, or its release, may be lost."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from worker.core.addresses import Reservation

_PATIENCE_MS: Final = 300_000


class OverdueReservations:
    """Finds the reservations whose replies the owner repeats: it gets a release for each.

    A reply is repeated after five minutes, and then each time after twice as long as before.
    """

    def __init__(self) -> None:
        self._due: dict[bytes, tuple[int, int]] = {}
        """By address: when to repeat the reply, and how long that was put off."""

    def look(self, reservations: Iterable[Reservation], now: int) -> list[Reservation]:
        """Those that are overdue. Call regularly with all that are not released; `now` is steady.

        The time of a reservation counts from the first call that has it.
        """
        due: dict[bytes, tuple[int, int]] = {}
        overdue = []
        for reservation in reservations:
            address = reservation.address
            at, patience = self._due.get(address) or (now + _PATIENCE_MS, _PATIENCE_MS)
            if at <= now:
                overdue.append(reservation)
                patience *= 2
                at = now + patience
            due[address] = at, patience
        self._due = due
        return overdue
