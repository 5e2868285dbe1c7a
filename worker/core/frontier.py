"""When a reference is definitely missing. docs/definitive-verdicts.md has the picture.

At the deadline of a parked record the ends of `in.users` (and of `in.matches` where it refers to
a match) are noted. The frontier is passed once every record before those ends has been *judged*,
by whichever worker, and the outcomes have reached the index. Until then the missing row may still
be on its way, and nobody is called an orphan.
"""

from __future__ import annotations

from collections.abc import Mapping

from worker.stream import Partition


class Frontier:
    """One noted set of ends. It only ever moves forward: noted, judged, passed."""

    def __init__(self, ends: Mapping[Partition, int], *, covers_matches: bool) -> None:
        self.covers_matches = covers_matches
        self.passed = False
        self._ends = dict(ends)
        self._outcomes: dict[Partition, int] | None = None

    def blocked_by(self, judged: Mapping[Partition, int]) -> list[Partition]:
        """The input partitions that have not been judged as far as was noted."""
        self._ends = {p: end for p, end in self._ends.items() if judged.get(p, 0) < end}
        return list(self._ends)

    @property
    def needs_outcomes(self) -> bool:
        """Whether everything is judged, and where the outcomes end is still to be noted."""
        return not self._ends and self._outcomes is None

    def note_outcomes(self, ends: Mapping[Partition, int]) -> None:
        """Note where the accepted topics end, open transactions included."""
        self._outcomes = dict(ends)

    def follow(self, followed: Mapping[Partition, int]) -> None:
        """Pass if the index has followed the accepted topics as far as was noted."""
        if self._outcomes is not None and all(
            followed.get(p, 0) >= end for p, end in self._outcomes.items()
        ):
            self.passed = True
