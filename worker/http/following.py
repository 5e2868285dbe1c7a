"""Follows a topic from its start, in the background, through every outage."""

from __future__ import annotations

import asyncio
from asyncio import sleep
from collections.abc import Callable
from typing import Final

from worker.brokers.contract import Broker, Reader
from worker.clock import Clock
from worker.errors import BrokerUnavailable, BuddyError, MissingTopic
from worker.http.broker_watch import BrokerWatch
from worker.stream import Message, OffsetRange, Partition
from worker.waiting import Backoff

_READ: Final = 1_000
_POLL_SECONDS: Final = 0.5
_IDENTITY_MS: Final = 5_000
"""How often the topic's identity is compared: it may be deleted and created anew."""


class TopicFollower:
    """Gives each message of a topic to `take`, each once; `run` does the work.

    After each read it notifies `news`, which it holds meanwhile. `failed` is called with an error
    before it is waited out, for so many seconds, `lost` with the number of offsets of a partition
    that were removed or skipped before they were read, or have been read and are gone. `watch`
    hears of all that, and of reads. A topic that was created anew is read from its start.
    """

    def __init__(
        self,
        broker: Broker,
        topic: str,
        take: Callable[[Message], None],
        failed: Callable[[BuddyError, float], None],
        watch: BrokerWatch,
        lost: Callable[[Partition, int], None],
    ) -> None:
        self.topic = topic
        self.news = asyncio.Condition()
        self.is_current = asyncio.Event()
        """Set once everything is taken that the topic held at the start."""
        self._broker = broker
        self._take = take
        self._failed = failed
        self._watch = watch
        self._lost = lost
        self._clock = Clock().steady
        self._backoff = Backoff(self._clock, longest=10.0)
        self._positions: dict[Partition, int] = {}
        self._identity: str | None = None
        self._compared = 0
        """When the identity was last compared."""

    async def run(self) -> None:
        """Follow until cancelled. Goes on where it was after an error."""
        while True:
            reader = self._broker.reader()
            try:
                await self._follow(reader)
            except BuddyError as error:
                seconds = self._backoff.failed()
                self._failed(error, seconds)
                self._watch.not_followed(self.topic, str(error))
                await sleep(seconds)
            finally:
                await reader.close()

    async def reach(self) -> None:
        """Wait until everything is taken that is in the topic now, open transactions included.

        Raises MissingTopic, and BrokerUnavailable, also if the topic has lost what was read.
        """
        ends = {p: span.end for p, span in (await self._spans(uncommitted=True)).items()}

        if any(self._positions.get(p, 0) > end for p, end in ends.items()):
            self._compared -= _IDENTITY_MS
            raise BrokerUnavailable(f"topic {self.topic} has lost messages: it is read again")

        def is_there() -> bool:
            return all(self._positions.get(p, -1) >= end for p, end in ends.items())

        async with self.news:
            await self.news.wait_for(is_there)

    async def _follow(self, reader: Reader) -> None:
        await self._place()
        spans = await self._spans()
        reader.assign(self._positions)
        while True:
            messages = await reader.read(_READ, _POLL_SECONDS)
            if reader.truncated() or await self._has_lost():
                return
            self._backoff.succeeded()
            self._report(reader)
            async with self.news:
                for message in messages:
                    self._take(message)
                self._positions = {p: reader.position(p) for p in self._positions}
                if all(self._positions[p] >= span.end for p, span in spans.items()):
                    self.is_current.set()
                self.news.notify_all()

    async def _place(self) -> None:
        """Set the positions from which to read, and report what was read and is gone."""
        self._compared = self._clock()
        identity = await self._identity_now()
        is_anew = self._identity is not None and identity != self._identity
        positions: dict[Partition, int] = {}
        spans = await self._spans(uncommitted=True)
        for partition, span in spans.items():
            before = self._positions.get(partition, span.start)
            positions[partition] = span.start if is_anew else min(before, span.end)
            if (gone := before - positions[partition]) > 0:
                self._lost(partition, gone)
                self._watch.lost(partition, gone, is_new=True)
        # Only now: if a request failed before, the next try has to find the same.
        self._identity, self._positions = identity, positions

    async def _has_lost(self) -> bool:
        """Whether the topic is another one, or ends before a position. Asks every five seconds."""
        if self._clock() - self._compared < _IDENTITY_MS:
            return False
        self._compared = self._clock()
        ends = await self._spans(uncommitted=True)
        return await self._identity_now() != self._identity or any(
            self._positions[p] > ends[p].end for p in self._positions if p in ends
        )

    async def _identity_now(self) -> str | None:
        """The topic's identity, or the last one that is known: an old broker tells none."""
        now = await self._broker.identities([self.topic])
        return now.get(self.topic, self._identity)

    def _report(self, reader: Reader) -> None:
        is_new = self.is_current.is_set()
        for partition, count in (*reader.expired().items(), *reader.skipped().items()):
            self._lost(partition, count)
            self._watch.lost(partition, count, is_new=is_new)
        if damaged := reader.damaged():
            self._watch.not_followed(self.topic, next(iter(damaged.values())))
        else:
            self._watch.followed(self.topic)

    async def _spans(self, *, uncommitted: bool = False) -> dict[Partition, OffsetRange]:
        topics = await self._broker.topics([self.topic])
        if self.topic not in topics:
            raise MissingTopic(f"topic {self.topic} is missing: run 'buddy topics create'")
        numbers = range(topics[self.topic].partitions)
        partitions = [Partition(self.topic, number) for number in numbers]
        return await self._broker.spans(partitions, uncommitted=uncommitted)
