"""What other workers have still to judge, by append time: what may refer to it waits.

The progress of a task says up to which append time its users and matches are judged. A task that
has nothing to judge says nothing: then its inputs are asked where they end. What had been read
here before was appended before, so where a task has read up to those ends it is not behind.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final, NamedTuple

from worker.brokers.contract import Broker
from worker.core.parking import Parked
from worker.core.task import GRANT_PATIENCE_MS, Task
from worker.core.topics import Names
from worker.engine.index_updater import INDEXED
from worker.engine.order import FOREVER
from worker.stream import Partition

_SLACK_MS: Final = 500
"""In a live stream nothing waits for what is so little behind: it would come later for all."""
_ASK_MS: Final = 100
"""So often the inputs are asked, and only where something waits for them."""
_PATIENCE_MS: Final = 2_000
"""So long an input is waited for that nobody reads: its worker may be dead."""

_NOWHERE: Final = (0, 0)


class Waiting(NamedTuple):
    """What a worker has read and not judged, by append time."""

    heads: Mapping[str, int]
    """The first that waits, by entity."""
    newest: int
    """The latest of all that it has read."""
    live: bool
    """Whether that is not much."""

    @property
    def first(self) -> int | None:
        """The first that may refer to something."""
        return min((time for e, time in self.heads.items() if e != "users"), default=None)

    @property
    def goal(self) -> int:
        """Nothing waits for what has been judged up to here."""
        return self.newest - _SLACK_MS if self.live else self.newest


class Elsewhere:
    """How far behind the tasks of other workers are; `tasks` is how many there are in all.

    `passed` says of their inputs what `IndexUpdater.passed` does. `clock` is steady.
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
        """Up to which append time inputs had nothing left, when they were asked."""
        self._stands: dict[Partition, tuple[int, int]] = {}
        """Inputs that had something left: how far they were read, and since when no further."""

    async def look(self, running: Collection[int], waiting: Waiting) -> None:
        """Ask the inputs that seem to hold anything up whether they do.

        `running` are the tasks of this worker. Raises BrokerUnavailable.
        """
        now = self._clock()
        if waiting.first is None or now - self._asked < _ASK_MS:
            return
        goal = min(waiting.first, waiting.goal)
        inputs = [place for entity in INDEXED for place in self._inputs(entity, running)]
        behind = [place for place in inputs if self._time(place) < goal]
        if not behind:
            return
        self._asked = now
        for place, span in (await self._broker.spans(behind)).items():
            read = self._passed.get(place, _NOWHERE)[0]
            if read >= span.end:
                self._at_end[place] = waiting.newest
            elif place not in self._stands or self._stands[place][0] != read:
                self._stands[place] = (read, now)

    def until(self, running: Mapping[int, Task], waiting: Waiting) -> dict[str, int]:
        """Up to which append time all users, and all matches, are judged that are not here.

        `FOREVER` where nothing is behind that is worth waiting for. A user that is parked here
        counts as well: the owner of its address is elsewhere.
        """
        until = {}
        for entity in INDEXED:
            inputs = self._inputs(entity, running)
            until[entity] = min(
                (self._time(place) for place in inputs if not self._is_given_up(place)),
                default=FOREVER,
            )
        if len(running) < self._all:
            parked = young_users(running.values(), self._clock())
            until["users"] = min([until["users"], *(user.arrival - 1 for user in parked)])
        return {e: FOREVER if time >= waiting.goal else time for e, time in until.items()}

    def _inputs(self, entity: str, running: Collection[int]) -> list[Partition]:
        topic = self._names.input(entity)
        return [Partition(topic, n) for n in range(self._all) if n not in running]

    def _time(self, place: Partition) -> int:
        return max(self._passed.get(place, _NOWHERE)[1], self._at_end.get(place, 0))

    def _is_given_up(self, place: Partition) -> bool:
        read, since = self._stands.get(place, (-1, 0))
        stands = read == self._passed.get(place, _NOWHERE)[0]
        return stands and self._clock() - since >= _PATIENCE_MS


def young_users(tasks: Iterable[Task], now: int) -> list[Parked]:
    """The first user of each task that waits for its address, unless it has waited for long."""
    since = now - GRANT_PATIENCE_MS
    return [user for task in tasks if (user := task.parking.young("users", since)) is not None]
