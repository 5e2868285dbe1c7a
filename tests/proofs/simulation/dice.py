"""Chance: whatever happens by chance in a run is drawn here."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from _typeshed import SupportsLenAndGetItem

_T = TypeVar("_T")


class Dice(Random):
    """Chance, from the seed alone. What is drawn most often takes short ways to the same draws."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.fineness = 0.0
        """How often a step ends where it might."""

    def stop(self) -> bool:
        """Whether somebody else comes first now."""
        return self.random() < self.fineness

    def below(self, limit: int) -> int:
        """A number from 0 up to, not including, the limit; quicker than `randrange`."""
        return int(self.random() * limit)

    def choice(self, seq: SupportsLenAndGetItem[_T]) -> _T:
        """As `Random.choice` draws it, without the calls on the way."""
        count = len(seq)
        bits = count.bit_length()
        drawn = self.getrandbits(bits)
        while drawn >= count:
            drawn = self.getrandbits(bits)
        return seq[drawn]
