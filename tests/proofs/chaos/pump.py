"""Sends the stream, at a steady rate, through every outage of the broker."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Final

from tests.proofs.chaos.entities import Topics
from tests.proofs.chaos.stream import Sent, Stream
from worker.brokers.contract import Broker
from worker.errors import BuddyError
from worker.stream import Partition, ProducerRecord

TICK: Final = 0.1
"""Seconds between two batches."""

BACKLOG_SECONDS: Final = 20.0
"""How far behind the workers may be before the pump waits for them."""

_AT_ONCE: Final = 2_000
_RETRY_SECONDS: Final = 0.3


class Pump:
    """Publishes at least once: what was not confirmed is sent again, and is then one more input."""

    def __init__(self, broker: Broker, topics: Topics, stream: Stream, rate: float) -> None:
        self.sent = 0
        self.again = 0
        self._broker = broker
        self._topics = topics
        self._stream = stream
        self._rate = rate
        self._waits = False
        self._stopped = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Stream in the background."""
        self._task = asyncio.create_task(self._run())

    def check(self) -> None:
        """Raises what has ended the stream, if anything has."""
        if self._task is not None and self._task.done():
            self._task.result()

    async def behind(self) -> int | None:
        """The records that no worker has read yet; None while nobody can say."""
        inputs = self._topics.inputs.values()
        try:
            there = await self._broker.topics(inputs)
            places = [Partition(t.name, n) for t in there.values() for n in range(t.partitions)]
            spans = await self._broker.spans(places)
            read = await self._broker.committed(f"{self._topics.prefix}-worker", places)
        except BuddyError:
            return None
        behind = sum(span.end - read.get(place, 0) for place, span in spans.items())
        self._waits = behind > BACKLOG_SECONDS * self._rate
        return behind

    async def finish(self) -> None:
        """Stop the stream, and send what was to be sent later."""
        self._stopped = True
        if self._task is not None:
            await self._task
        await self._publish(self._stream.rest())

    async def stop(self) -> None:
        """Stop at once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _run(self) -> None:
        last = time.monotonic()
        while not self._stopped:
            await asyncio.sleep(TICK)
            now = time.monotonic()
            # After an outage it goes on at its rate: nobody upstream sends a minute in a second.
            passed = min(now - last, 5 * TICK)
            last = now
            if not self._waits:
                await self._publish(self._stream.take(now, int(self._rate * passed)))

    async def _publish(self, records: Sequence[Sent]) -> None:
        for start in range(0, len(records), _AT_ONCE):
            await self._insist(
                [
                    ProducerRecord(self._topics.inputs[sent.entity], sent.key, sent.value)
                    for sent in records[start : start + _AT_ONCE]
                ]
            )

    async def _insist(self, messages: Sequence[ProducerRecord]) -> None:
        while True:
            try:
                await self._broker.publish(messages)
            except BuddyError:
                self.again += len(messages)
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                self.sent += len(messages)
                return
