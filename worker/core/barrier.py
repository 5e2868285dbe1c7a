"""When a reference is definitely missing. docs/definitive-verdicts.md has the picture.

At the deadline of a parked record the ends of `in.users` (and of `in.matches` where it refers to
a match) are noted. The barrier is passed once every record before those ends has been *judged*,
by whichever worker, and the outcomes have reached the index. Until then the missing row may still
be on its way, and nobody is called an orphan.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from worker.stream import Partition


class Reached(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a task is: what it reads next, and what it has judged, by entity.

    A parked record is read but not judged; -1 where one of an earlier topic is. `topics` has the
    identity of each input's topic: in another one of the same name these offsets mean nothing.
    `until` has the append time up to which all users, and all matches, are judged, or parked for
    longer than anybody waits for them: workers read a backlog side by side by it.
    """

    next: dict[str, int]
    judged: dict[str, int]
    topics: dict[str, str] = {}
    until: dict[str, int] = {}


class Counts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What became of the records of one entity in one task; `parked` is how many wait now."""

    read: int = 0
    accepted: int = 0
    deleted: int = 0
    rejected: int = 0
    parked: int = 0


class Progress(Reached, frozen=True, omit_defaults=True):
    """All that a task saves of it.

    Of the records that lie before `next`, the `held` ones have no copy: whoever takes the task
    over reads them again, and them alone. By entity: when they were first read, in milliseconds,
    and the offsets. The rest is told to people: who works on the task since when, what it has
    done, what went wrong around it (of what stays in a topic, how much was `seen`), when the oldest
    parked record was first read.
    """

    held: dict[str, dict[int, list[int]]] = {}
    earlier: dict[str, int] = {}
    """How often the topic of an input was created anew."""
    counts: dict[str, Counts] = {}
    incidents: dict[str, int] = {}
    worker: str = ""
    since: int = 0
    oldest: int = 0
    seen: dict[str, int] = {}

    @property
    def has_books(self) -> bool:
        """Whether it says what the task has done: earlier releases did not."""
        return bool(self.topics)


class Barrier:
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
