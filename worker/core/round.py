"""A round: one decision over all tasks of a worker, written in one commit.

The tasks see each other's rows. If the owner of an address is among them, it grants the address at
once, without a message. State changes while the round is decided. If the commit fails, discard all
tasks and restore them from their topics.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import msgspec

from schemas import ENTITIES
from worker.core.addresses import ReservationRequest, owner_of
from worker.core.decode import Decoded, DecodeResult
from worker.core.internal import read_request
from worker.core.keys import id_bytes
from worker.core.known import IndexDelta
from worker.core.moments import Moment
from worker.core.outbox import Tally
from worker.core.recent import RecentRows
from worker.core.task import Task
from worker.core.task_round import TaskRound
from worker.core.topics import REPLIES, REQUESTS, TASK_INPUTS
from worker.stream import Message, ProducerRecord


class TaskBatch(msgspec.Struct, frozen=True):
    """The messages read for a task, and the next offset of each input.

    The messages of one input are in order; `positions` has every input (`TASK_INPUTS`).
    `watermarks` are append times: all users, and all matches, up to them are in this batch or an
    earlier one.
    """

    messages: Sequence[Message]
    positions: Mapping[str, int]
    watermarks: Mapping[str, int] = {}


class Decision(msgspec.Struct):
    """The result of a round: the messages to write together, and a tally for each task."""

    outputs: list[ProducerRecord]
    tallies: dict[int, Tally]


class Round:
    """Decides on the batches, and on parked records whose wait has ended.

    `tasks` are all tasks of the worker. Every task with work has a batch, possibly an empty one.
    Call `decide` once.
    """

    def __init__(
        self, tasks: Mapping[int, Task], batches: Mapping[int, TaskBatch], recent: RecentRows
    ) -> None:
        self._tasks = tasks
        self._batches = batches
        self._recent = recent
        self._decode_results: dict[int, dict[int, DecodeResult]] = {}
        """By task: outcomes of the users in its batch, by offset."""
        self._messages: list[ProducerRecord] = []
        self._active: dict[int, TaskRound] = {}

    def restrict(self, numbers: Container[int]) -> None:
        """Decide for these tasks alone: the others have been given up meanwhile."""
        self._tasks = {n: task for n, task in self._tasks.items() if n in numbers}
        self._batches = {n: batch for n, batch in self._batches.items() if n in numbers}

    def needs_current_index(self, now: Moment) -> bool:
        """Whether this round needs an index that shows every committed row."""
        return any(self._is_contested(number, now) for number in self._batches)

    def decide(self, delta: IndexDelta, now: Moment, *, synchronised: bool = False) -> Decision:
        """Decide, and advance the state of the tasks.

        `delta` are the ids that are newly known to the index. `synchronised` means that the index
        shows every row that was committed when the batches had been read. It must be true where
        `needs_current_index` says so.
        """
        self._now = now
        self._reservations = {number: task.addresses for number, task in self._tasks.items()}
        for addresses in self._reservations.values():
            addresses.begin(synchronised=synchronised)
        for number in self._batches:
            self._join(number)
        self._wake({*delta.users, *delta.matches})
        inputs = {number: _by_input(self._tasks[number], b) for number, b in self._batches.items()}
        # The order of `TASK_INPUTS`. Records that other tasks wait for come first. Users and
        # matches come before the rest, so that more references are known.
        for number, by_input in inputs.items():
            for message in by_input[REPLIES]:
                self._active[number].apply_reply(message)
        for number, by_input in inputs.items():
            for message in by_input[REQUESTS]:
                self._active[number].apply_request_or_release(message)
        self._wake_fresh()
        for entity in ENTITIES:
            for number, by_input in inputs.items():
                self._active[number].judge_batch(entity, by_input[entity])
            self._wake_fresh()
        for part in list(self._active.values()):
            part.judge_passed()
        self._wake_fresh()
        for number, batch in self._batches.items():
            reading = self._tasks[number].reading
            reading.move(batch.positions, batch.watermarks, inputs[number])
        return Decision(self._messages, {n: part.end() for n, part in self._active.items()})

    def _is_contested(self, number: int, now: Moment) -> bool:
        """Whether a task cannot decide on its batch by an index that may be behind."""
        task, messages = self._tasks[number], self._batches[number].messages
        if task.awaits_first_round or task.addresses.crowded:
            return True
        decoded = self._decode_results[number] = task.decode_users(messages, now.wall)
        requested = [
            (outcome.address, id_bytes(outcome.key.decode()))
            for outcome in decoded.values()
            if isinstance(outcome, Decoded) and outcome.address is not None
        ]
        for message in messages:
            if task.inputs[message.topic] == REQUESTS:
                request = read_request(message.value, number, task.settings.tasks)
                if isinstance(request, ReservationRequest):
                    requested.append((request.address, request.user))
        for address, user in requested:
            owner = self._tasks.get(owner_of(address, task.settings.tasks))
            if owner is not None and owner.addresses.contested(address, user, self._recent):
                return True
        return False

    def _join(self, number: int) -> TaskRound:
        """Make a task take part in the round."""
        part = self._active.get(number)
        if part is None:
            part = self._active[number] = TaskRound(
                self._tasks[number],
                self._reservations,
                self._recent,
                self._now,
                self._messages,
                self._decode_results.get(number, {}),
            )
            part.settle_waiting()
        return part

    def _wake_fresh(self) -> None:
        """Evaluate what waits for newly accepted rows, until no more rows are accepted."""
        while fresh := self._recent.take_fresh():
            self._wake(set(fresh))

    def _wake(self, ids: set[bytes]) -> None:
        for number, task in self._tasks.items():
            if found := task.parking.awaited(ids):
                self._join(number).wake(found)


def _by_input(task: Task, batch: TaskBatch) -> dict[str, list[Message]]:
    sorted_: dict[str, list[Message]] = {name: [] for name in TASK_INPUTS}
    for message in batch.messages:
        sorted_[task.inputs[message.topic]].append(message)
    return sorted_
