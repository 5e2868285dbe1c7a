"""What sinks announce about exports: the latest for each request, and all news as they come.

Outdated announcements (`outdated`) are no news.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Final

import structlog

from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.errors import BuddyError
from worker.http.broker_watch import BrokerWatch
from worker.http.following import TopicFollower
from worker.http.problems import RETRY_SECONDS, Problem
from worker.sink.requests import Announcement, decode_announcement, outdated
from worker.stream import Message, Partition

MOST_REQUESTS: Final = 10_000
"""The requests whose latest announcement is kept; older ones are forgotten."""
MOST_EVENTS: Final = 1_000
"""The announcements that a client can catch up on."""
_CURRENT_SECONDS: Final = 10.0
_SILENCE_SECONDS: Final = 15.0
"""How often a client learns that there is nothing new, so that a dead connection is noticed."""

_log = structlog.get_logger(__name__)


class Announcements:
    """Follows the topic `exports`; `run` does the work, from its start."""

    def __init__(self, broker: Broker, names: Names, watch: BrokerWatch) -> None:
        self._follower = TopicFollower(broker, names.exports, self._take, _not_read, watch, _lost)
        self._news = self._follower.news
        self._latest: dict[str, Announcement] = {}
        self._events: deque[tuple[str, Announcement]] = deque(maxlen=MOST_EVENTS)
        self._count = 0
        """The announcements seen so far; the last ones are in `_events`."""
        self._has_ended = False

    async def run(self) -> None:
        """Follow until cancelled. Waits out every error, and goes on where it was."""
        await self._follower.run()

    async def current(self) -> None:
        """Wait until all that was announced before the start is known. Raises Problem 503."""
        try:
            async with asyncio.timeout(_CURRENT_SECONDS):
                await self._follower.is_current.wait()
        except TimeoutError:
            raise Problem(
                503,
                "announcements_behind",
                "the announcements of exports have not been read yet: try again",
                headers={"Retry-After": str(RETRY_SECONDS)},
            ) from None

    async def end_at(self, stop: asyncio.Event) -> None:
        """End all streams of events once `stop` is set."""
        await stop.wait()
        async with self._news:
            self._has_ended = True
            self._news.notify_all()

    def latest(self, request_id: str) -> Announcement | None:
        """The latest announcement for a request; None if there is none yet."""
        return self._latest.get(request_id)

    async def ended(self, request_id: str, seconds: float) -> Announcement | None:
        """As `latest`, but waits so long for the last one of the request."""

        def has_ended() -> bool:
            found = self.latest(request_id)
            return found is not None and found.status in ("finished", "failed")

        with suppress(TimeoutError):
            async with asyncio.timeout(seconds), self._news:
                await self._news.wait_for(has_ended)
        return self.latest(request_id)

    async def events(self, after: str | None) -> AsyncIterator[tuple[str, Announcement] | None]:
        """Announcements with their coordinates as they come; None when nothing came for 15 s.

        Begins behind the coordinate `after` if that is among the last ones, else now. Ends with
        `end_at`.
        """
        seen = self._count
        for back, (coordinate, _) in enumerate(reversed(self._events)):
            if coordinate == after:
                seen -= back
                break

        def has_news() -> bool:
            return self._count > seen or self._has_ended

        while not self._has_ended:
            missed = min(self._count - seen, len(self._events))
            seen = self._count
            for event in list(self._events)[len(self._events) - missed :]:
                yield event
            if seen == self._count:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_SILENCE_SECONDS), self._news:
                        await self._news.wait_for(has_news)
                if seen == self._count and not self._has_ended:
                    yield None

    def _take(self, message: Message) -> None:
        found = decode_announcement(message.value)
        if found is None:
            return
        latest = self._latest.get(found.request_id)
        if latest is not None and outdated(found, latest):
            return
        coordinate = f"{message.topic}/{message.partition}/{message.offset}"
        self._events.append((coordinate, found))
        self._count += 1
        self._latest.pop(found.request_id, None)
        self._latest[found.request_id] = found
        if len(self._latest) > MOST_REQUESTS:
            del self._latest[next(iter(self._latest))]


def _not_read(error: BuddyError, seconds: float) -> None:
    _log.warning("announcements_not_read", error=str(error), retry_in=round(seconds, 1))


def _lost(partition: Partition, count: int) -> None:
    _log.warning(
        "announcements_lost", topic=partition.topic, partition=partition.number, count=count
    )
