"""Detects topics that are deleted and re-created while the worker runs.

Offsets of the old topic mean nothing in the new topic. So the worker reads, judges and commits
only for the topics it started with. It checks the identities after it has read a batch and
before it commits. That suffices because an identity is never used twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from typing import Final

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.brokers.sound import sound_spans
from worker.core.topics import TASK_INPUTS, Names
from worker.engine.last_checkpoints import LastCheckpoints
from worker.errors import MissingTopic, TopicRecreated
from worker.index.freshness import is_another
from worker.stream import OffsetRange, Partition

_EVERY_MS: Final = 5_000
"""Interval of the checks of an idle worker."""


class Identities:
    """The topics of a worker: inputs, outcomes (accepted, rejected) and the state of tasks.

    `clock` is steady, in milliseconds.
    """

    def __init__(self, broker: Broker, names: Names, clock: Callable[[], int]) -> None:
        self._broker = broker
        self._clock = clock
        self._inputs = {name: names.input(name) for name in TASK_INPUTS}
        self._outcomes = {f"accepted.{entity}": names.accepted(entity) for entity in ENTITIES}
        self._outcomes |= {f"rejected.{entity}": names.rejected(entity) for entity in ENTITIES}
        self._names = [*self._inputs.values(), *self._outcomes.values()]
        self._state = names.of_state()
        self._known: Mapping[str, str] = {}
        self._now: Mapping[str, str] = {}
        self._before: dict[str, str] = {}
        """The last identities that this worker, or its index, knew of topics that it lost."""
        self.checkpoints = LastCheckpoints()
        """They outlive the topic that holds them, as what is remembered of identities does."""
        self.missing: Sequence[str] = ()
        """The topics of tasks' state that the last `check` did not find."""
        self.truncated: set[Partition] = set()
        """The partitions of tasks' state that the last count found without their last messages."""
        self._lost_offsets: Mapping[Partition, int] = {}
        self._checked = 0
        self._counted = 0

    async def capture(self) -> None:
        """Record the identities of the current topics as those that the worker works on.

        Raises MissingTopic if only some of the topics exist, and BrokerUnavailable.
        """
        known = await self._broker.identities(self._names)
        # A topic created later would have no known identity, so its re-creation would go
        # unnoticed. If no topic is known, `check_topics` reports them, or the broker is old.
        if known and (missing := [name for name in self._names if name not in known]):
            raise MissingTopic(f"topic {missing[0]} is missing: run 'buddy topics create'")
        self._known = known
        self._checked = self._counted = self._clock()

    def remember(self, identities: Mapping[str, str] | None = None) -> None:
        """Remember these identities, or all that are known, before `capture` replaces them.

        A task finds them in its checkpoint. They matter if the checkpoints were lost as well.
        """
        self._before |= {**self._now, **self._known} if identities is None else identities

    def of_inputs_before(self) -> dict[str, str]:
        """The remembered identity of each input's topic, by `TASK_INPUTS`; only those known."""
        topics = self._inputs.items()
        return {name: self._before[topic] for name, topic in topics if topic in self._before}

    def is_another(self, topic: str, identity: str) -> bool:
        """Whether the topic had another identity when it was remembered."""
        return is_another(self._before.get(topic), identity)

    def of_inputs(self) -> dict[str, str]:
        """The identity of each input's topic, by `TASK_INPUTS`."""
        return {name: self._known.get(topic, "") for name, topic in self._inputs.items()}

    def of_outcomes(self) -> dict[str, str]:
        """The identity of each accepted and rejected topic, by topic name without the prefix."""
        return {name: self._known.get(topic, "") for name, topic in self._outcomes.items()}

    def of_topics(self) -> Mapping[str, str]:
        """The identity of each input, accepted and rejected topic, by topic name."""
        return self._known

    async def of_state(self) -> dict[str, str]:
        """The current identities of the topics of tasks' state. Raises BrokerUnavailable."""
        state = await self._broker.identities(self._state)
        self._now = {**self._now, **state}
        return state

    def anew(self, state: Mapping[str, str]) -> dict[str, str]:
        """The topics whose identity in `state` is outdated, each with its last known identity."""
        return {n: self._now[n] for n in state if is_another(state[n], self._now.get(n))}

    async def lost_offsets(self, state: Collection[Partition]) -> dict[Partition, int]:
        """How many offsets each partition has lost: removed, or damaged and skipped.

        Compaction never moves a start, but removing records does. Raises BrokerUnavailable,
        MissingTopic.
        """
        return await self._lost(await self._spans(state))

    async def _spans(self, state: Collection[Partition]) -> dict[Partition, OffsetRange]:
        # Open transactions included: the markers of a finished commit may still be on their way.
        return await sound_spans(self._broker, state, uncommitted=True)

    async def _lost(self, spans: Mapping[Partition, OffsetRange]) -> dict[Partition, int]:
        skipped = await self._broker.skipped()
        return {p: span.start + skipped.get(p, 0) for p, span in spans.items()}

    def forget(self, partition: Partition) -> None:
        """Drop the count of a partition whose topic was re-created, until the next count."""
        self._lost_offsets = {p: count for p, count in self._lost_offsets.items() if p != partition}

    def newly_lost(self, before: Mapping[Partition, int]) -> dict[Partition, int]:
        """The partitions that have lost more offsets than `before`, each with the new count."""
        now = self._lost_offsets
        return {p: now[p] for p, count in before.items() if now.get(p, count) > count}

    @property
    def due(self) -> bool:
        """Whether the last `check` is at least 5 s old."""
        return self._clock() - self._checked >= _EVERY_MS

    async def check_partitions(self, tasks: int, written: Mapping[Partition, int]) -> None:
        """Check every 5 s that each input still has exactly one partition per task.

        Adding partitions does not change a topic's identity. Also count the lost offsets of the
        partitions of tasks' state, and find those that are truncated: `written` has the offset
        after the last message of each that is surely there. Raises TopicRecreated,
        BrokerUnavailable.
        """
        if self._clock() - self._counted < _EVERY_MS:
            return
        for name, topic in (await self._broker.topics(self._inputs.values())).items():
            if topic.partitions != tasks:
                raise TopicRecreated(f"topic {name} had {tasks} partitions, now {topic.partitions}")
        with suppress(MissingTopic):  # `missing` reports it
            spans = await self._spans(written)
            self._lost_offsets = await self._lost(spans)
            self.truncated = {p for p, end in written.items() if p in spans and spans[p].end < end}
        self._counted = self._clock()

    async def check(self) -> None:
        """Raise TopicRecreated if an input or outcome topic was deleted or re-created.

        Missing topics of tasks' state are only recorded in `missing`. Raises BrokerUnavailable.
        """
        now = await self._broker.identities([*self._names, *self._state])
        for name, identity in self._known.items():
            if now.get(name) != identity:
                raise TopicRecreated(f"topic {name} was deleted or created anew")
        self._now = now
        # Tasks have their state in memory, and rewrite it once the topic is back. An old broker
        # returns no identities at all, so nothing counts as missing there.
        self.missing = [name for name in self._state if name not in now] if self._known else []
        # Set only on success: a round may be dropped together with the error of its check.
        self._checked = self._clock()
