"""Waits for the outcomes of sent records, by reading the public topics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence

import msgspec

from schemas import ENTITIES
from worker.brokers.contract import Broker, Reader
from worker.cli.console import count_of
from worker.core.outbox import SOURCE_HEADER, WARNINGS_HEADER
from worker.core.topics import Names
from worker.errors import BrokerUnavailable, NoAnswer, TopicRecreated
from worker.stream import Message, Partition, ProducerRecord


class _Code(msgspec.Struct):
    code: str


class _Violations(msgspec.Struct):
    violations: list[_Code]


_violations = msgspec.json.Decoder(_Violations)


class Outcomes:
    """Counts the outcomes of sent records: `open`, then `add_sent` what was sent, then `wait`."""

    def __init__(self, broker: Broker, names: Names) -> None:
        self.sent: Counter[str] = Counter()
        self.accepted_by: Counter[str] = Counter()
        self.rejected_by: Counter[str] = Counter()
        self.codes: Counter[tuple[str, str]] = Counter()
        self._broker = broker
        self._names = names
        self._reader: Reader | None = None
        self._open: dict[str, set[int]] = defaultdict(set)
        self._before: Mapping[str, str] = {}
        """The identities of the inputs and of the topics read, before anything was sent."""
        self._read: frozenset[str] = frozenset()

    async def open(self) -> None:
        """Start reading outcomes at the current ends. Raises MissingTopic, BrokerUnavailable."""
        names = [self._names.accepted(e) for e in ENTITIES]
        names += [self._names.rejected(e) for e in ENTITIES]
        self._read = frozenset(names)
        inputs = [self._names.input(e) for e in ENTITIES]
        self._before = await self._broker.identities(inputs + names)
        topics = await self._broker.topics(names)
        spans = await self._broker.spans(
            Partition(name, number)
            for name in names
            for number in range(topics[name].partitions if name in topics else 1)
        )
        self._reader = self._broker.reader()
        self._reader.assign({partition: span.end for partition, span in spans.items()})

    def add_sent(
        self, messages: Sequence[ProducerRecord], coordinates: Sequence[tuple[int, int]]
    ) -> None:
        """Record sent messages, each with its partition and offset in `coordinates`."""
        for message, (number, offset) in zip(messages, coordinates, strict=True):
            self.sent[self._names.entity_of(message.topic)] += 1
            if self._reader is not None:
                self._open[f"{message.topic}/{number}"].add(offset)

    @property
    def accepted(self) -> int:
        """Number of accepted records, deletions included."""
        return self.accepted_by.total()

    @property
    def rejected(self) -> int:
        """Number of rejected records."""
        return self.rejected_by.total()

    @property
    def judged(self) -> int:
        """Number of records with an outcome."""
        return self.accepted + self.rejected

    async def refresh(self, timeout: float = 0.0) -> None:
        """Count new outcomes; wait up to `timeout` seconds for the first.

        Raises TopicRecreated if an input that was sent to, or a topic that is read, is not the same
        any more: the one uses coordinates again, the other may have lost outcomes.
        """
        assert self._reader is not None
        try:
            messages = await self._reader.read(5_000, timeout)
        except BrokerUnavailable:  # also for a topic that is gone
            await self._check_topics()
            raise
        await self._check_topics()
        for message in messages:
            self._take(message)

    async def wait(self, patience: float, progress: Callable[[int], None]) -> None:
        """Wait for all outcomes. Raises NoAnswer after `patience` seconds without a new one.

        Raises TopicRecreated as `refresh` does.
        Calls `progress` with the number of outcomes so far.
        """
        total = sum(self.sent.values())
        quiet = 0.0
        while (done := self.judged) < total:
            progress(done)
            await self.refresh(0.25)
            quiet = 0.0 if self.judged > done else quiet + 0.25
            if quiet >= patience:
                raise NoAnswer(
                    f"{total - done} of {total} records have no verdict after {patience:.0f} s "
                    "of silence: is a worker running? ('buddy run')"
                )
        progress(total)

    async def close(self) -> None:
        """Stop reading."""
        if self._reader is not None:
            await self._reader.close()

    async def _check_topics(self) -> None:
        inputs = {self._names.input(entity) for entity in self.sent}
        watched = [topic for topic in self._before if topic in inputs or topic in self._read]
        now = await self._broker.identities(watched)
        for topic in watched:
            if now.get(topic) == self._before[topic]:
                continue
            sent = count_of(self.sent.total(), "record was", "records were")
            told = f"topic {topic} was deleted or created anew after {sent} sent"
            if topic in inputs:
                raise TopicRecreated(f"{told}: nobody can tell the verdicts, so send them again")
            raise TopicRecreated(
                f"{told}: {self.judged} had a verdict before that, those of the others are unknown"
            )

    def _take(self, message: Message) -> None:
        try:
            self._count(message)
        except (ValueError, msgspec.MsgspecError, RecursionError):
            return  # not written by a worker: other writers may leave anything

    def _count(self, message: Message) -> None:
        headers = dict(message.headers)
        source, _, offset = headers.get(SOURCE_HEADER, b"").decode().rpartition("/")
        if not offset or int(offset) not in self._open.get(source, ()):
            return
        entity = self._names.entity_of(message.topic)
        is_rejection = message.topic == self._names.rejected(entity)
        if is_rejection:
            found = [v.code for v in _violations.decode(message.value or b"").violations]
        else:
            found = headers.get(WARNINGS_HEADER, b"").decode().split(",")
        self._open[source].discard(int(offset))
        (self.rejected_by if is_rejection else self.accepted_by)[entity] += 1
        for code in set(found) - {""}:
            self.codes[entity, code] += 1
