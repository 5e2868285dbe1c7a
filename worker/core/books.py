"""What a task has done, and what went wrong around it: exact, since it is saved with the work.

The books are part of the progress, so they are written in the transaction that does the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from worker.core.checkpoint import Checkpoint, Counts
from worker.core.outbox import Tally


class Books:
    """The counts of each entity's records, and the incidents, since the task's first start.

    `worker` says who works on the task, since the moment `since` (milliseconds since 1970).
    """

    def __init__(self, worker: str = "", since: int = 0) -> None:
        self.worker = worker
        self.since = since
        self.counts: dict[str, Counts] = {}
        self.incidents: Counter[str] = Counter()
        self.seen: dict[str, int] = {}
        """Of what stays in a topic, and is counted once: how much was there, by kind and topic."""

    def restore(self, progress: Checkpoint) -> None:
        """Take up what the log says."""
        self.counts = dict(progress.counts)
        self.incidents = Counter(progress.incidents)
        self.seen = dict(progress.seen)

    def enter(self, tally: Tally, parked: Mapping[str, int]) -> None:
        """A decision has been made; `parked` is how many records of each entity wait now."""
        touched = {*tally.read, *tally.accepted, *tally.deleted, *tally.rejected}
        for entity in touched | parked.keys() | self.counts.keys():
            before = self.counts.get(entity, Counts())
            self.counts[entity] = Counts(
                before.read + tally.read[entity],
                before.accepted + tally.accepted[entity],
                before.deleted + tally.deleted[entity],
                before.rejected + tally.rejected[entity],
                parked.get(entity, 0),
            )

    def found(self, kind: str, topic: str, count: int) -> int:
        """So many of that kind are in that very topic; how many had not been counted before."""
        place = f"{kind} {topic}"
        fresh = max(0, count - self.seen.get(place, 0))
        if count or place in self.seen:
            self.seen[place] = count
        if fresh:
            self.incident(kind, fresh)
        return fresh

    def incident(self, kind: str, count: int = 1) -> None:
        """Something of that kind has happened: it is said with the next progress."""
        self.incidents[kind] += count
