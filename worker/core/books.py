"""What a task has done, and what went wrong around it: exact, since it is saved with the work.

The books are part of the progress, so they are written in the transaction that does the work.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from worker.core.barrier import Counts, Progress
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

    def restore(self, progress: Progress) -> None:
        """Take up what the log says."""
        self.counts = dict(progress.counts)
        self.incidents = Counter(progress.incidents)

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

    def found(self, kind: str, count: int) -> bool:
        """So many of that kind are there; whether some of them had not been counted before."""
        before = self.incidents[kind]
        self.incidents[kind] = max(before, count)
        return count > before

    def incident(self, kind: str, count: int = 1) -> None:
        """Something of that kind has happened: it is said with the next progress."""
        self.incidents[kind] += count
