"""What a planted fault is: something that is wrong for as long as a context lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

Plant = Callable[[], AbstractContextManager[object]]
_Planting = Callable[[], Iterator[None]]


def planter(faults: dict[str, Plant]) -> Callable[[_Planting], _Planting]:
    """A decorator that notes faults there by their names."""

    def note(planting: _Planting) -> _Planting:
        faults[planting.__name__] = contextmanager(planting)
        return planting

    return note
