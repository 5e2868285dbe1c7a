"""Membership of a Kafka group, and nothing else: no message is read through the group."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any

from aiokafka.abc import ConsumerRebalanceListener
from aiokafka.coordinator.assignors.range import RangePartitionAssignor

from worker.brokers.kafka.errors import FAILURES, SESSION_MILLISECONDS, joining
from worker.brokers.kafka.wire import Wire, stop
from worker.errors import BuddyError

HEARTBEAT_MILLISECONDS = 1_500
REBALANCE_MILLISECONDS = 20_000
POLL_MILLISECONDS = 60_000
REQUEST_MILLISECONDS = 25_000
"""Longer than the rebalance timeout: joining is one request that may take all of that time."""

_BACK_OFF_SECONDS = (0.2, 0.5, 1.0, 2.0, 5.0)

_OUTSIDE_SECONDS = 25.0
"""Longer than any rebalance: after this long outside the group, something prevents joining."""


class KafkaMember(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Implements `contract.Member`.

    If the underlying consumer fails, a background task creates a new one and joins again. Until
    then, the assignment is empty.
    """

    def __init__(self, wire: Wire, group: str, topic: str) -> None:
        self._wire = wire
        self._group = group
        self._topic = topic
        self._consumer: Any = None
        self._numbers: frozenset[int] = frozenset()
        self._problem: BuddyError | None = None
        self._outside: float | None = None
        """The loop time at which membership ended; None while it is a member."""
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start to join; the assignment follows later. Raises `BrokerUnavailable`."""
        self._outside = asyncio.get_running_loop().time()
        await self._connect()
        self._task = asyncio.create_task(self._stay())

    async def assignment(self) -> frozenset[int]:
        """See `contract.Member.assignment`; empty during a rebalance.

        Raises `BrokerUnavailable` once joining has failed or takes longer than any rebalance,
        until the group accepts this member. Meanwhile the background task keeps retrying.
        """
        if self._problem is not None:
            raise type(self._problem)(str(self._problem))
        if self._outside is not None:
            seconds = asyncio.get_running_loop().time() - self._outside
            if seconds > _OUTSIDE_SECONDS:
                silence = TimeoutError(f"no answer for {seconds:.0f} s")
                raise await self._wire.failure(joining(self._group, self._topic), silence)
        return self._numbers

    @property
    def closed(self) -> bool:
        """Whether nothing is left to release."""
        return self._task is None

    async def close(self) -> None:
        """See `contract.Member.close`."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
        await self._disconnect()

    def on_partitions_revoked(self, revoked: Iterable[Any]) -> None:  # noqa: ARG002
        """End the membership: aiokafka calls this before it joins again."""
        self._leave()

    def on_partitions_assigned(self, assigned: Iterable[Any]) -> None:
        """Take the assignment: aiokafka calls this when the group has rebalanced."""
        if self._consumer is None:  # disconnecting
            return
        # Pause first: otherwise aiokafka fetches messages.
        self._consumer.pause(*assigned)
        for partition in assigned:
            # Any position will do: without one, aiokafka requests the group's offset.
            self._consumer.seek(partition, 0)
        self._numbers = frozenset(p.partition for p in assigned)
        self._problem = self._outside = None

    async def _connect(self) -> None:
        self._consumer = self._wire.consumer(
            group_id=self._group,
            partition_assignment_strategy=(RangePartitionAssignor,),
            session_timeout_ms=SESSION_MILLISECONDS,
            heartbeat_interval_ms=HEARTBEAT_MILLISECONDS,
            rebalance_timeout_ms=REBALANCE_MILLISECONDS,
            max_poll_interval_ms=POLL_MILLISECONDS,
            request_timeout_ms=REQUEST_MILLISECONDS,
        )
        await self._wire.start(self._consumer, joining(self._group, self._topic))
        # Subscribe after `start`, which would otherwise wait for the assignment, and thus for
        # other members.
        self._consumer.subscribe([self._topic], listener=self)

    def _leave(self) -> None:
        self._numbers = frozenset()
        if self._outside is None:
            self._outside = asyncio.get_running_loop().time()

    async def _disconnect(self) -> None:
        self._leave()
        consumer, self._consumer = self._consumer, None
        if consumer is not None:
            await stop(consumer)  # leaves the group

    async def _stay(self) -> None:
        failures = 0
        while True:
            try:
                if self._consumer is None:
                    await self._connect()
                # Cancel this call only to close: once cancelled, aiokafka no longer checks the
                # poll interval.
                await self._consumer.getmany(timeout_ms=1000)
                if self._outside is None:
                    failures = 0
            except (*FAILURES, BuddyError) as error:
                attempt = joining(self._group, self._topic)
                self._problem = await self._wire.failure(attempt, error)
                await self._disconnect()
                await asyncio.sleep(_BACK_OFF_SECONDS[min(failures, len(_BACK_OFF_SECONDS) - 1)])
                failures += 1
