"""The committer on Kafka: a transactional producer with the name as its `transactional_id`.

Starting a producer with the same id aborts the earlier producer's open transaction and fences that
producer. aiokafka has no other fence: it sends no group generation with the offsets. This fence is
sufficient.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from aiokafka.structs import OffsetAndMetadata

from worker.brokers.kafka.batches import PackedBatch, deliver
from worker.brokers.kafka.errors import (
    FAILURES,
    OFFSETS_NOTE,
    TRANSACTION_MILLISECONDS,
    committing,
    fencing,
    is_fence,
)
from worker.brokers.kafka.wire import (
    CALL_SECONDS,
    Chores,
    Diagnose,
    Wire,
    abandon,
    retrieve,
    stop,
    topic_partition,
)
from worker.errors import BrokerUnavailable, BuddyError, Fenced, MessageRefused
from worker.stream import Partition, ProducerRecord


class Topics(Protocol):
    """The cached settings of the topics that a committer writes to."""

    async def pack(
        self, messages: Sequence[ProducerRecord], producer: Any
    ) -> Mapping[Partition, Sequence[PackedBatch]]:
        """Pack batches for this producer. Raises a refusal of `worker.errors`."""

    def forget(self, messages: Sequence[ProducerRecord]) -> None:
        """Reload the topics of these messages before the next batch: a limit was lowered."""


class KafkaCommitter:
    """Implements `contract.Committer`.

    A committer is usable until a transaction fails. After that, every call raises `Fenced` if
    another committer has taken over, otherwise `BrokerUnavailable`. Then start a new committer,
    which aborts any transaction that this one left open, and read the log. A message that is
    refused before the transaction does not end the committer.

    `Fenced` does not prove that the last transaction failed. If the response to a commit is lost
    and the next owner starts before a retry, the transaction did take place. So a worker that gets
    a task back reads the log, whatever the result of the last commit.
    """

    def __init__(
        self,
        producer: Any,
        name: str,
        group: str,
        topics: Topics,
        chores: Chores,
        diagnose: Diagnose,
    ) -> None:
        self._producer = producer
        self._name = name
        self._group = group
        self._topics = topics
        self._chores = chores
        self._diagnose = diagnose
        self._end: BuddyError | None = None
        self._closed = False

    @classmethod
    async def start(
        cls, wire: Wire, name: str, group: str, topics: Topics, chores: Chores, diagnose: Diagnose
    ) -> KafkaCommitter:
        """Fence every earlier committer of this name. Raises `BrokerUnavailable`."""
        producer = wire.producer(
            transactional_id=name, transaction_timeout_ms=TRANSACTION_MILLISECONDS
        )
        await wire.start(producer, fencing(name))
        return cls(producer, name, group, topics, chores, diagnose)

    async def commit(
        self, messages: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
    ) -> list[tuple[int, int]]:
        """See `contract.Committer.commit`. Also raises `MissingTopic`, before anything is sent."""
        self._check_alive()
        batches = await self._topics.pack(messages, self._producer)
        if not batches and not offsets:
            return []
        try:
            written = await self._transact(batches, offsets)
        except MessageRefused as error:
            self._topics.forget(messages)
            await self._abort()
            self._give_up(self._lost("a message was refused in the middle of a transaction"))
            raise error from error.__cause__
        except FAILURES as error:
            # Give up before the next await: no other call may commit with it meanwhile.
            self._give_up(self._lost("the last commit failed"))
            self._end = await self._meaning(error, messages, offsets)
            raise self._end from error
        except BaseException:
            # Cancelled in the middle of the transaction: its outcome is unknown.
            self._give_up(self._lost("the last commit was interrupted"))
            raise
        return [written[index] for index in range(len(messages))]

    @property
    def closed(self) -> bool:
        """Whether nothing is left to release."""
        return self._closed or self._end is not None

    async def close(self) -> None:
        """Stop the producer. An open transaction was given up already."""
        if not self.closed:
            self._closed = True
            await stop(self._producer)

    async def _transact(
        self, batches: Mapping[Partition, Sequence[PackedBatch]], offsets: Mapping[Partition, int]
    ) -> dict[int, tuple[int, int]]:
        producer = self._producer
        async with asyncio.timeout(CALL_SECONDS):
            await producer.begin_transaction()
        # If a batch fails, this future fails too and nobody awaits it: retrieve its exception.
        producer._txn_manager.wait_for_transaction_end().add_done_callback(retrieve)  # noqa: SLF001
        # Await every batch: aiokafka would commit without the failed ones.
        written = await deliver(batches, producer)
        if offsets:
            moved = {
                topic_partition(partition): OffsetAndMetadata(offset, OFFSETS_NOTE)
                for partition, offset in offsets.items()
            }
            async with asyncio.timeout(CALL_SECONDS):
                await producer.send_offsets_to_transaction(moved, self._group)
        async with asyncio.timeout(CALL_SECONDS):
            await producer.commit_transaction()
        return written

    async def _abort(self) -> None:
        # Not needed for safety, since the next committer would abort. It ends the wait of readers.
        try:
            async with asyncio.timeout(CALL_SECONDS):
                await self._producer.abort_transaction()
        except FAILURES:
            return

    def _check_alive(self) -> None:
        if self._end is not None:
            raise type(self._end)(str(self._end))
        if self._closed:
            raise BrokerUnavailable(f"the writer {self._name} is closed: start a new one")

    async def _meaning(
        self,
        error: BaseException,
        messages: Sequence[ProducerRecord],
        offsets: Mapping[Partition, int],
    ) -> BuddyError:
        # Once the sender has failed for good, calls fail on assertions about the state it left.
        # The sender's own exception says more.
        sender = self._producer._sender.sender_task  # noqa: SLF001
        fatal = sender.exception() if sender.done() and not sender.cancelled() else None
        if is_fence(error) or (fatal is not None and is_fence(fatal)):
            return Fenced(f"another worker writes as {self._name} now")
        written = {message.topic for message in messages}
        read = {partition.topic for partition in offsets}
        attempt = committing(self._name, self._group, written, read)
        return await self._diagnose(attempt, fatal or error)

    def _lost(self, reason: str) -> BrokerUnavailable:
        return BrokerUnavailable(f"the writer {self._name} is lost: {reason}; start a new one")

    def _give_up(self, end: BuddyError) -> BuddyError:
        self._end = end
        self._chores.add(abandon(self._producer))
        return end
