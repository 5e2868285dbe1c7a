"""Watches whether records can be sent.

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
from worker.errors import WAITED_OUT, BuddyError, StateError
from worker.waiting import wait

_LOOK_SECONDS: Final = 5.0
_SLOW_SECONDS: Final = 15.0
"""How long the broker may take for an answer."""
_LASTING_SECONDS: Final = 30.0
"""How long a request that failed counts: a look does not see every missing right."""

_log = structlog.get_logger(__name__)


class SendingWatch:
    """Looks every few seconds, and hears of requests that could not send."""

    def __init__(self, broker: Broker, names: Names, tell: Callable[[str | None], object]) -> None:
        """`tell` gets what keeps the API from sending, in one line, or None; every few seconds."""
        self._broker = broker
        self._inputs = [names.input(entity) for entity in ENTITIES]
        self._tell = tell
        self._known: str | None = None
        self._failure = ""
        self._failed_at: float | None = None

    def failed(self, error: BuddyError) -> None:
        """A request could not send."""
        if isinstance(error, (*WAITED_OUT, StateError)):
            self._failure, self._failed_at = str(error), _now()

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
                        self._tell(self._known)
            finally:
                for task in (looking, stopping):
                    task.cancel()
                await asyncio.wait({looking})
            await wait(stop, _LOOK_SECONDS)

    async def _look(self) -> str | None:
        """What keeps the API from sending, as far as that shows without a record."""
        try:
            there = await self._broker.topics(self._inputs)
            for topic in self._inputs:
                if topic not in there:
                    return f"topic {topic} is missing: run 'buddy topics create'"
            await self._broker.publish(())
        except BuddyError as error:
            return str(error)
        return self._broker.hindrance()

    def _recent_failure(self) -> str | None:
        if self._failed_at is None or _now() - self._failed_at >= _LASTING_SECONDS:
            return None
        return self._failure

    def _say(self, line: str | None) -> None:
        if line is not None and self._known is None:
            _log.warning("http_cannot_send", error=line)
        elif line is None and self._known is not None:
            _log.info("http_can_send")
        self._known = line
        self._tell(line)


def _now() -> float:
    return asyncio.get_running_loop().time()
