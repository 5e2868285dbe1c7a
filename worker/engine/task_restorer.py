"""Steps 5 to 7 of a take-over: restores a task from its topics, and finds what they have lost.

See docs/exactly-once.md, "Fence, then read".
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from worker.brokers.contract import Broker
from worker.brokers.truncation import Read, truncated_at, truncated_partitions
from worker.clock import Clock
from worker.core.books import Books
from worker.core.incidents import INTERNAL_SKIPPED, PROGRESS_LOST, UNREADABLE_INTERNAL
from worker.core.internal import read_progress
from worker.core.task import Task
from worker.core.task_settings import TaskSettings
from worker.core.topics import OWNERS, PARKED, PROGRESS, RESERVATIONS, TASK_INPUTS, Names
from worker.engine.identities import Identities
from worker.engine.last_checkpoints import LastCheckpoint
from worker.engine.replaced import replaced_inputs
from worker.engine.saved import read_state
from worker.engine.session import group_of
from worker.engine.takeover import Earlier
from worker.engine.task_handle import TaskHandle
from worker.index.freshness import is_another
from worker.stream import OffsetRange, Partition


class TaskRestorer:
    """Restores tasks from the log."""

    def __init__(
        self, broker: Broker, settings: TaskSettings, identities: Identities, clock: Clock
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._group = group_of(settings.names)
        self._identities = identities
        self._worker = f"{socket.gethostname()}/{os.getpid()}"
        """The name of this process in the books."""
        self._clock = clock
        self.progress_truncated: set[Partition] = set()
        """Partitions of the progress topic that are known to have lost their last messages."""
        self.commit_refusals: Callable[[int], Mapping[tuple[str, int], int]] = lambda _number: {}
        """Returns the records of a task whose outcome the broker refused, and how often."""
        self.on_unreadable: Callable[[Partition, Sequence[int]], None] = lambda _partition, _at: (
            None
        )
        """Called with the offsets of skipped messages of an internal topic."""
        self.on_holes: Callable[[Partition, int], None] = lambda _partition, _count: None
        """Called with the number of missing offsets of an internal topic: removed or damaged."""
        self.on_progress_lost: Callable[[Partition], None] = lambda _partition: None
        """Called for a task that has no checkpoint although it has worked before."""

    @property
    def missing_topics(self) -> Sequence[str]:
        """The topics of the tasks' state that are missing."""
        return self._identities.missing

    def given_up(self, number: int) -> None:
        """Another worker may go on from the last checkpoint that this worker has written."""
        self._identities.checkpoints.may_be_followed(number)

    async def restore(self, number: int, earlier: Earlier) -> TaskHandle:
        """Restore a task from the log; `earlier` is what its owners partition says.

        A task without a checkpoint in the log goes on from the last one that this worker knows. If
        others may have followed, this is reported as a topic without its end.
        Fence all earlier owners first. Raises as `read_state`.
        """
        names = self._settings.names
        task = Task(number, self._settings, Books(self._worker, self._clock.wall()))
        task.commit_refusals = self.commit_refusals(number)
        unreadable: Counter[Partition] = Counter()
        owners = Partition(names.owners, number)
        holes = Counter({owners: earlier.missing})

        def skipped(partition: Partition, offsets: Sequence[int]) -> None:
            unreadable[partition] += len(offsets)
            self.on_unreadable(partition, offsets)

        if earlier.unreadable:
            skipped(owners, earlier.unreadable)
        # Identities and lost offsets before the state, so that a later change is noticed.
        state = await self._identities.of_state()
        lost_before = await self._identities.lost_offsets(
            [Partition(name, number) for name in names.of_state()]
        )
        # Before the checkpoint, which another worker may have moved on by then.
        inputs = {name: Partition(names.input(name), number) for name in TASK_INPUTS}
        committed = await self._broker.committed(self._group, inputs.values())
        saved = await read_state(self._broker, self._settings, number, skipped, holes.update)
        progress = Partition(names.progress, number)
        outdated = progress in self.progress_truncated
        last = self._identities.checkpoints.of(number)
        if saved.checkpoint is None and last is not None:
            known = read_progress(b"%d" % number, last.value, number)
            saved = msgspec.structs.replace(saved, checkpoint=known)
            outdated |= not self._is_surely_the_last(last, earlier, state)
        if saved.unknown:
            replaced = await replaced_inputs(self._broker, inputs, saved.unknown)
            saved = msgspec.structs.replace(saved, replaced=replaced)
        task.restore(saved, self._clock.now())
        # A hole stays in the log, so `books.found` lets each loss be reported only once.
        topic_ids = {name: f"{name} {state.get(name, '')}" for name in names.of_state()}
        for partition, count in holes.items():
            if fresh := task.books.note_faults(INTERNAL_SKIPPED, topic_ids[partition.topic], count):
                self.on_holes(partition, fresh)
        for partition, count in unreadable.items():
            task.books.note_faults(UNREADABLE_INTERNAL, topic_ids[partition.topic], count)
        if saved.checkpoint is None:
            task.reading.topics = self._identities.of_inputs_before()
            anew = self._identities.is_another(names.progress, state.get(names.progress, ""))
            if anew or committed or saved.parked or saved.reservations:
                await self._identities.check()  # if the inputs are others, a new loop reports it
                task.books.incident(PROGRESS_LOST)
                self.on_progress_lost(progress)
                # That says it all: it did not lose its last messages alone.
                task.doubtful, committed, outdated = True, {}, False
        spans = await self._broker.spans(inputs.values())
        left = await self._left(task, inputs)
        handle = TaskHandle(
            task, {name: spans[partition].end for name, partition in inputs.items()}
        )
        handle.state_topics = state
        handle.lost_offsets = lost_before
        self.progress_truncated.discard(progress)  # nothing above has failed
        handle.missed = task.compare_topics(
            self._identities.of_inputs(),
            left,
            of_state(state, names) | (self._identities.of_outcomes() if number == 0 else {}),
            {names.entity_of(partition.topic): at for partition, at in committed.items()},
            outdated=outdated,
        )
        # The group's offsets may have been lost together with the checkpoints.
        handle.progress_truncated = outdated and not handle.missed.behind
        if handle.missed.truncated:
            await self._identities.check()  # if the topic is another one, this was no truncation
        return handle

    def _is_surely_the_last(
        self, last: LastCheckpoint, earlier: Earlier, state: Mapping[str, str]
    ) -> bool:
        """Whether nobody can have written a checkpoint of the task after this one.

        A later owner would have struck out the one that wrote it, in its first round. Without the
        topic that would say so, a checkpoint of this worker counts as the last.
        """
        owners = self._settings.names.owners
        anew = is_another(last.owners, state.get(owners))
        return last.owner in earlier.owners or (bool(last.owner) and anew)

    async def _left(self, task: Task, inputs: Mapping[str, Partition]) -> dict[str, OffsetRange]:
        """What the inputs hold, open transactions included; without what came after a truncation.

        Measured after the checkpoint was read. If another worker overtakes this take-over, its
        checkpoint is beyond ends that were measured before.
        """
        spans = await self._broker.spans(inputs.values(), uncommitted=True)
        identities = self._identities.of_inputs()
        read = {
            inputs[name]: Read(task.reading.first_unread(name), task.reading.arrived.get(name, 0))
            for name, topic in task.reading.topics.items()
            if topic and topic == identities.get(name)
        }
        for partition in await truncated_partitions(self._broker, read):
            span = spans[partition]
            end = await truncated_at(self._broker, partition, span, read[partition].latest)
            spans[partition] = OffsetRange(span.start, end)
        return {name: spans[partition] for name, partition in inputs.items()}


def of_state(identities: Mapping[str, str], names: Names) -> dict[str, str]:
    """The identities of the topics of a task's state, by their names in its checkpoint."""
    topics = {
        PROGRESS: names.progress,
        PARKED: names.parked,
        RESERVATIONS: names.granted,
        OWNERS: names.owners,
    }
    return {name: identities.get(topic, "") for name, topic in topics.items()}
