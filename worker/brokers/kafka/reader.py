"""Reads Kafka partitions from positions that the caller keeps: a consumer without a group."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from itertools import chain
from typing import Any, NamedTuple

import structlog
from aiokafka.errors import OffsetOutOfRangeError, RecordTooLargeError

from worker.brokers.kafka.errors import FAILURES, measuring, reading
from worker.brokers.kafka.fetched import Fetched
from worker.brokers.kafka.stalls import STALL_SECONDS, Stalls
from worker.brokers.kafka.wire import CALL_SECONDS, Chores, Diagnose, Wire, stop, topic_partition
from worker.errors import BrokerUnavailable
from worker.stream import Message, Partition, Topic

FETCH_WAIT_MILLISECONDS = 500
"""How long the broker holds a fetch that finds nothing. The cost of a fetch, on both sides, grows
with the number of partitions."""

PAUSED_WAIT_MILLISECONDS = 100
"""The same while partitions are paused: a resumed partition waits for the fetch in flight."""

SILENCE_SECONDS = 10.0
"""The broker counts as unavailable after this long without messages and fetch responses."""

_TRY_AGAIN_SECONDS = 10.0
"""The interval of retries on a damaged partition: its broker may repair it from a replica."""

_MOST_AT_ONCE = 100
_ENOUGH_BYTES = 8 * 1024 * 1024
"""Bounds the unpacked size of a read: Kafka's own limits apply to compressed batches."""

_HEADER_BYTES = 200
"""The memory of a header, without its name and value."""

_log = structlog.get_logger(__name__)


class KafkaReader:
    """Implements `contract.Reader`.

    The positions here are authoritative, and aiokafka's positions follow them: an interrupted read
    costs a seek, never a message. The first read creates the consumer, and the first read after a
    failure creates a new one. So reading resumes once the broker is back.
    """

    def __init__(
        self,
        wire: Wire,
        chores: Chores,
        diagnose: Diagnose,
        level: str,
        topics: Mapping[str, Topic],
        *,
        logs_damage: bool = True,
    ) -> None:
        """`level` is the isolation level; `topics` are those described so far, by name.

        Without `logs_damage`, the caller reports `damaged`.
        """
        self._wire = wire
        self._chores = chores
        self._diagnose = diagnose
        self._level = level
        self._described = topics
        self._logs_damage = logs_damage
        self._consumer: Any = None
        self._closed = False
        self._turn = asyncio.Lock()
        self._positions: dict[Partition, int] = {}
        self._settled: dict[Partition, int] = {}  # the positions of the consumer
        self._generation = 0
        self._expired: dict[Partition, int] = {}
        self._truncated: dict[Partition, int] = {}
        self._damaged: dict[Partition, _Damage] = {}
        self._stalls = Stalls(time.monotonic)
        self._heard: dict[Partition, object] = {}
        """When the broker answered last for each partition, as of the last look for stalls."""
        self._silence: tuple[float, dict[Partition, object]] | None = None
        self._largest = _ENOUGH_BYTES // 8
        """The size of the largest message of the last step, in bytes."""

    def assign(self, positions: Mapping[Partition, int]) -> None:
        """See `contract.Reader.assign`."""
        self._positions = dict(positions)
        self._generation += 1
        self._silence = None
        self._damaged = {p: damage for p, damage in self._damaged.items() if p in positions}
        self._stalls.retain(positions)

    async def read(
        self, limit: int, timeout: float, paused: Collection[Partition] = ()
    ) -> list[Message]:
        """See `contract.Reader.read`. Raises `BrokerUnavailable` after `SILENCE_SECONDS` of outage.

        Concurrent reads take turns: a read without a turn within its `timeout` returns nothing.
        """
        deadline = asyncio.get_running_loop().time() + timeout
        try:
            async with asyncio.timeout_at(deadline):
                await self._turn.acquire()
        except TimeoutError:
            return []
        try:
            return await self._read(limit, deadline, paused)
        finally:
            self._turn.release()

    async def _read(
        self, limit: int, deadline: float, paused: Collection[Partition]
    ) -> list[Message]:
        loop = asyncio.get_running_loop()
        while self._positions:
            if self._consumer is None:
                await self._start()
                continue
            generation = self._generation
            now = loop.time()
            rests = {p for p, damage in self._damaged.items() if now < damage.again}
            self._settle({*paused, *rests})
            left = max(0.0, deadline - loop.time())
            try:
                found = await self._poll(limit, left)
            except OffsetOutOfRangeError as error:
                await self._skip(generation, error.args[0])
                continue
            if generation != self._generation:
                # Reassigned while waiting: the messages may be of unassigned partitions.
                return []
            await self._advance()
            if found or loop.time() >= deadline:
                self._look_for_stalls({*paused, *self._damaged})
                await self._listen(silent=not found, paused={*paused, *self._damaged})
                return found
        await asyncio.sleep(max(0.0, deadline - loop.time()))
        return []

    def position(self, partition: Partition) -> int:
        """See `contract.Reader.position`. KeyError when the partition is not assigned."""
        return self._positions[partition]

    def lag(self, partition: Partition) -> int:
        """See `contract.Reader.lag`."""
        if self._consumer is None or partition not in self._settled:
            return 0
        number = topic_partition(partition)
        end: int | None = self._consumer.last_stable_offset(number)
        if end is None or end < 0:  # unknown when uncommitted messages are read
            end = int(self._consumer.highwater(number) or 0)
        return max(0, end - self._positions[partition])

    def expired(self) -> dict[Partition, int]:
        """See `contract.Reader.expired`."""
        expired, self._expired = self._expired, {}
        return expired

    def truncated(self) -> dict[Partition, int]:
        """See `contract.Reader.truncated`."""
        truncated, self._truncated = self._truncated, {}
        return truncated

    def skipped(self) -> dict[Partition, int]:
        """See `contract.Reader.skipped`. Always empty: Kafka has no command that skips."""
        return {}

    def damaged(self) -> dict[Partition, str]:
        """See `contract.Reader.damaged`: batches with a wrong checksum or that do not unpack.

        Also partitions of which the broker delivers nothing although the reader asks.
        """
        stalled = {p: self._stall_line(p) for p in self._stalls.stalled()}
        return stalled | {partition: damage.line for partition, damage in self._damaged.items()}

    @property
    def closed(self) -> bool:
        """Whether nothing is left to release."""
        return self._closed

    async def close(self) -> None:
        """Stop the consumer."""
        self._closed = True
        self.assign({})
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop(consumer)

    async def _start(self) -> None:
        consumer = self._wire.consumer(
            isolation_level=self._level, fetch_max_wait_ms=FETCH_WAIT_MILLISECONDS
        )
        await self._wire.start(consumer, reading(self._topics()))
        if self._closed:
            await stop(consumer)
            return
        consumer._fetcher._records = Fetched(self._is_damaged, self._described)  # noqa: SLF001 -- see `Fetched`
        self._consumer = consumer
        self._settled = {}
        self._silence = None

    def _settle(self, paused: Collection[Partition]) -> None:
        """Give the consumer the caller's assignment, positions and pauses, with few changes."""
        consumer = self._consumer
        if self._settled.keys() != self._positions.keys() and (
            consumer.assignment() != self._positions.keys()
        ):
            consumer.assign([topic_partition(partition) for partition in self._positions])
            self._settled = {}
        for partition, offset in self._positions.items():
            if self._settled.get(partition) != offset:
                # A seek drops the partition's buffered messages, so seek only if needed.
                consumer.seek(topic_partition(partition), offset)
        self._settled = dict(self._positions)
        wanted = self._positions.keys() & set(paused)
        now = consumer.paused()
        if wanted != now:
            consumer.pause(*map(topic_partition, wanted - now))
            consumer.resume(*map(topic_partition, now - wanted))
            # aiokafka has no public way to change the wait.
            wait = PAUSED_WAIT_MILLISECONDS if wanted else FETCH_WAIT_MILLISECONDS
            consumer._fetcher._fetch_max_wait_ms = wait  # noqa: SLF001 -- as above

    async def _poll(self, limit: int, seconds: float) -> list[Message]:
        """Read up to `limit` messages and about `_ENOUGH_BYTES`, in steps.

        The largest message of a step determines the size of the next step.
        """
        settled, self._settled = self._settled, {}  # unknown until this poll succeeds
        found: list[Message] = []
        left = _ENOUGH_BYTES
        try:
            while len(found) < limit and left > 0:
                most = min(_MOST_AT_ONCE, limit - len(found), max(1, left // self._largest))
                some = await self._consumer.getmany(
                    timeout_ms=0 if found else int(seconds * 1000), max_records=most
                )
                messages = list(chain.from_iterable(some.values()))
                sizes = list(map(_size, messages))
                self._largest = max(sizes, default=self._largest)
                left -= sum(sizes)
                found += messages
                if len(messages) < most:
                    break
        except OffsetOutOfRangeError:
            raise
        except FAILURES as error:
            self._discard()
            raise await self._failure(error, self._topics()) from error
        self._settled = settled
        for damaged, damage in list(self._damaged.items()):
            if any((m.topic, m.partition) == damaged and m.offset >= damage.offset for m in found):
                del self._damaged[damaged]
        return found

    async def _advance(self) -> None:
        # Also without messages: transaction markers and compaction move positions too.
        # `position` waits only for a partition without a position, and `_settle` set them all.
        for partition in self._positions:
            offset = await self._consumer.position(topic_partition(partition))
            self._settled[partition] = offset
            damage = self._damaged.get(partition)
            if damage is not None and offset > damage.offset:
                if damage.passed_over:
                    offset = damage.offset  # the next read seeks back to it
                else:
                    del self._damaged[partition]
            self._positions[partition] = offset

    async def _skip(self, generation: int, lost: Mapping[Any, int]) -> None:
        """Continue at the earliest offset of the partitions whose position is outside the log.

        `lost` has the offsets that the broker refused. aiokafka keeps such an answer until the next
        read, when the partition may be another reader's, or its position another one.
        """
        ours = [n for n, offset in lost.items() if self._positions.get(Partition(*n)) == offset]
        if not ours:
            return
        try:
            async with asyncio.timeout(CALL_SECONDS):
                earliest = await self._consumer.beginning_offsets(ours)
                ends = await self._consumer.end_offsets(ours)
        except FAILURES as error:
            topics = {number.topic for number in ours}
            raise await self._wire.failure(measuring(topics), error) from error
        if generation != self._generation:
            return
        for number in ours:
            partition = Partition(*number)
            self._damaged.pop(partition, None)
            position = self._positions[partition]
            skipped = earliest[number] - position
            if skipped > 0:
                self._expired[partition] = self._expired.get(partition, 0) + skipped
            else:
                # The position was beyond the end. By now there may be messages up to it again.
                gone = max(1, position - ends[number])
                self._truncated[partition] = self._truncated.get(partition, 0) + gone
            self._positions[partition] = earliest[number]

    def _is_damaged(self, number: Any, offset: int, why: BaseException) -> None:
        """Record and log that a partition is unreadable from `offset` on."""
        partition = Partition(*number)
        if partition not in self._positions:
            return
        reason = f"{type(why).__name__}: {' '.join(str(why).split())[:200]}"
        line = (
            f"{partition.topic}/{partition.number} is damaged from offset {offset}: Kafka gives a"
            f" batch that cannot be read ({type(why).__name__}); see 'A log on Kafka is damaged' in"
            " docs/operations/troubleshooting.md"
        )
        if partition not in self._damaged:
            self._log_damage(partition, offset, reason)
        again = asyncio.get_running_loop().time() + _TRY_AGAIN_SECONDS
        passed_over = isinstance(why, RecordTooLargeError)
        self._damaged[partition] = _Damage(offset, line, again, passed_over)

    def _look_for_stalls(self, paused: Collection[Partition]) -> None:
        """Report partitions of which nothing comes while the broker answers for others."""
        if not self._stalls.due:
            return
        listened = self._positions.keys() - set(paused)
        heard = {p: self._consumer.last_poll_timestamp(topic_partition(p)) for p in listened}
        answers, self._heard = heard != self._heard, heard
        marks = [(partition, self._mark(partition)) for partition in listened]
        for partition in self._stalls.update(marks, answers=answers):
            reason = f"the broker has delivered nothing for {STALL_SECONDS:.0f} s"
            self._log_damage(partition, self._positions[partition], reason)

    def _log_damage(self, partition: Partition, offset: int, reason: str) -> None:
        if self._logs_damage:
            topic, number = partition
            _log.error("log_damaged", topic=topic, partition=number, offset=offset, reason=reason)

    def _mark(self, partition: Partition) -> object:
        """A value that changes with each delivery; None if fetched records are at hand."""
        number = topic_partition(partition)
        if number in self._consumer._fetcher._records:  # noqa: SLF001 -- there is no public way
            return None
        # At the end of a partition, only a response without an error shows that it is readable.
        heard = None if self.lag(partition) else self._consumer.last_poll_timestamp(number)
        return self._positions[partition], heard

    def _stall_line(self, partition: Partition) -> str:
        return (
            f"{partition.topic}/{partition.number} cannot be read from offset"
            f" {self._positions[partition]} on: Kafka delivers nothing; see 'A log on Kafka is"
            " damaged' in docs/operations/troubleshooting.md"
        )

    async def _listen(self, *, silent: bool, paused: Collection[Partition]) -> None:
        """Detect an outage: aiokafka keeps retrying, and reports only that it has no messages."""
        listened = self._positions.keys() - set(paused)
        if not silent or not listened:
            self._silence = None
            return
        now = asyncio.get_running_loop().time()
        heard = {p: self._consumer.last_poll_timestamp(topic_partition(p)) for p in listened}
        if self._silence is None:
            self._silence = (now, heard)
            return
        since, before = self._silence
        if now - since < SILENCE_SECONDS:
            return
        self._silence = None
        unheard = {p for p in listened & before.keys() if heard[p] == before[p]}
        # A leader that answers for other partitions is there: `Stalls` reports this partition.
        answering = {self._leader(p) for p in listened - unheard} - {None, -1}
        unanswered = {p.topic for p in unheard if self._leader(p) not in answering}
        if unanswered:
            self._discard()
            silence = TimeoutError(f"no answer for {now - since:.0f} s")
            raise await self._failure(silence, unanswered)

    def _leader(self, partition: Partition) -> int | None:
        """The broker that leads the partition; None or -1 if there is none."""
        cluster = self._consumer._client.cluster  # noqa: SLF001 -- there is no public way
        leader: int | None = cluster.leader_for_partition(topic_partition(partition))
        return leader

    async def _failure(self, error: BaseException, topics: Collection[str]) -> BrokerUnavailable:
        # Never MissingTopic: a topic that is created again is read again.
        return BrokerUnavailable(str(await self._diagnose(reading(topics), error)))

    def _topics(self) -> set[str]:
        return {partition.topic for partition in self._positions}

    def _discard(self) -> None:
        consumer, self._consumer = self._consumer, None
        self._settled = {}
        self._stalls.retain(())
        if consumer is not None:
            self._chores.add(stop(consumer))


class _Damage(NamedTuple):
    """The first unreadable offset of a partition, and the time of the next attempt."""

    offset: int
    line: str
    again: float
    passed_over: bool
    """Whether aiokafka has moved past the damage, by one offset."""


def _size(message: Message) -> int:
    """The approximate memory of a message: keys and headers may be as large as values."""
    size = 1 + len(message.key or b"") + len(message.value or b"")
    if message.headers:
        size += sum(_HEADER_BYTES + len(name) + len(value) for name, value in message.headers)
    return size
