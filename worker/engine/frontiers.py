"""Frontiers: when the tasks of this worker may call a reference orphaned.

See docs/definitive-verdicts.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
        self._withheld: tuple[int, list[Partition]] | None = None
        """Since when no frontier is noted, and the inputs that end before what is judged."""
        self._truncations = 0
        self._captured = -_CAPTURE_EVERY_MS
        self._reported = -_REPORT_BLOCKED_MS

    async def advance(self, tasks: Sequence[Task]) -> None:
        """Note frontiers for records past their grace period, and advance the open frontiers."""
        moment = self._clock.now()
        now = moment.steady
        self._renew(tasks)
        due = [task for task in tasks if task.end_grace(moment)]
        if not due:
            self._withheld = None
        if due and now - self._captured >= _CAPTURE_EVERY_MS:
            self._captured = now
            if (captured := await self._capture(now)) is not None:
                for task in due:
                    task.parking.await_frontiers(*captured)
                self._open += [(now, frontier) for frontier in captured]
        if self._open:
            # A frontier that no record waits for blocks nothing, yet it would be reported. The
            # reference may have arrived, or the task may have moved to another worker.
            awaited = {frontier for task in tasks for frontier in task.parking.frontiers()}
            self._open = [(noted, one) for noted, one in self._open if one in awaited]
        sound = True
        for _, frontier in self._open:
            frontier.advance(self._updater.judged)
            if frontier.needs_accepted_ends and sound:
                sound = await self._note_accepted_ends(frontier, now)
        self._renew(tasks)
        for _, frontier in self._open:
            frontier.follow(self._updater.followed())
        self._open = [(noted, frontier) for noted, frontier in self._open if not frontier.passed]
        self._report_blocked(now)

    def waiting_since(self) -> int | None:
        """When the oldest open frontier was noted, in milliseconds on the steady clock."""
        firsts = [noted for noted, _ in self._open[:1]]
        return min(firsts if self._withheld is None else [*firsts, self._withheld[0]], default=None)

    def blocked_by(self) -> list[Partition]:
        """The input partitions that the oldest open frontier waits for."""
        if self._open:
            return self._open[0][1].advance(self._updater.judged)
        return [] if self._withheld is None else self._withheld[1]

    async def _capture(self, now: int) -> tuple[Frontier, Frontier] | None:
        """The frontiers of users and of matches. None while no end can be relied on.

        That is while an input's entry is damaged: its end is unknown, and what is missing may be
        there. Damage is reported elsewhere. And it is while an input ends before what is judged.
        The ends include open transactions: a record that was acknowledged behind one cannot be
        read until that transaction has ended.
        """
        inputs = self._inputs()
        ends = await self._sound_ends(inputs, (), now)
        if ends is None:
            return None
        users = {p: end for p, end in ends.items() if p.topic == inputs[0].topic}
        return Frontier(users, covers_matches=False), Frontier(ends, covers_matches=True)

    async def _note_accepted_ends(self, frontier: Frontier, now: int) -> bool:
        """Note the ends of the accepted topics; False if unknown, or if an input was truncated.

        What was judged of an input before it lost its last records does not cover the records that
        have got their offsets since.
        """
        accepted = self._updater.accepted
        ends = await self._sound_ends(accepted, self._inputs(), now)
        if ends is not None:
            frontier.note_accepted_ends({partition: ends[partition] for partition in accepted})
        return ends is not None

    async def _sound_ends(
        self, partitions: Sequence[Partition], others: Sequence[Partition], now: int
    ) -> Mapping[Partition, int] | None:
        """The ends of these partitions, and of `others` that are not damaged.

        None if one of the partitions is damaged, or any ends before what is judged. The next
        checkpoint of its task then says how far the input is judged: `_renew`.
        """
        judged = dict(self._updater.judged)  # from before the request, so no later than the ends
        spans = await sound_spans(self._broker, [*partitions, *others], uncommitted=True)
        if not spans.keys() >= set(partitions):
            return None
        ends = {partition: span.end for partition, span in spans.items()}
        truncated = [p for p, end in ends.items() if judged.get(p, 0) > end]
        if truncated:
            since = now if self._withheld is None else self._withheld[0]
            self._withheld = since, truncated
            return None
        self._withheld = None
        return ends

    def _inputs(self) -> list[Partition]:
        names = [self._settings.names.input(entity) for entity in INDEXED]
        return [Partition(n, q) for n in names for q in range(self._settings.tasks)]

    def _renew(self, tasks: Sequence[Task]) -> None:
        """Drop all frontiers if an input was truncated: the ends that they wait for may be gone."""
        if self._truncations != self._updater.truncations:
            self._truncations = self._updater.truncations
            self._open = []
            for task in tasks:
                task.parking.drop_frontiers()

    def _report_blocked(self, now: int) -> None:
        since = self.waiting_since()
        if since is None or max(since, self._reported) + _REPORT_BLOCKED_MS > now:
            return
        self._reported = now
        blocking = [f"{p.topic}/{p.number}" for p in self.blocked_by()[:10]]
        _log.warning("verdicts_blocked", waiting_ms=now - since, by=blocking)
