"""Which inputs an export waits for until they are judged. Pure.

An offset counts as judged when no record before it is without its verdict. A task says so in its
progress, which it saves with its work. What it has not saved anything of begins where its input
does: so an empty partition, or one whose messages have all expired, is not waited for.
"""

from __future__ import annotations

from collections.abc import Mapping

from schemas import ENTITIES
from worker.brokers.contract import Partition, Span
from worker.core.barrier import Reached
from worker.topics import Names


class Awaited:
    """The ends that are waited for, and how far the inputs have come."""

    def __init__(self, spans: Mapping[Partition, Span], names: Names) -> None:
        """`spans` are those of all inputs, at the moment of the request."""
        self._ends = {place: span.end for place, span in spans.items()}
        self._starts = {place: span.start for place, span in spans.items()}
        self._names = names
        self._judged = dict(self._starts)
        self._read = dict(self._starts)

    def note(self, task: int, progress: Reached) -> None:
        """What a task has saved, later than anything that was noted of it before."""
        for entity in ENTITIES:
            place = Partition(self._names.inputs(entity), task)
            if place not in self._ends:
                continue
            start = self._starts[place]
            read = progress.next.get(entity, 0)
            judged = progress.judged.get(entity, 0)
            # What is parked is not gone with its input: the log keeps a copy, or else the next
            # worker finds out. What has not been read is.
            self._judged[place] = judged if judged < read else max(judged, start)
            self._read[place] = max(read, start)

    def judged(self) -> dict[Partition, int]:
        """Of every input the offset up to which all is judged."""
        return dict(self._judged)

    def pending(self) -> dict[Partition, int]:
        """How many offsets before the end are not judged, of those inputs where there are any."""
        return {
            place: end - self._judged[place]
            for place, end in self._ends.items()
            if self._judged[place] < end
        }

    def steps(self) -> tuple[int, int]:
        """What has been done, and is to be done in all: reading counts as a step, too.

        As long as the first grows somebody makes progress on what is waited for.
        """
        done = sum(
            min(self._judged[place], end) + min(self._read[place], end)
            for place, end in self._ends.items()
        )
        first = 2 * sum(min(self._starts[p], end) for p, end in self._ends.items())
        return max(0, done - first), 2 * sum(self._ends.values()) - first
