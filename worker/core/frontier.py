"""When a reference is definitely missing. docs/definitive-verdicts.md has a diagram.

Once the grace of a parked record is over, the worker notes the end offsets of `in.users`. If the
record refers to a match, it also notes the end offsets of `in.matches`. The frontier is passed once
every record before those offsets is *judged*, by any worker, and the index shows the outcomes.
Until then the missing row may still be on its way, and no reference is called orphaned.
"""

from __future__ import annotations

from collections.abc import Mapping

from worker.stream import Partition


class Frontier:
    """One set of noted end offsets. Its state only moves forward: noted, judged, passed."""

    def __init__(self, ends: Mapping[Partition, int], *, covers_matches: bool) -> None:
        self.covers_matches = covers_matches
        self.passed = False
        self._ends = dict(ends)
        self._accepted_ends: dict[Partition, int] | None = None

    def advance(self, judged: Mapping[Partition, int]) -> list[Partition]:
        """Advance to what is judged. Returns the inputs not judged up to their noted ends."""
        self._ends = {p: end for p, end in self._ends.items() if judged.get(p, 0) < end}
        return list(self._ends)

    @property
    def needs_accepted_ends(self) -> bool:
        """Whether everything is judged, but the ends of the accepted topics are not noted yet."""
        return not self._ends and self._accepted_ends is None

    def note_accepted_ends(self, ends: Mapping[Partition, int]) -> None:
        """Note the end offsets of the accepted topics, open transactions included."""
        self._accepted_ends = dict(ends)

    def follow(self, followed: Mapping[Partition, int]) -> None:
        """Pass the frontier if the index has reached the noted ends of the accepted topics."""
        if self._accepted_ends is not None and all(
            followed.get(p, 0) >= end for p, end in self._accepted_ends.items()
        ):
            self.passed = True
