"""The truth behind all connections: topics, transactions, the fences of names, groups.

Everything here happens in one step. What takes time, and what can go wrong on the way, is the
business of a connection (`connection`) and its network. `tick` counts what happens: it orders
appended messages and decided transactions.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final, Literal, Protocol

from tests.proofs.simulation.broker.group import Group
from tests.proofs.simulation.broker.log import Log, Transaction
from worker.brokers.partitioner import partition_for
from worker.errors import Fenced, MessageRefused, MissingTopic
from worker.stream import Headers, Message, Partition, ProducerRecord, Topic

_OVERHEAD: Final = 100
"""Bytes that a message takes besides key, value and headers."""


class Waiting(Protocol):
    """Somebody who waits until a partition shows more."""

    def shown(self, log: Log) -> None:
        """A reader of this partition sees more than before."""


class Weather:
    """When the broker does what it does by itself. This one: at once, and no time limits."""

    def mark(self, act: Callable[[], None]) -> None:
        """Write a marker, at some moment."""
        act()

    def limit(self, act: Callable[[], None]) -> None:
        """Once a transaction has been open for too long."""

    def refuses(self, message: ProducerRecord) -> bool:
        """Whether the broker will never take this message, for a reason of its own."""
        return False


class Writer:
    """The committers of one name: the epoch of the present one, and what it has open."""

    __slots__ = ("current", "epoch")

    def __init__(self) -> None:
        self.epoch = 0
        self.current: Transaction | None = None
        """The last transaction, until it is marked everywhere."""


class Cluster:
    """All that is stored. `clock` tells append times, in milliseconds."""

    def __init__(self, clock: Callable[[], int], weather: Weather | None = None) -> None:
        self.clock = clock
        self.tick = 0
        self.topics: dict[str, Topic] = {}
        self.identities: dict[str, str] = {}
        self.generations: dict[str, int] = {}
        """By topic: how often it was created anew."""
        self.logs: dict[tuple[str, int], Log] = {}
        """By topic and number; a `Partition` finds them too."""
        self.offsets: dict[tuple[str, Partition], int] = {}
        """Of groups."""
        self.groups: dict[str, Group] = {}
        self.counts: Counter[str] = Counter()
        self.waiting: dict[Waiting, None] = {}
        self.on_committed: Callable[[Transaction], None] = lambda _transaction: None
        """Told of each transaction that takes place, before anybody sees it."""
        self.on_read: Callable[[Sequence[Message]], None] = lambda _messages: None
        """Told what a reader is given."""
        self.trace: Callable[[str], None] | None = None
        self.weather = weather or Weather()
        self._writers: dict[str, Writer] = {}
        self._created = 0
        self._turn = 0

    # --- topics -------------------------------------------------------------------------------

    def create(self, topic: Topic) -> bool:
        """Create a topic unless it is there."""
        if topic.name in self.topics:
            return False
        self.tick += 1
        self._created += 1
        self.generations[topic.name] = self.generations.get(topic.name, -1) + 1
        self.topics[topic.name] = topic
        self.identities[topic.name] = f"id-{self._created}"
        for number in range(topic.partitions):
            place = Partition(topic.name, number)
            self.logs[place] = Log(place, topic)
        for group in self.groups.values():
            if group.topic == topic.name and len(group.owners) != topic.partitions:
                group.resize(topic.partitions)
        return True

    def delete(self, name: str) -> Topic:
        """Delete a topic with all that is in it."""
        self.tick += 1
        topic = self.topics.pop(name)
        del self.identities[name]
        for number in range(topic.partitions):
            del self.logs[name, number]
        return topic

    def log(self, place: tuple[str, int]) -> Log:
        """The partition of that name. Raises MissingTopic."""
        found = self.logs.get(place)
        if found is None:
            raise MissingTopic(f"topic {place[0]} has no partition {place[1]}, or does not exist")
        return found

    def logs_of(self, name: str) -> list[Log]:
        """The partitions of a topic."""
        return [self.logs[name, number] for number in range(self.topics[name].partitions)]

    def place(self, messages: Sequence[ProducerRecord]) -> list[Log]:
        """Where each message goes. Raises MissingTopic, MessageRefused."""
        self._turn += 1
        placed = [self._place(message) for message in messages]
        refused = {index: why for index, m in enumerate(messages) if (why := self._refuses(m))}
        if refused:
            raise MessageRefused.of(refused)
        return placed

    def _place(self, message: ProducerRecord) -> Log:
        number = message.partition
        topic = self.topics.get(message.topic)
        if topic is None:
            raise MissingTopic(f"topic {message.topic} does not exist")
        if number is None:
            keyless = message.key is None
            number = self._turn if keyless else partition_for(message.key or b"", topic.partitions)
            number %= topic.partitions
        return self.log((message.topic, number))

    def _refuses(self, message: ProducerRecord) -> str | None:
        topic = self.topics[message.topic]
        size = _OVERHEAD + len(message.key or b"") + len(message.value or b"")
        size += sum(len(name.encode()) + len(value) for name, value in message.headers)
        if size > topic.max_message_bytes:
            return f"{message.topic} takes no message of {size} bytes"
        if topic.compacted and message.key is None:
            return f"{message.topic} takes no message without a key"
        if self.weather.refuses(message):
            return f"{message.topic} does not take this one"
        return None

    def append(
        self,
        log: Log,
        key: bytes | None,
        value: bytes | None,
        headers: Headers = (),
        writer: Transaction | None = None,
    ) -> Message:
        """Append a message, of a transaction or by itself."""
        self.tick += 1
        topic, number = log.place
        appended = log.topic.append_time
        offset = log.end
        message = Message(topic, number, offset, self.clock(), key, value, headers, appended)
        log.append(message, writer, self.tick)
        if writer is None:
            self._show(log)
        if self.trace is not None:
            self.trace(f"    {topic}/{number}@{offset} {_short(key)} = {_short(value)}")
        return message

    # --- transactions -------------------------------------------------------------------------

    def fence(self, name: str) -> int:
        """Become the writer of that name: its new epoch. Go on when it is `settled`."""
        writer = self._writers.setdefault(name, Writer())
        self.counts["takeovers"] += writer.epoch > 0
        writer.epoch += 1
        if self.trace is not None:
            self.trace(f"{name} has epoch {writer.epoch}")
        if writer.current is not None and writer.current.state == "open":
            self._decide(writer.current, "aborted")
        return writer.epoch

    def settled(self, name: str) -> bool:
        """Whether every transaction of that name so far is marked everywhere."""
        return self._writers[name].current is None

    def check(self, name: str, epoch: int) -> None:
        """Raises Fenced if another has become the writer since."""
        if self._writers[name].epoch != epoch:
            self.counts["fenced"] += 1
            raise Fenced(f"another worker writes as {name} now")

    def begin(self, name: str, epoch: int, origin: object) -> Transaction:
        """Open a transaction; the one before must be settled. Raises Fenced."""
        self.check(name, epoch)
        writer = self._writers[name]
        assert writer.current is None
        transaction = writer.current = Transaction(name, epoch, origin)
        self.weather.limit(lambda: self.abort(transaction))
        return transaction

    def abort(self, transaction: Transaction) -> None:
        """End a transaction that is open, and its epoch."""
        if transaction.state == "open":
            self._writers[transaction.name].epoch += 1
            self._decide(transaction, "aborted")

    def write(self, transaction: Transaction, log: Log, message: ProducerRecord) -> int:
        """Append a message to an open transaction; its offset. Raises Fenced."""
        self.check(transaction.name, transaction.epoch)
        transaction.unmarked[log] = None
        written = self.append(log, message.key, message.value, message.headers, transaction)
        transaction.messages.append(written)
        return written.offset

    def commit(self, transaction: Transaction) -> None:
        """Decide that it takes place. Raises Fenced."""
        self.check(transaction.name, transaction.epoch)
        assert transaction.state == "open"
        self._decide(transaction, "committed")

    def committing(self) -> list[Transaction]:
        """The transactions that nothing has been decided about."""
        current = (writer.current for writer in self._writers.values())
        return [t for t in current if t is not None and t.state == "open"]

    def open_transactions(self) -> list[str]:
        """Whose transactions are not marked everywhere."""
        return [name for name, writer in self._writers.items() if writer.current is not None]

    def _decide(self, transaction: Transaction, state: Literal["committed", "aborted"]) -> None:
        self.tick += 1
        self.counts[state] += 1
        transaction.state = state
        transaction.tick = self.tick
        if self.trace is not None:
            self.trace(f"{transaction.name} epoch {transaction.epoch}: {state}")
        if state == "committed":
            self.on_committed(transaction)
        writer = self._writers[transaction.name]
        if not transaction.unmarked:
            writer.current = None
        for log in list(transaction.unmarked):
            self.weather.mark(lambda log=log: self._mark(writer, transaction, log))  # type: ignore[misc]

    def _mark(self, writer: Writer, transaction: Transaction, log: Log) -> None:
        self.tick += 1
        log.append(None, transaction, self.tick)
        del transaction.unmarked[log]
        if not transaction.unmarked:
            writer.current = None
        if self.trace is not None:
            topic, number = log.place
            self.trace(f"    {topic}/{number}@{log.end - 1} {transaction.state}")
        self._show(log)

    def _show(self, log: Log) -> None:
        for waiting in list(self.waiting):
            waiting.shown(log)

    # --- groups -------------------------------------------------------------------------------

    def group(self, name: str, topic: str) -> Group:
        """The group of that name, which shares the partition numbers of a topic."""
        if topic not in self.topics:
            raise MissingTopic(f"topic {topic} does not exist")
        found = self.groups.get(name)
        if found is None:
            found = self.groups[name] = Group(topic, self.topics[topic].partitions)
        return found

    def committed(self, group: str, places: Iterable[Partition]) -> dict[Partition, int]:
        """The group's offsets."""
        return {p: self.offsets[group, p] for p in places if (group, p) in self.offsets}

    def known(self, names: Collection[str]) -> dict[str, Topic]:
        """Those of these topics that exist."""
        return {name: self.topics[name] for name in names if name in self.topics}


def _short(data: bytes | None) -> str:
    if data is None:
        return "-"
    return data.decode() if data.isascii() and len(data) < 400 else repr(data)[:400]
