"""Reports of losses: topics re-created or truncated, messages removed or skipped.

Each loss is counted, logged in one line, and shown by `/ready` for ten minutes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import structlog

from schemas import ENTITIES
from worker.clock import Clock
from worker.core.incidents import INPUT_EXPIRED, PARKED_LOST, REJECTIONS_GONE, ROWS_GONE
from worker.core.reading import Missed
from worker.core.task import Task
from worker.core.task_settings import TaskSettings
from worker.core.topics import OWNERS, PARKED, PROGRESS, RESERVATIONS, Names
from worker.engine.task_handle import TaskHandle
from worker.engine.tasks import TaskManager
from worker.ops.health import ServiceHealth
from worker.ops.metrics import Metrics
from worker.stream import Partition

ACCEPTED_EXPIRED: Final = "accepted_expired"
ACCEPTED_TRUNCATED: Final = "accepted_truncated"
"""Kinds of incidents, counted in offsets."""

_STATE: Final = {
    PROGRESS: "this task has written its progress there since",
    PARKED: "parked records whose only copies it held are lost",
    RESERVATIONS: (
        "an address that was about to be given to one user may be given to another as well"
    ),
    OWNERS: "a worker that was frozen before that is not fenced, and may write as well",
}
"""The loss if a take-over finds that this topic was re-created."""

_log = structlog.get_logger(__name__)


class Losses:
    """Reports losses. A loss in a running task also enters the books of that task."""

    def __init__(self, metrics: Metrics, health: ServiceHealth, clock: Clock) -> None:
        self.metrics = metrics
        self.health = health
        self._clock = clock
        self._accepted_gone = 0
        self._accepted_truncated = 0
        self._parked_gone = 0
        """Lost offsets of accepted topics, and parked records of tasks that are no more, that no
        task's books contain yet."""

    def missed(self, missed: Missed, task: Task, settings: TaskSettings) -> None:
        """Report losses found at a take-over; the books of the task already contain them."""
        for name in missed.recreated:
            self.metrics.anomalies.input_recreated()
            topic = settings.names.input(name)
            self.health.recreated(topic, self._clock.steady())
            _log.error("input_recreated", topic=topic, partition=task.number)
        for name, count in missed.truncated.items():
            self._truncated(Partition(settings.names.input(name), task.number), name, count)
        for entity, count in missed.expired.items():
            self._expired(entity, Partition(settings.names.input(entity), task.number), count)
        for name in missed.others:
            topic = f"{settings.names.prefix}.{name}"
            if name in _STATE:
                self._state_recreated(Partition(topic, task.number), _STATE[name])
            elif name.startswith("rejected."):
                self._rejected_recreated(topic)
            else:
                self._accepted_recreated(topic)

    def state_missed(self, handle: TaskHandle, names: Names) -> None:
        """Report what is missing of a task's state, after its first commit.

        Only the commit proves that no other worker took the task over while its topics were read.
        Otherwise their contents may be inconsistent.
        """
        missed = handle.missed
        handle.missed = missed._replace(parked={}, surplus=0, behind=0, reservations=0)
        number = handle.task.number
        if missed.surplus:
            self._internal_truncated(Partition(names.parked, number), missed.surplus)
        if missed.behind:
            self._internal_truncated(Partition(names.progress, number), missed.behind)
        if handle.progress_truncated:
            handle.progress_truncated = False
            what = "records that had been judged may be judged again"
            self._truncated_state(Partition(names.progress, number), what)
        if missed.reservations:
            where = Partition(names.granted, number)
            what = "released addresses stay reserved until their last records are asked for again"
            self._truncated_state(where, _STATE[RESERVATIONS] if missed.reservations > 0 else what)
        self._parked_lost(Partition(names.parked, number), missed.parked)

    def task_gone(self, place: Partition, parked: Mapping[str, int]) -> None:
        """Report what a task had parked that is no more: its topics have fewer partitions now."""
        self._parked_lost(place, parked)
        self._parked_gone += sum(parked.values())

    def _parked_lost(self, place: Partition, parked: Mapping[str, int]) -> None:
        for entity, count in parked.items():
            if count:
                self.metrics.anomalies.parked_lost(entity, count)
                self.health.expired(count, self._clock.steady())
                _log.error(
                    "parked_lost",
                    topic=place.topic,
                    partition=place.number,
                    entity=entity,
                    count=count,
                )

    def holes(self, partition: Partition, count: int) -> None:
        """Report offsets of an internal topic that were removed, or damaged and skipped."""
        lost = (
            _STATE[OWNERS]
            if partition.topic.endswith(f".{OWNERS}")
            else "records that had been judged may be judged again"
        )
        self._internal_skipped(partition, count, f"removed, or damaged and skipped: {lost}")

    def state_lost(self, partition: Partition, count: int) -> None:
        """Report lost offsets of a running task's state: the task writes its state again."""
        what = "removed, or damaged and skipped: what running tasks know is written there again"
        self._internal_skipped(partition, count, what)

    def state_truncated(self, partition: Partition) -> None:
        """Report that a running task's state has lost its end: the task writes it again."""
        self._truncated_state(partition, "what running tasks know is written there again")

    def _internal_skipped(self, partition: Partition, count: int, what: str) -> None:
        self.metrics.anomalies.unreadable_internal(count)
        self.health.report(
            f"{count} offsets of {_name(partition)} were {what}",
            self._clock.steady(),
        )
        _log.error(
            "internal_skipped", topic=partition.topic, partition=partition.number, count=count
        )

    def _internal_truncated(self, partition: Partition, count: int) -> None:
        what = f"{count} records that had been judged may be judged again"
        self._truncated_state(partition, what, count=count)

    def _truncated_state(self, partition: Partition, what: str, **fields: int) -> None:
        self.metrics.anomalies.internal_truncated()
        self.health.report(
            f"{_name(partition)} has lost its last messages: {what}", self._clock.steady()
        )
        _log.error(
            "internal_truncated", topic=partition.topic, partition=partition.number, **fields
        )

    def progress_lost(self, partition: Partition) -> None:
        """Report that a task with earlier work has no checkpoint: it judges all inputs again."""
        self.health.report(
            f"{_name(partition)} is empty: all that is in the inputs is judged again",
            self._clock.steady(),
        )
        self.metrics.anomalies.progress_lost()
        _log.error("progress_lost", topic=partition.topic, partition=partition.number)

    def accepted_skipped(self, partition: Partition, count: int) -> None:
        """Report damaged offsets that the index skips by order: their rows are unknown."""
        self.metrics.anomalies.accepted_skipped(count)
        self.health.report(
            f"{count} damaged offsets of {_name(partition)} were skipped: what they said"
            " is unknown to the index",
            self._clock.steady(),
        )
        _log.error(
            "accepted_skipped", topic=partition.topic, partition=partition.number, count=count
        )

    def accepted_truncated(self, partition: Partition, count: int) -> None:
        """Report offsets that the index had read and that are gone from the end of a topic."""
        self.metrics.anomalies.accepted_truncated(count)
        self.health.report(
            f"{_name(partition)} has lost its last {count} offsets: rows are missing; have them"
            " judged again with 'buddy reprocess'",
            self._clock.steady(),
        )
        _log.error(
            "accepted_truncated", topic=partition.topic, partition=partition.number, count=count
        )
        self._accepted_truncated += count

    def accepted_expired(self, partition: Partition, count: int) -> None:
        """Report offsets removed before the index read them: rows may be missing."""
        self.metrics.anomalies.accepted_expired(count)
        self.health.report(
            f"{count} offsets of {_name(partition)} were removed before the index read"
            " them: rows may be missing; have them judged again with 'buddy reprocess'",
            self._clock.steady(),
        )
        _log.error(
            "accepted_expired", topic=partition.topic, partition=partition.number, count=count
        )
        self._accepted_gone += count

    def enter_in_books(self, tasks: TaskManager) -> None:
        """Enter pending losses into the books of one task, which `buddy status` reads."""
        for handle in list(tasks.running.values())[:1]:
            if self._accepted_gone:
                handle.task.books.incident(ACCEPTED_EXPIRED, self._accepted_gone)
                self._accepted_gone = 0
            if self._accepted_truncated:
                handle.task.books.incident(ACCEPTED_TRUNCATED, self._accepted_truncated)
                self._accepted_truncated = 0
            if self._parked_gone:
                handle.task.books.incident(PARKED_LOST, self._parked_gone)
                self._parked_gone = 0

    def state_recreated(self, partition: Partition) -> None:
        """Report a re-created topic of a running task's state: the task writes it again."""
        self._state_recreated(partition, "what running tasks know is written there again")

    def _state_recreated(self, partition: Partition, lost: str) -> None:
        self.metrics.anomalies.internal_recreated()
        self.health.report(
            f"topic {partition.topic} was created anew: {lost}", self._clock.steady()
        )
        _log.error("internal_recreated", topic=partition.topic, partition=partition.number)

    def _rejected_recreated(self, topic: str) -> None:
        """Report a re-created rejected topic: its rejections are gone."""
        self.metrics.anomalies.rejected_recreated()
        self.health.report(
            f"topic {topic} was created anew: {REJECTIONS_GONE}", self._clock.steady()
        )
        _log.error("rejected_recreated", topic=topic)

    def _accepted_recreated(self, topic: str) -> None:
        """Report a re-created accepted topic: its rows are gone."""
        self.metrics.anomalies.accepted_recreated()
        self.health.report(f"topic {topic} was created anew: {ROWS_GONE}", self._clock.steady())
        _log.error("accepted_recreated", topic=topic)

    def expired(self, expired: Mapping[Partition, int], tasks: TaskManager, names: Names) -> None:
        """Report offsets that were removed before they were read."""
        for partition, count in expired.items():
            entity = names.entity_of(partition.topic)
            if entity in ENTITIES and (handle := tasks.running.get(partition.number)) is not None:
                handle.task.books.incident(INPUT_EXPIRED, count)
            self._expired(entity, partition, count)

    def skipped(self, skipped: Mapping[Partition, int], tasks: TaskManager, names: Names) -> None:
        """Report damaged offsets that were skipped by order of an operator."""
        for partition, count in skipped.items():
            entity = names.entity_of(partition.topic)
            if entity in ENTITIES:
                self.metrics.anomalies.input_skipped(entity, count)
                self.health.expired(count, self._clock.steady())
                if (handle := tasks.running.get(partition.number)) is not None:
                    handle.task.books.incident("input_skipped", count)
            _log.error(
                "input_skipped", topic=partition.topic, partition=partition.number, count=count
            )

    def _truncated(self, partition: Partition, name: str, count: int) -> None:
        """Report an input that has lost its last records, `count` of which had been read."""
        if name not in ENTITIES:
            what = "requests and replies that are not answered are repeated"
            self._truncated_state(partition, what)
            return
        self.metrics.anomalies.input_truncated(name, count)
        self.health.report(
            f"{_name(partition)} has lost its last records: {count} that were read, and perhaps"
            " others that were not; have them sent again",
            self._clock.steady(),
        )
        _log.error(
            "input_truncated", topic=partition.topic, partition=partition.number, count=count
        )

    def _expired(self, entity: str, partition: Partition, count: int) -> None:
        if entity in ENTITIES:
            self.metrics.anomalies.input_expired(entity, count)
            self.health.expired(count, self._clock.steady())
        _log.error("input_expired", topic=partition.topic, partition=partition.number, count=count)


def _name(partition: Partition) -> str:
    return f"{partition.topic}/{partition.number}"
