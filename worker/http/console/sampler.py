"""Takes a sample of the status every few seconds, once in a process, however many look.

It goes on while nobody looks: an incident of the night must be on the chart in the morning. A
sample costs the broker what one `buddy status` does.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Final

import structlog

from worker.brokers.contract import Broker
from worker.errors import BuddyError
from worker.http.console.history import SAMPLE_SECONDS, History, sample_of
from worker.http.console.latency import buckets_of
from worker.http.health import HealthSource
from worker.status.whole import WholeStatus

_LONGEST: Final = 30.0
"""How long a look at the status may take."""
_FIRST_SECONDS: Final = 2.0

Look = Callable[[Broker], Awaitable[WholeStatus]]
"""Finds the status now. Raises MissingTopic, BrokerUnavailable."""

_log = structlog.get_logger(__name__)


class StatusSampler:
    """The status of a few seconds ago, and what the last hour brought; `run` does the work."""

    def __init__(self, broker: Broker, look: Look, health: HealthSource) -> None:
        self.history = History()
        self.status: WholeStatus | None = None
        """The last status that was found."""
        self.failure: str | None = None
        """Why the status could not be found just now."""
        self.number = 0
        """The looks that were taken so far."""
        self.has_ended = False
        self._broker = broker
        self._look = look
        self._health = health
        self._news = asyncio.Condition()

    async def run(self) -> None:
        """Take samples until cancelled. Waits out every error."""
        clock = asyncio.get_running_loop().time
        due = clock()
        while True:
            await self._sample()
            await self._tell()
            due = max(due + SAMPLE_SECONDS, clock())
            await asyncio.sleep(due - clock())

    async def after(self, number: int) -> None:
        """Wait for a look behind that number, or for the end."""
        async with self._news:
            await self._news.wait_for(lambda: self.number > number or self.has_ended)

    async def first(self) -> None:
        """Wait a little for the first look of a process that has just begun."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_FIRST_SECONDS):
                await self.after(0)

    async def end_at(self, stop: asyncio.Event) -> None:
        """Nobody waits any more once `stop` is set."""
        await stop.wait()
        self.has_ended = True
        async with self._news:
            self._news.notify_all()

    async def _tell(self) -> None:
        async with self._news:
            self.number += 1
            self._news.notify_all()

    async def _sample(self) -> None:
        try:
            async with asyncio.timeout(_LONGEST):
                status = await self._look(self._broker)
                metrics = await self._health.ask("/metrics")
        except (BuddyError, TimeoutError) as error:
            reason = str(error) or f"the broker has not answered within {_LONGEST:.0f} s"
            if self.failure is None:
                _log.warning("status_not_read", error=reason)
            self.failure = reason
            return
        self.status, self.failure = status, None
        self.history.add(sample_of(status.report, time.time(), buckets_of(metrics.content)))
