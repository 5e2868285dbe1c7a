"""A task's counts and incidents: exact, since they are committed with the work that they count.

The books are part of the checkpoint, so the transaction that does the work writes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from worker.core.checkpoint import Checkpoint, Counts
from worker.core.outbox import Tally


class Books:
    """Record counts by entity, and incidents, since the task's first start.

    `worker` has owned the task since `since` (milliseconds since 1970).
    """

    def __init__(self, worker: str = "", since: int = 0) -> None:
        self.worker = worker
        self.since = since
        self.counts: dict[str, Counts] = {}
        self.incidents: Counter[str] = Counter()
        self.seen: dict[str, int] = {}
        """By kind and topic: how many of the faults that stay in the topic are counted already."""

    def restore(self, checkpoint: Checkpoint) -> None:
        """Restore the books from the checkpoint."""
        self.counts = dict(checkpoint.counts)
        self.incidents = Counter(checkpoint.incidents)
        self.seen = dict(checkpoint.seen)

    def enter(self, tally: Tally, parked: Mapping[str, int]) -> None:
        """Enter a decision; `parked` is how many records of each entity wait now."""
        changed = {*tally.read, *tally.accepted, *tally.deleted, *tally.rejected}
        for entity in changed | parked.keys() | self.counts.keys():
            before = self.counts.get(entity, Counts())
            self.counts[entity] = Counts(
                before.read + tally.read[entity],
                before.accepted + tally.accepted[entity],
                before.deleted + tally.deleted[entity],
                before.rejected + tally.rejected[entity],
                parked.get(entity, 0),
            )

    def note_faults(self, kind: str, topic: str, count: int) -> int:
        """Note that a topic holds `count` faults of a kind. Returns how many are new."""
        what = f"{kind} {topic}"
        fresh = max(0, count - self.seen.get(what, 0))
        if count or what in self.seen:
            self.seen[what] = count
        if fresh:
            self.incident(kind, fresh)
        return fresh

    def incident(self, kind: str, count: int = 1) -> None:
        """Count an incident; the next checkpoint includes it."""
        self.incidents[kind] += count
