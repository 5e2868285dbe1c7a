"""One task of this worker between its rounds: its inbox, and what the take-over found."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping, Sequence

from worker.core.pressure import weight
from worker.core.reading import LAST_OFFSET, Missed
from worker.core.task import Task
from worker.core.task_settings import TaskSettings
from worker.core.topics import TASK_INPUTS
from worker.engine.index_updater import INDEXED
from worker.engine.order import FOREVER
from worker.stream import Message, Partition


class TaskHandle:
    """One task of this worker, with the messages that it has not judged yet."""

    def __init__(self, task: Task, ends: Mapping[str, int]) -> None:
        self.task = task
        self.ends = ends
        """The end offset of each input at the take-over."""
        self.inbox: dict[str, list[Message]] = {name: [] for name in TASK_INPUTS}
        """The messages read but not judged, by input."""
        self.times: dict[str, list[int]] = {name: [] for name in TASK_INPUTS}
        """The times of these messages, as `put` computes them."""
        self.inbox_bytes = Counter[str]()
        self.read_until: dict[str, int] = {}
        """The time of the last message read, by input."""
        self.positions: dict[str, int] = {}
        """By input: the first offset after the latest batch."""
        self.missed = Missed()
        """The losses and re-created topics found at the take-over."""
        self.progress_truncated = False
        """Whether the index had read checkpoints that are gone, while `missed` knows nothing."""
        self.assigned = False
        """Whether the reader is assigned its inputs."""
        self.state_topics: dict[str, str] = {}
        """The identities of the topics that its state was last read from or rewritten to."""
        self.lost_offsets: dict[Partition, int] = {}
        """The number of lost offsets in the partitions of these topics at that time."""
        self.written: dict[Partition, int] = {}
        """By partition of these topics: the offset after the last message of a finished commit."""
        self.truncated: set[Partition] = set()
        """Those that have lost messages of finished commits since."""

    def put(self, messages: Sequence[Message], now: int) -> None:
        """Append messages of one input to its inbox, in offset order. `now` is the wall clock.

        A message counts as of its append time. Without one it counts as of the time that its
        producer gave, but not of one in the future, for which it would wait, nor before 1970.
        """
        name = self.task.inputs[messages[0].topic]
        times = [m.timestamp if m.appended else min(max(m.timestamp, 0), now) for m in messages]
        self.inbox[name] += messages
        self.inbox_bytes[name] += sum(map(weight, messages))
        self.times[name] += times
        self.read_until[name] = times[-1]

    def take(self, limits: Mapping[str, int]) -> list[Message]:
        """Remove and return the messages up to these times; inputs without a limit: all."""
        taken: list[Message] = []
        for name, messages in self.inbox.items():
            times, limit = self.times[name], limits.get(name, FOREVER)
            if not times or times[0] > limit:
                continue
            if times[-1] <= limit:
                taken += messages
                self.inbox[name], self.times[name] = [], []
                self.inbox_bytes[name] = 0
                continue
            count = bisect_right(times, limit)
            some, self.inbox[name] = messages[:count], messages[count:]
            self.times[name] = times[count:]
            taken += some
            self.inbox_bytes[name] -= sum(map(weight, some))
        return taken

    def taken_until(self) -> dict[str, int]:
        """The time up to which all users, and all matches, have left the inbox."""
        return {
            entity: times[0] - 1 if (times := self.times[entity]) else self.read_until[entity]
            for entity in INDEXED
            if entity in self.read_until
        }

    def note_written(self, topic: str, offset: int) -> None:
        """Note the offset of a committed message of the task's state.

        Offsets only grow. A lower one than before proves that the topic has lost its last messages.
        """
        partition = Partition(topic, self.task.number)
        if offset < self.written.get(partition, 0):
            self.truncated.add(partition)
        self.written[partition] = offset + 1

    def has_unneeded(self, name: str, end: int = LAST_OFFSET) -> bool:
        """Whether a record of an input has a copy, is not in its inbox, and comes before `end`."""
        inbox = self.inbox[name]
        begin = inbox[-1].offset + 1 if inbox else self.positions.get(name, 0)
        return self.task.has_unneeded(name, max(begin, self.task.reading.next[name]), end)

    def waiting(self) -> int:
        """Number of messages in the inbox."""
        return sum(map(len, self.inbox.values()))


def reached(task: Task, settings: TaskSettings) -> dict[Partition, int]:
    """The next unread offset of each input, for group offsets; ignores records read again."""
    return {
        Partition(settings.names.input(name), task.number): offset
        for name, offset in task.reading.reached.items()
    }


def inputs(task: Task, settings: TaskSettings) -> dict[Partition, int]:
    """The next offset to read of each input of a task."""
    return {
        Partition(settings.names.input(name), task.number): offset
        for name, offset in task.reading.next.items()
    }
