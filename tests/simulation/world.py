"""The broker of the simulation: logs, transactions, fences, and a clock that the schedule moves.

As on Kafka, a transaction is decided first and then marked in each partition by itself, at any
later moment: one partition may show it while another does not. A reader sees a partition up to
the first transaction that has no mark there, while its end already covers what is open.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Final, Literal

from worker.brokers.contract import Headers, Message, Outgoing, Partition
from worker.brokers.partitioner import partition_for

START_OF_TIME: Final = 1_717_200_000_000
TRANSACTION_LIMIT: Final = 15_000
"""Milliseconds after which the broker aborts what is open, and fences its writer."""

place_of = lru_cache(maxsize=4096)(partition_for)


class Fenced(Exception):
    """Another has become the writer of the task, or the broker has given this one up."""


class Transaction:
    """What one task writes at once. `unmarked` are the partitions that lack its mark.

    `topics` has the generation of each input that its writer believes to read.
    """

    __slots__ = ("began", "epoch", "messages", "state", "task", "tick", "topics", "unmarked")

    def __init__(self, task: int, epoch: int, began: int, topics: Mapping[str, int]) -> None:
        self.task = task
        self.epoch = epoch
        self.began = began
        self.topics = topics
        self.state: Literal["open", "committed", "aborted"] = "open"
        self.unmarked: dict[Log, None] = {}
        self.messages: list[Message] = []
        self.tick = 0
        """When it was decided."""


class Log:
    """One partition: messages and marks, each at an offset of its own."""

    __slots__ = ("_decided", "_open", "_writers", "entries", "place", "stable", "ticks")

    def __init__(self, place: Partition) -> None:
        self.place = place
        self.entries: list[Message | None] = []
        self.stable = 0
        """How far readers of committed messages can see."""
        self.ticks: list[int] = []
        """The world's tick when each was appended."""
        self._open: dict[Transaction, int] = {}
        """Transactions without a mark here, with their first offsets, in growing order."""
        self._writers: list[Transaction | None] = []
        self._decided: list[Message | None] = []
        """The entries up to where somebody has read; None for marks and what was aborted."""

    def clear(self) -> None:
        """Begin again at offset 0: the topic has been created anew."""
        assert not self._open
        self.entries, self.ticks, self._writers, self._decided = [], [], [], []
        self.stable = 0

    @property
    def end(self) -> int:
        """The end with everything that is still open: the high watermark."""
        return len(self.entries)

    @property
    def is_open(self) -> bool:
        """Whether some transaction has no mark here yet."""
        return bool(self._open)

    def append(self, message: Message | None, writer: Transaction | None, tick: int) -> None:
        """Add a message at the end; None is the mark of its writer."""
        if writer is not None:
            if message is None:
                del self._open[writer]
            else:
                self._open.setdefault(writer, len(self.entries))
        self.entries.append(message)
        self.ticks.append(tick)
        self._writers.append(writer)
        self.stable = next(iter(self._open.values())) if self._open else len(self.entries)

    def read(self, position: int, limit: int) -> tuple[list[Message], int]:
        """Up to so many committed messages, and the position after them."""
        stable, decided = self.stable, self._decided
        if len(decided) < stable:  # what readers can see is decided, once and for all
            for place in range(len(decided), stable):
                writer = self._writers[place]
                counts = writer is None or writer.state == "committed"
                decided.append(self.entries[place] if counts else None)
        if stable - position <= limit:
            return [m for m in decided[position:stable] if m is not None], max(position, stable)
        found: list[Message] = []
        while position < stable and limit:
            message = decided[position]
            if message is not None:
                found.append(message)
                limit -= 1
            position += 1
        return found, position


class World:
    """All logs, the writers of the tasks, and the clock.

    `tick` counts what happens: it orders appended inputs and decided transactions. When `eager`,
    marks are written at once.
    """

    def __init__(self, tasks: int, committed: Callable[[Transaction], None]) -> None:
        self.tasks = tasks
        self.now = START_OF_TIME
        self.tick = 0
        self.eager = False
        self.shown = 0
        """Counts how often readers of some log came to see more of it."""
        self.generations: dict[str, int] = {}
        """By topic: how often it was created anew, if ever. Replaced whenever that changes."""
        self.trace: Callable[[str], None] | None = None
        self.counts: Counter[str] = Counter()
        """Takeovers, and transactions by what became of them."""
        self.logs: dict[tuple[str, int], Log] = {}
        """By topic and number; a `Partition` finds them too."""
        self.unmarked: list[tuple[Transaction, Log]] = []
        """Marks that are still to be written, of decided transactions."""
        self._committed = committed
        self._epochs = [0] * tasks
        self._current: list[Transaction | None] = [None] * tasks

    def log(self, topic: str, number: int) -> Log:
        """The partition of that name."""
        found = self.logs.get((topic, number))
        if found is None:
            place = Partition(topic, number)
            found = self.logs[place] = Log(place)
        return found

    def more(self, positions: Mapping[Log, int], logs: Sequence[Log]) -> Callable[[], bool]:
        """Says whether one of these logs shows more than up to these positions, which stay.

        It looks again only where some log has come to show more since it found nothing.
        """
        looked = -1

        def more() -> bool:
            nonlocal looked
            if looked == self.shown:
                return False
            for log in logs:
                if positions[log] < log.stable:
                    return True
            looked = self.shown
            return False

        return more

    def produce(self, topic: str, number: int, key: bytes | None, value: bytes | None) -> Message:
        """Append one message outside any transaction, as upstream does."""
        self.tick += 1
        self.shown += 1
        return self._append(self.log(topic, number), key, value, (), None)

    def is_open(self, topic: str) -> bool:
        """Whether some transaction has no mark there yet."""
        return any(self.log(topic, number).is_open for number in range(self.tasks))

    def create_anew(self, topic: str) -> None:
        """Delete an input with all that is in it, and create it: it has another identity.

        Not while a transaction is open in it.
        """
        self.tick += 1
        self.shown += 1
        self.generations = {**self.generations, topic: self.generations.get(topic, 0) + 1}
        for number in range(self.tasks):
            self.log(topic, number).clear()

    # --- writers ------------------------------------------------------------------------------

    def fence(self, task: int) -> int:
        """Become the writer of a task: its new epoch. Go on when it is `settled`."""
        self.counts["takeovers"] += self._epochs[task] > 0
        self._epochs[task] += 1
        current = self._current[task]
        if current is not None and current.state == "open":
            self._decide(current, "aborted")
        return self._epochs[task]

    def settled(self, task: int) -> bool:
        """Whether every transaction of the task so far is marked everywhere."""
        return self._current[task] is None

    def is_writer(self, task: int, epoch: int) -> bool:
        """Whether nobody else has become the writer since."""
        return self._epochs[task] == epoch

    def begin(self, task: int, epoch: int, topics: Mapping[str, int]) -> Transaction:
        """Open a transaction; the one before must be settled. Raises Fenced."""
        self._check(task, epoch)
        assert self._current[task] is None
        transaction = self._current[task] = Transaction(task, epoch, self.now, topics)
        return transaction

    def write(self, transaction: Transaction, log: Log, messages: Sequence[Outgoing]) -> None:
        """Append messages of one partition to an open transaction. Raises Fenced."""
        self._check(transaction.task, transaction.epoch)
        transaction.unmarked[log] = None
        for message in messages:
            added = self._append(log, message.key, message.value, message.headers, transaction)
            transaction.messages.append(added)

    def commit(self, transaction: Transaction) -> None:
        """Decide that it takes place. Raises Fenced."""
        self._check(transaction.task, transaction.epoch)
        assert transaction.state == "open"
        self._decide(transaction, "committed")

    def mark(self, index: int) -> None:
        """Write one of the marks that are outstanding."""
        transaction, log = self.unmarked.pop(index)
        log.append(None, transaction, self.tick)
        self.shown += 1
        del transaction.unmarked[log]
        if self.trace:
            self.trace(f"marks {transaction.state} task {transaction.task} in {_name(log)}")
        if not transaction.unmarked:
            self._current[transaction.task] = None

    def open_transactions(self) -> Iterator[Transaction]:
        """Those that nothing has been decided about."""
        return (t for t in self._current if t is not None and t.state == "open")

    def expire(self) -> None:
        """Abort what has been open for too long; its writer is fenced."""
        for transaction in self.open_transactions():
            if self.now - transaction.began >= TRANSACTION_LIMIT:
                self._epochs[transaction.task] += 1
                self._decide(transaction, "aborted")

    def number_of(self, message: Outgoing) -> int:
        """The partition that a message goes to."""
        if message.partition is not None:
            return message.partition
        return 0 if message.key is None else place_of(message.key, self.tasks)

    # --- inside -------------------------------------------------------------------------------

    def _check(self, task: int, epoch: int) -> None:
        if not self.is_writer(task, epoch):
            self.counts["fenced"] += 1
            raise Fenced

    def _decide(self, transaction: Transaction, state: Literal["committed", "aborted"]) -> None:
        self.tick += 1
        self.counts[state] += 1
        transaction.state = state
        transaction.tick = self.tick
        if self.trace:
            self.trace(f"task {transaction.task} epoch {transaction.epoch}: {state}")
        if not transaction.unmarked:
            self._current[transaction.task] = None
        self.unmarked += [(transaction, log) for log in transaction.unmarked]
        if state == "committed":
            self._committed(transaction)
        if self.eager:
            self.mark_all()

    def mark_all(self) -> None:
        """Write all marks that are outstanding."""
        while self.unmarked:
            self.mark(0)

    def _append(
        self,
        log: Log,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        writer: Transaction | None,
    ) -> Message:
        topic, number = log.place
        message = Message(topic, number, len(log.entries), self.now, key, value, headers)
        log.append(message, writer, self.tick)
        if self.trace:
            self.trace(f"    {_name(log)}@{message.offset} {_short(key)} = {_short(value)}")
        return message


def _name(log: Log) -> str:
    topic, number = log.place
    return f"{topic.partition('.')[2]}/{number}"


def _short(data: bytes | None) -> str:
    if data is None:
        return "-"
    return data.decode() if data.isascii() and len(data) < 400 else repr(data)[:400]
