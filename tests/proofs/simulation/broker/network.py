"""What lies between a process and the cluster. This one is calm; the simulation has its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeVar

from worker.stream import Partition

_T = TypeVar("_T")

Fate = Literal["done", "never", "unheard", "late"]
"""Of a request to commit: carried out; lost; carried out with the answer lost, now or later on."""


class Network:
    """At once, everything, in the order that was asked for."""

    async def hop(self) -> None:
        """One way from here to the cluster or back. Raises BrokerUnavailable."""

    def check(self) -> None:
        """Raises BrokerUnavailable if the cluster cannot be reached now."""

    def order(self, places: Sequence[_T]) -> Sequence[_T]:
        """In which order partitions are served."""
        return places

    def some(self, places: Sequence[Partition]) -> Sequence[Partition]:
        """Which of these partitions a read is served from now, and in which order."""
        return places

    def portion(self, limit: int) -> int:
        """How many messages of one partition a read gives, at most."""
        return limit

    def patience(self, timeout: float) -> float:
        """How long a read really waits."""
        return timeout

    def fate(self) -> Fate:
        """What becomes of a request to commit."""
        return "done"

    def later(self, act: Callable[[], None]) -> None:
        """Carry out a request that the network has delayed."""

    def leave(self, act: Callable[[], None]) -> None:
        """Tell a group that a member leaves; where that fails it finds out by itself."""
        act()

    def hears(self) -> bool:
        """Whether a member of a group now learns what has changed in it."""
        return True
