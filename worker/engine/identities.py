"""Notices that a topic was deleted and created anew while the worker runs.

Offsets of the old topic mean nothing in the new one. So whatever is read, judged and committed
is of the topics that were there at the start: that is checked after a batch has been read and
before it is committed, since an identity never comes back.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.core.task import INPUTS
from worker.core.topics import Names
from worker.errors import MissingTopic, TopicRecreated
from worker.index.freshness import is_another
from worker.stream import Partition

_EVERY_MS: Final = 5_000
"""So often an idle worker looks."""


class Identities:
    """The topics that a worker works on: its inputs, and those of outcomes."""

    def __init__(self, broker: Broker, names: Names, clock: Callable[[], int]) -> None:
        self._broker = broker
        self._clock = clock
        self._inputs = {name: names.input(name) for name in INPUTS}
        self._outcomes = {f"accepted.{entity}": names.accepted(entity) for entity in ENTITIES}
        self._outcomes |= {f"rejected.{entity}": names.rejected(entity) for entity in ENTITIES}
        self._names = [*self._inputs.values(), *self._outcomes.values()]
        self._state = names.of_state()
        self._known: Mapping[str, str] = {}
        self._now: Mapping[str, str] = {}
        self.missing: Sequence[str] = ()
        """The topics of tasks' state that were not there at the last `check`."""
        self._starts: Mapping[Partition, int] = {}
        self._checked = 0
        self._counted = 0

    async def note(self) -> None:
        """The worker begins with the topics that are there now.

        Raises MissingTopic if only some are there, and BrokerUnavailable.
        """
        known = await self._broker.identities(self._names)
        # One that is created a moment later would go without an identity, and nobody would notice
        # when it is another. Where none is there the topics are checked next, or the broker is old.
        if known and (missing := [name for name in self._names if name not in known]):
            raise MissingTopic(f"topic {missing[0]} is missing: run 'buddy topics create'")
        self._known = known
        self._checked = self._counted = self._clock()

    def of_inputs(self) -> dict[str, str]:
        """The identity of each input's topic, by `INPUTS`."""
        return {name: self._known.get(topic, "") for name, topic in self._inputs.items()}

    def of_outcomes(self) -> dict[str, str]:
        """The identity of each topic of rows or rejections, by its name without the prefix."""
        return {name: self._known.get(topic, "") for name, topic in self._outcomes.items()}

    def of_topics(self) -> Mapping[str, str]:
        """The identity of each topic, by its name."""
        return self._known

    async def of_state(self) -> dict[str, str]:
        """The identities of the topics that hold the state of tasks. Raises BrokerUnavailable."""
        state = await self._broker.identities(self._state)
        self._now = {**self._now, **state}
        return state

    def anew(self, state: Mapping[str, str]) -> dict[str, str]:
        """Which of these topics were others when anybody looked last, and their identities then."""
        return {n: self._now[n] for n in state if is_another(state[n], self._now.get(n))}

    def removed(self, starts: Mapping[Partition, int]) -> dict[Partition, int]:
        """Where these partitions began when anybody looked last, if later than here."""
        return {p: self._starts[p] for p, at in starts.items() if self._starts.get(p, at) > at}

    @property
    def due(self) -> bool:
        """Whether nobody has looked for a while."""
        return self._clock() - self._checked >= _EVERY_MS

    async def look_at_partitions(self, tasks: int, state: Collection[Partition]) -> None:
        """Look now and then whether every input still has a partition for each task, and no more.

        Partitions may be added to a topic, which stays the same one. And look where the partitions
        that hold the state of tasks begin: compaction moves no start, whoever removes records does.
        Raises TopicRecreated, BrokerUnavailable.
        """
        if self._clock() - self._counted < _EVERY_MS:
            return
        for name, topic in (await self._broker.topics(self._inputs.values())).items():
            if topic.partitions != tasks:
                raise TopicRecreated(f"topic {name} had {tasks} partitions, now {topic.partitions}")
        with suppress(MissingTopic):  # `missing` tells of it
            self._starts = {p: s.start for p, s in (await self._broker.spans(state)).items()}
        self._counted = self._clock()

    async def check(self) -> None:
        """Raises TopicRecreated if one is another now, or gone; BrokerUnavailable.

        Topics of tasks' state that are gone are only noted, as `missing`.
        """
        now = await self._broker.identities([*self._names, *self._state])
        for name, identity in self._known.items():
            if now.get(name) != identity:
                raise TopicRecreated(f"topic {name} was deleted or created anew")
        self._now = now
        # Tasks keep their state in memory: they write it again once the topic is back. A broker
        # that knows no identities names no topic at all.
        self.missing = [name for name in self._state if name not in now] if self._known else []
        # Only now: whoever asked for a task that is being given up tells nobody what it found.
        self._checked = self._clock()
