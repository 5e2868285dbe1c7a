"""How far a task is: what it saves in each commit, and whoever takes it over restores."""

from __future__ import annotations

import msgspec


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


class Checkpoint(Reached, frozen=True, omit_defaults=True):
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
