"""Barriers noted and tended: when the tasks of this worker may call a reference orphaned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from worker.brokers.contract import Broker
from worker.clock import Clock
from worker.core.barrier import Barrier
from worker.core.outbox import Rules
from worker.core.task import Task
from worker.engine.follower import INDEXED, Follower
from worker.stream import Partition

_NOTE_EVERY_MS: Final = 200
"""Barriers cost a question to the broker: records that are overdue share one."""
_REPORT_BLOCKED_MS: Final = 5_000
_FORGET_EVERY_MS: Final = 1_000
"""So often it is asked which barriers are waited for: that looks at each record that waits."""

_log = structlog.get_logger(__name__)


class Barriers:
    """The barriers that the tasks of this worker wait for."""

    def __init__(self, broker: Broker, rules: Rules, follower: Follower, clock: Clock) -> None:
        self._broker = broker
        self._rules = rules
        self._follower = follower
        self._clock = clock
        self._open: list[tuple[int, Barrier]] = []
        self._noted = -_NOTE_EVERY_MS
        self._reported = -_REPORT_BLOCKED_MS
        self._forgot = -_FORGET_EVERY_MS

    async def tend(self, tasks: Sequence[Task]) -> None:
        """Note barriers for overdue records, and move those that are noted forward."""
        moment = self._clock.now()
        now = moment.steady
        overdue = [task for task in tasks if task.overdue(moment)]
        if overdue and now - self._noted >= _NOTE_EVERY_MS:
            self._noted = now
            users, matches = await self._note()
            awaited = [b for task in overdue for b in task.await_barriers(users, matches)]
            # One that nobody waits for blocks nothing: it would be told all the same.
            self._open += [(now, barrier) for barrier in (users, matches) if barrier in awaited]
        if self._open and now - self._forgot >= _FORGET_EVERY_MS:
            # What a record waited for may have come, or its task have gone to another worker.
            self._forgot = now
            kept = {id(barrier) for task in tasks for barrier in task.awaited()}
            self._open = [(noted, barrier) for noted, barrier in self._open if id(barrier) in kept]
        for _, barrier in self._open:
            barrier.blocked_by(self._follower.judged)
            if barrier.needs_outcomes:
                ends = await self._broker.spans(self._follower.accepted, uncommitted=True)
                barrier.note_outcomes({p: span.end for p, span in ends.items()})
            barrier.follow(self._follower.followed())
        self._open = [(noted, barrier) for noted, barrier in self._open if not barrier.passed]
        self._report_blocked(now)

    def waiting_since(self) -> int | None:
        """When the oldest barrier that has not been passed was noted, on the steady clock."""
        return self._open[0][0] if self._open else None

    def blocked_by(self) -> list[Partition]:
        """The inputs that the oldest barrier waits for."""
        return self._open[0][1].blocked_by(self._follower.judged) if self._open else []

    async def _note(self) -> tuple[Barrier, Barrier]:
        names = [self._rules.names.inputs(entity) for entity in INDEXED]
        partitions = [Partition(n, q) for n in names for q in range(self._rules.tasks)]
        spans = await self._broker.spans(partitions)
        ends = {partition: span.end for partition, span in spans.items()}
        users = {partition: end for partition, end in ends.items() if partition.topic == names[0]}
        return Barrier(users, covers_matches=False), Barrier(ends, covers_matches=True)

    def _report_blocked(self, now: int) -> None:
        since = self.waiting_since()
        if since is None or max(since, self._reported) + _REPORT_BLOCKED_MS > now:
            return
        self._reported = now
        blocking = [f"{p.topic}/{p.number}" for p in self.blocked_by()[:10]]
        _log.warning("verdicts_blocked", waiting_ms=now - since, by=blocking)
