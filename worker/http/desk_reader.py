"""Reads the desk's store for requests, beside the desk that keeps it up to date.

Each request opens the store for itself: a desk may replace it at any time. SQLite runs in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.desk.opening import ReadingAccess
from worker.desk.store import RejectionStore
from worker.errors import NoAnswer
from worker.http.problems import RETRY_SECONDS, Problem

ANSWER_SECONDS: Final = 10.0
"""How long a request waits for what the topics held when it came."""
MOST_AT_ONCE: Final = 8
"""Requests that have the store open at one time; further ones wait."""

Answer = TypeVar("Answer")


class DeskReader:
    """Answers questions about the rejections that the topics hold now."""

    def __init__(self, broker: Broker, names: Names, directory: Path) -> None:
        self.broker = broker
        self.names = names
        self.access = ReadingAccess(directory, names, ANSWER_SECONDS)
        self._turns = asyncio.Semaphore(MOST_AT_ONCE)

    async def ask(self, question: Callable[[RejectionStore], Answer]) -> Answer:
        """What a function makes of the store, which is up to date; a thread calls the function.

        Raises Problem 503 if there is no answer in time; MissingTopic, BrokerUnavailable and
        StateError.
        """
        try:
            async with (
                asyncio.timeout(ANSWER_SECONDS),
                self._turns,
                self.access.open(self.broker) as store,
            ):
                return await _in_thread(store, question)
        except (TimeoutError, NoAnswer):
            raise behind() from None


def behind() -> Problem:
    """The problem of a store that is not up to date in time."""
    return Problem(
        503,
        "desk_behind",
        f"the desk has not read what the topics hold within {ANSWER_SECONDS:.0f} s: try again, or"
        " see its log",
        headers={"Retry-After": str(RETRY_SECONDS)},
    )


async def _in_thread(store: RejectionStore, question: Callable[[RejectionStore], Answer]) -> Answer:
    asking = asyncio.ensure_future(asyncio.to_thread(question, store))
    try:
        return await asyncio.shield(asking)
    except asyncio.CancelledError:
        store.database.interrupt()
        await asyncio.wait({asking})
        if not asking.cancelled():
            asking.exception()  # nobody else looks at it
        raise
