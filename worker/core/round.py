"""A round: one decision over all tasks of a worker, written in one commit.

The tasks see each other's rows. If the owner of an address is among them, it grants the address at
once, without a message. State changes while the round is decided. If the commit fails, discard all
tasks and restore them from their topics.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from schemas import ENTITIES
from worker.core.known import IndexDelta
from worker.core.moments import Moment
from worker.core.outbox import Tally
from worker.core.recent import RecentRows
from worker.core.task import CLAIMS, GRANTS, INPUTS, Task
from worker.stream import Message, ProducerRecord


class Batch(msgspec.Struct, frozen=True):
    """The messages read for a task, and the next offset of each input.

    The messages of one input are in order; `positions` has every input (`INPUTS`). `until` is the
    append time up to which all users, and all matches, are in this batch or an earlier one.
    """

    messages: Sequence[Message]
    positions: Mapping[str, int]
    until: Mapping[str, int] = {}


class Decision(msgspec.Struct):
    """The result of a round: the messages to write together, and a tally for each task."""

    outputs: list[ProducerRecord]
    tallies: dict[int, Tally]


def needs_synchronised(
    tasks: Mapping[int, Task], batches: Mapping[int, Batch], recent: RecentRows, now: Moment
) -> bool:
    """Whether this round needs an index that shows every committed row."""
    return any(
        tasks[number].needs_synchronised(batch.messages, tasks, recent, now)
        for number, batch in batches.items()
    )


def decide(
    tasks: Mapping[int, Task],
    batches: Mapping[int, Batch],
    learned: IndexDelta,
    recent: RecentRows,
    now: Moment,
    *,
    synchronised: bool = False,
) -> Decision:
    """Decide on the batches, and on parked records whose wait has ended.

    `tasks` are all tasks of the worker. Every task with work has a batch, possibly an empty one.
    `learned` are the ids that are newly known to the index. `synchronised` means that the index
    shows every row that was committed when the batches had been read. It must be true where
    `needs_synchronised` says so.
    """
    return _Round(tasks, recent, now, synchronised=synchronised).decide(batches, learned)


class _Round:
    def __init__(
        self, tasks: Mapping[int, Task], recent: RecentRows, now: Moment, *, synchronised: bool
    ) -> None:
        self._tasks = tasks
        self._recent = recent
        self._now = now
        self._synchronised = synchronised
        self._messages: list[ProducerRecord] = []
        self._active: dict[int, Task] = {}

    def decide(self, batches: Mapping[int, Batch], learned: IndexDelta) -> Decision:
        for task in self._tasks.values():
            task.addresses.begin(synchronised=self._synchronised)
        for number in batches:
            self._join(number)
        self._wake({*learned.users, *learned.matches})
        inputs = {number: _by_input(self._tasks[number], b) for number, b in batches.items()}
        # The order of `INPUTS`. Records that other tasks wait for come first. Users and matches
        # come before the rest, so that more references are known.
        for number, by_input in inputs.items():
            for message in by_input[GRANTS]:
                self._tasks[number].take_grant(message)
        for number, by_input in inputs.items():
            for message in by_input[CLAIMS]:
                self._tasks[number].answer(message)
        self._wake_fresh()
        for entity in ENTITIES:
            for number, by_input in inputs.items():
                self._tasks[number].read(entity, by_input[entity])
            self._wake_fresh()
        for task in list(self._active.values()):
            task.give_up()
        self._wake_fresh()
        tallies = {}
        for number, task in self._active.items():
            batch = batches.get(number)
            if batch is not None:
                task.reading.next.update(batch.positions)
                task.reading.until.update(batch.until)
            tallies[number] = task.end_round()
        return Decision(self._messages, tallies)

    def _join(self, number: int) -> Task:
        """Make a task take part in the round."""
        task = self._active.get(number)
        if task is None:
            task = self._active[number] = self._tasks[number]
            task.begin_round(self._tasks, self._recent, self._now, self._messages)
        return task

    def _wake_fresh(self) -> None:
        """Evaluate what waits for newly accepted rows, until no more rows are accepted."""
        while fresh := self._recent.take_fresh():
            self._wake(set(fresh))

    def _wake(self, ids: set[bytes]) -> None:
        for number, task in self._tasks.items():
            if found := task.parking.awaited(ids):
                self._join(number).wake(found)


def _by_input(task: Task, batch: Batch) -> dict[str, list[Message]]:
    sorted_: dict[str, list[Message]] = {name: [] for name in INPUTS}
    for message in batch.messages:
        sorted_[task.inputs[message.topic]].append(message)
    return sorted_
