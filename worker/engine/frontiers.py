"""Frontiers: when the tasks of this worker may call a reference orphaned.

See docs/definitive-verdicts.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from worker.brokers.contract import Broker
from worker.brokers.sound import sound_spans
from worker.clock import Clock
from worker.core.frontier import Frontier
from worker.core.task import Task
from worker.core.task_settings import TaskSettings
from worker.engine.index_updater import INDEXED, IndexUpdater
from worker.stream import Partition

_CAPTURE_EVERY_MS: Final = 200
"""A frontier costs a broker request: all records past their grace period by then share one."""
_REPORT_BLOCKED_MS: Final = 5_000

_log = structlog.get_logger(__name__)


class Frontiers:
    """The open frontiers of the tasks of this worker."""

    def __init__(
        self, broker: Broker, settings: TaskSettings, updater: IndexUpdater, clock: Clock
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._updater = updater
        self._clock = clock
        self._open: list[tuple[int, Frontier]] = []
        self._captured = -_CAPTURE_EVERY_MS
        self._reported = -_REPORT_BLOCKED_MS

    async def advance(self, tasks: Sequence[Task]) -> None:
        """Note frontiers for records past their grace period, and advance the open frontiers."""
        moment = self._clock.now()
        now = moment.steady
        due = [task for task in tasks if task.end_grace(moment)]
        if due and now - self._captured >= _CAPTURE_EVERY_MS:
            self._captured = now
            if (captured := await self._capture()) is not None:
                for task in due:
                    task.parking.await_frontiers(*captured)
                self._open += [(now, frontier) for frontier in captured]
        if self._open:
            # A frontier that no record waits for blocks nothing, yet it would be reported. The
            # reference may have arrived, or the task may have moved to another worker.
            awaited = {frontier for task in tasks for frontier in task.parking.frontiers()}
            self._open = [(noted, one) for noted, one in self._open if one in awaited]
        for _, frontier in self._open:
            frontier.advance(self._updater.judged)
            if frontier.needs_accepted_ends:
                accepted = self._updater.accepted
                ends = await sound_spans(self._broker, accepted, uncommitted=True)
                if len(ends) == len(accepted):
                    frontier.note_accepted_ends({p: span.end for p, span in ends.items()})
            frontier.follow(self._updater.followed())
        self._open = [(noted, frontier) for noted, frontier in self._open if not frontier.passed]
        self._report_blocked(now)

    def waiting_since(self) -> int | None:
        """When the oldest open frontier was noted, in milliseconds on the steady clock."""
        return self._open[0][0] if self._open else None

    def blocked_by(self) -> list[Partition]:
        """The input partitions that the oldest open frontier waits for."""
        return self._open[0][1].advance(self._updater.judged) if self._open else []

    async def _capture(self) -> tuple[Frontier, Frontier] | None:
        """The frontiers of users and of matches. None while an input's entry is damaged.

        Its end is unknown, and what is missing may be there. Damage is reported elsewhere.
        The ends include open transactions: a record that was acknowledged behind one cannot be
        read until that transaction has ended.
        """
        names = [self._settings.names.input(entity) for entity in INDEXED]
        partitions = [Partition(n, q) for n in names for q in range(self._settings.tasks)]
        spans = await sound_spans(self._broker, partitions, uncommitted=True)
        if len(spans) < len(partitions):
            return None
        ends = {partition: span.end for partition, span in spans.items()}
        users = {partition: end for partition, end in ends.items() if partition.topic == names[0]}
        return Frontier(users, covers_matches=False), Frontier(ends, covers_matches=True)

    def _report_blocked(self, now: int) -> None:
        since = self.waiting_since()
        if since is None or max(since, self._reported) + _REPORT_BLOCKED_MS > now:
            return
        self._reported = now
        blocking = [f"{p.topic}/{p.number}" for p in self.blocked_by()[:10]]
        _log.warning("verdicts_blocked", waiting_ms=now - since, by=blocking)
