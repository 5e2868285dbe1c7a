"""Messages that the broker refuses: the record behind one is rejected, and the task goes on."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import structlog

from worker.core.refused import Record, record_of
from worker.core.topics import Names
from worker.errors import MessageRefused
from worker.stream import ProducerRecord

MOST = 2
"""After so many refusals of what is said about one record nothing smaller can be said."""

_log = structlog.get_logger(__name__)


class Refusal(NamedTuple):
    """The task whose message was refused, if that is known, and why it cannot go on, if so."""

    task: int | None
    why: str | None


class Refusals:
    """How often what a task said about a record was refused, for as long as that matters.

    A refused commit throws all tasks away. When one is restored it rejects these records instead
    (`internal_error`), with fewer words each time: `Task.refused`.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._counts: dict[int, dict[Record, int]] = {}

    def of(self, number: int) -> dict[Record, int]:
        """The records of that task, and how often each was refused."""
        return self._counts.setdefault(number, {})

    def note(self, outputs: Sequence[ProducerRecord], error: MessageRefused) -> Refusal:
        """A commit was refused: of which task, and whether that can go on without the record."""
        refusals: list[Refusal] = []
        noted: set[tuple[int, Record]] = set()
        for index, why in error.refused.items():
            message = outputs[index]
            found = record_of(message, self._names)
            if found is None:
                own = f"its own state for {message.topic}: {why}"
                refusals.append(Refusal(message.partition, own))
            elif found not in noted:
                noted.add(found)
                refusals.append(self._note(*found, message.topic, why))
        stuck = [refusal for refusal in refusals if refusal.why is not None]
        return next(iter(stuck or refusals), Refusal(None, str(error)))

    def _note(self, number: int, record: Record, topic: str, error: str) -> Refusal:
        count = self.of(number)[record] = self.of(number).get(record, 0) + 1
        _log.error(
            "record_refused",
            source=f"{self._names.inputs(record[0])}/{number}/{record[1]}",
            topic=topic,
            error=error,
        )
        return Refusal(number, error if count > MOST else None)

    def settled(self, number: int, records: Iterable[Record]) -> None:
        """Their rejections are committed."""
        for record in records:
            self.of(number).pop(record, None)
