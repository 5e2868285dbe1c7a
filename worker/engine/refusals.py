"""Messages that the broker refuses: the task rejects the record and continues."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import structlog

from worker.core.refused import Record, record_of
from worker.core.topics import Names
from worker.errors import MessageRefused
from worker.stream import ProducerRecord

MOST = 2
"""After more refusals for one record than this, no smaller message is left to try."""

_log = structlog.get_logger(__name__)


class Refusal(NamedTuple):
    """The task whose message was refused, if known; `why` if the task cannot continue."""

    task: int | None
    why: str | None


class Refusals:
    """Counts the refusals per task and record, until the record has a committed rejection.

    A refused commit discards all tasks. A restored task rejects these records (`internal_error`)
    with a smaller message each time: see `Task.commit_refusals`.
    """

    def __init__(self, names: Names) -> None:
        self._names = names
        self._counts: dict[int, dict[Record, int]] = {}

    def of(self, number: int) -> dict[Record, int]:
        """The refused records of a task, each with its number of refusals."""
        return self._counts.setdefault(number, {})

    def add(self, outputs: Sequence[ProducerRecord], error: MessageRefused) -> Refusal:
        """Record a refused commit; returns the task, and why it cannot continue, if so."""
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
                refusals.append(self._add(*found, message.topic, why))
        stuck = [refusal for refusal in refusals if refusal.why is not None]
        return next(iter(stuck or refusals), Refusal(None, str(error)))

    def _add(self, number: int, record: Record, topic: str, error: str) -> Refusal:
        count = self.of(number)[record] = self.of(number).get(record, 0) + 1
        _log.error(
            "record_refused",
            source=f"{self._names.input(record[0])}/{number}/{record[1]}",
            topic=topic,
            error=error,
        )
        return Refusal(number, error if count > MOST else None)

    def forget(self, number: int, records: Iterable[Record]) -> None:
        """Forget records whose rejections are committed."""
        for record in records:
            self.of(number).pop(record, None)
