"""Who has which task: the group, as the broker has it and as its members see it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from tests.simulation.dice import Dice
from tests.simulation.threads import Thread
from tests.simulation.world import Log
from worker.brokers.contract import Message
from worker.core.reading import Missed
from worker.core.task import Task
from worker.index.contract import Learned

if TYPE_CHECKING:
    from tests.simulation.actors import Worker


class Cluster:
    """The group: who has which task, and what each member knows of it."""

    def __init__(self, dice: Dice, tasks: int) -> None:
        self.members: list[Worker] = []
        self._dice = dice
        self._owners: list[Worker | None] = [None] * tasks

    def join(self, worker: Worker) -> None:
        """A member more: tasks are shared out anew."""
        self.members.append(worker)
        self.rebalance()

    def leave(self, worker: Worker) -> None:
        """A member less, be it because it has not been heard of."""
        if worker in self.members:
            self.members.remove(worker)
            self.rebalance()

    def rebalance(self) -> None:
        """Share the tasks out, anyhow."""
        members = self.members
        for number in range(len(self._owners)):
            self._owners[number] = self._dice.choice(members) if members else None

    def assignment(self, worker: Worker) -> list[int]:
        """What a member believes to be its own: at times it is not told what is new."""
        if not self._dice.fineness or self._dice.random() < 0.7:
            if worker not in self.members:
                self.join(worker)
            worker.view = [q for q, owner in enumerate(self._owners) if owner is worker]
        return worker.view


class Batch(NamedTuple):
    """What a task has read, and what is read next of each of its inputs."""

    messages: list[Message]
    positions: dict[str, int]


class Owned:
    """One task of a worker."""

    def __init__(self, task: Task, epoch: int, inputs: dict[str, Log], missed: Missed) -> None:
        self.task = task
        self.epoch = epoch
        self.inputs = inputs
        self.missed = missed
        self.inbox: list[Message] = []
        self.positions: dict[str, int] = {}
        """Where what it has judged, or is judging, ends."""
        self.learned = Learned([], [])
        self.work: Thread | None = None
        self.assigned = False
        self.looked = -1
        """Which move of its worker's positions it has seen."""
