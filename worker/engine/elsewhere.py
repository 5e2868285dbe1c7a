"""The backlog of other workers, by append time: records that may refer to it wait.

The checkpoint of a task has the append time up to which its users and matches are judged, or
parked. An idle task writes no checkpoint, so its inputs are asked for their end offsets. A task
that has read up to those ends has no backlog older than the records that this worker has already
read.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from worker.brokers.contract import Broker
from worker.brokers.sound import sound_spans
from worker.core.parked import Parked
from worker.core.task import GRANT_PATIENCE_MS, Task
from worker.core.topics import Names
from worker.engine.index_updater import INDEXED
from worker.engine.order import FOREVER
from worker.stream import Partition

_SLACK_MS: Final = 500
"""A live stream does not wait for a smaller backlog: the wait would delay every record."""
_ASK_MS: Final = 100
"""Interval of requests for end offsets, made only while a record waits."""
_PATIENCE_MS: Final = 2_000
"""How long to wait for an input that makes no progress: its worker may be dead."""

_NOWHERE: Final = (0, 0)


class Backlog(NamedTuple):
    """The records that a worker has read but not judged, by append time."""

    heads: Mapping[str, int]
    """The append time of the first waiting record, by entity."""
    newest: int
    """The append time of the latest record read."""
    live: bool
    """Whether few records wait, as in a live stream."""

    @property
    def first(self) -> int | None:
        """The append time of the first waiting record that may have references."""
        return min((time for e, time in self.heads.items() if e != "users"), default=None)

    @property
    def goal(self) -> int:
        """An input judged up to this append time delays nothing."""
        return self.newest - _SLACK_MS if self.live else self.newest


class Elsewhere:
    """Tracks the backlog of the tasks of other workers.

    `tasks` is the number of tasks of all workers. `passed` is `IndexUpdater.passed`. `clock` is
    steady.
    """

    def __init__(
        self,
        broker: Broker,
        names: Names,
        tasks: int,
        passed: Mapping[Partition, tuple[int, int]],
        clock: Callable[[], int],
    ) -> None:
        self._broker = broker
        self._names = names
        self._all = tasks
        self._passed = passed
        self._clock = clock
        self._asked = -_ASK_MS
        self._at_end: dict[Partition, int] = {}
        """The append time up to which an input had no backlog at the last request."""
        self._stands: dict[Partition, tuple[int, int]] = {}
        """Inputs with a backlog: the offset reached, and since when it has not moved."""

    async def refresh(self, running: Collection[int], backlog: Backlog) -> None:
        """Request the end offsets of the inputs that seem to delay records.

        `running` are the tasks of this worker. Raises MissingTopic, BrokerUnavailable.
        """
        now = self._clock()
        if backlog.first is None or now - self._asked < _ASK_MS:
            return
        goal = min(backlog.first, backlog.goal)
        inputs = [partition for entity in INDEXED for partition in self._inputs(entity, running)]
        behind = [partition for partition in inputs if self._time(partition) < goal]
        if not behind:
            return
        self._asked = now
        spans = await sound_spans(self._broker, behind)  # one whose entry is damaged stands
        for partition in behind:
            read, span = self._passed.get(partition, _NOWHERE)[0], spans.get(partition)
            if span is not None and read >= span.end:
                self._at_end[partition] = backlog.newest
            elif partition not in self._stands or self._stands[partition][0] != read:
                self._stands[partition] = (read, now)

    def watermarks(self, running: Mapping[int, Task], backlog: Backlog) -> dict[str, int]:
        """The append time up to which other workers have judged all users, and all matches.

        `FOREVER` if no backlog is worth the wait. A user parked here counts too while tasks run
        elsewhere: the owner of its address may be one of them.
        """
        watermarks = {}
        for entity in INDEXED:
            inputs = self._inputs(entity, running)
            watermarks[entity] = min(
                (self._time(partition) for partition in inputs if not self._is_given_up(partition)),
                default=FOREVER,
            )
        if len(running) < self._all:
            parked = young_users(running.values(), self._clock())
            watermarks["users"] = min([watermarks["users"], *(user.arrival - 1 for user in parked)])
        return {e: FOREVER if time >= backlog.goal else time for e, time in watermarks.items()}

    def _inputs(self, entity: str, running: Collection[int]) -> list[Partition]:
        topic = self._names.input(entity)
        return [Partition(topic, n) for n in range(self._all) if n not in running]

    def _time(self, partition: Partition) -> int:
        return max(self._passed.get(partition, _NOWHERE)[1], self._at_end.get(partition, 0))

    def _is_given_up(self, partition: Partition) -> bool:
        read, since = self._stands.get(partition, (-1, 0))
        stands = read == self._passed.get(partition, _NOWHERE)[0]
        return stands and self._clock() - since >= _PATIENCE_MS


def young_users(tasks: Iterable[Task], now: int) -> list[Parked]:
    """The first user of each task that waits for its address, unless the wait is too long."""
    since = now - GRANT_PATIENCE_MS
    return [user for task in tasks if (user := task.parking.young("users", since)) is not None]
