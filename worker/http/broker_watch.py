"""Watches whether records can be sent, and topics be followed.

The API looks by itself: where it is not ready, no more requests come that would show it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

import structlog

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.errors import WAITED_OUT, BuddyError, ReplayTakenOver, StateError
from worker.http.metrics import HttpMetrics
from worker.ops.steady_health import STEADY_MS
from worker.stream import Partition
from worker.waiting import wait

_LOOK_SECONDS: Final = 5.0
_SLOW_SECONDS: Final = 15.0
"""How long the broker may take for an answer."""
_LASTING_SECONDS: Final = 30.0
"""How long a failed request counts if no other takes its path: a look misses some faults, such
as a missing right, and whoever sends nothing to an API that is not ready would never end it."""
_SHOWN_SECONDS: Final = 600.0
"""How long a loss counts, so that somebody notices."""

_log = structlog.get_logger(__name__)


class BrokerWatch:
    """Looks every few seconds, and hears of requests that could not send, and of followers."""

    def __init__(
        self,
        broker: Broker,
        names: Names,
        tell: Callable[[str | None], object],
        metrics: HttpMetrics,
    ) -> None:
        """`tell` gets what keeps the API from a part of its work, in one line, or None.

        It gets that every few seconds.
        """
        self._broker = broker
        self._inputs = [names.input(entity) for entity in ENTITIES]
        self._others = [names.export_requests, names.replays, names.progress]
        self._tell = tell
        self._known: str | None = None
        self._failures: dict[str, tuple[str, float]] = {}
        """By path of requests to the broker: the last error, and when it was."""
        self._unfollowed: dict[str, tuple[str, float | None]] = {}
        """By topic, or `exports`: why it could not be read, and since when it is read again."""
        self._metrics = metrics
        self._lost: dict[Partition, tuple[str, float]] = {}
        """By partition: its last loss, and when that was seen."""

    def failed(self, path: str, error: BuddyError) -> None:
        """A request could not write: to that topic, or in a way of its own."""
        if isinstance(error, (*WAITED_OUT, StateError)) and not isinstance(error, ReplayTakenOver):
            self._failures[path] = str(error), _now()

    def sent(self, path: str) -> None:
        """A request has written all that it had on that path: earlier failures of it are over."""
        self._failures.pop(path, None)

    def not_followed(self, what: str, why: str) -> None:
        """That topic, or `exports`, cannot be read and is tried again. `why` is one line."""
        self._unfollowed[what] = why, None

    def followed(self, what: str) -> None:
        """That topic, or `exports`, was read; an earlier failure is over after five seconds."""
        if what in self._unfollowed:
            line, since = self._unfollowed[what]
            since = _now() if since is None else since
            self._unfollowed[what] = line, since
            if _now() - since >= STEADY_MS / 1000:
                del self._unfollowed[what]

    def lost(self, partition: Partition, count: int, *, is_new: bool) -> None:
        """Offsets of a followed topic are lost: removed, skipped, or of an earlier topic.

        If the loss is not new, it does not affect readiness.
        """
        topic, number = partition
        self._metrics.lost(count)
        if is_new or topic in self._unfollowed:
            line = (
                f"{count} offsets of {topic}/{number} are lost: removed, damaged and skipped, or"
                " gone with an earlier topic of this name: see receipts_lost and"
                " announcements_lost in docs/operations/troubleshooting.md"
            )
            self._lost[partition] = line, _now()

    def hindrance(self) -> str | None:
        """What keeps the API from a part of its work, in one line; None if nothing does."""
        since = _now() - _SHOWN_SECONDS
        self._lost = {partition: one for partition, one in self._lost.items() if one[1] > since}
        unread = (*self._unfollowed.values(), *self._lost.values())
        return self._known or next((line for line, _ in unread), None)

    async def run(self, stop: asyncio.Event) -> None:
        """Look until `stop` is set."""
        while not stop.is_set():
            looking, began = asyncio.create_task(self._look()), _now()
            stopping = asyncio.create_task(stop.wait())
            try:
                while not looking.done() and not stop.is_set():
                    await asyncio.wait(
                        {looking, stopping},
                        timeout=_LOOK_SECONDS,
                        return_when=asyncio.FIRST_COMPLETED,
                    )
                    seconds = _now() - began
                    if looking.done():
                        self._say(looking.result() or self._recent_failure())
                    elif seconds >= _SLOW_SECONDS:
                        self._say(f"the broker has not answered for {_SLOW_SECONDS:.0f} s")
                    else:
                        self._tell(self.hindrance())
            finally:
                for task in (looking, stopping):
                    task.cancel()
                await asyncio.wait({looking})
            await wait(stop, _LOOK_SECONDS)

    async def _look(self) -> str | None:
        """What keeps the API from sending, as far as that shows without a record."""
        try:
            there = await self._broker.topics([*self._inputs, *self._others])
            for topic in (*self._inputs, *self._others):
                if topic not in there:
                    return f"topic {topic} is missing: run 'buddy topics create'"
            # A request writes to any of the partitions.
            await self._broker.spans(
                Partition(topic, number)
                for topic in self._inputs
                for number in range(there[topic].partitions)
            )
            await self._broker.publish(())
        except BuddyError as error:
            return str(error)
        return self._broker.hindrance()

    def _recent_failure(self) -> str | None:
        since = _now() - _LASTING_SECONDS
        self._failures = {topic: one for topic, one in self._failures.items() if one[1] > since}
        return next((line for line, _ in self._failures.values()), None)

    def _say(self, line: str | None) -> None:
        if line is not None and self._known is None:
            _log.warning("http_cannot_send", error=line)
        elif line is None and self._known is not None:
            _log.info("http_can_send")
        self._known = line
        self._tell(self.hindrance())


def _now() -> float:
    return asyncio.get_running_loop().time()
