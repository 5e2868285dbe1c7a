"""Which sink of a prefix is the active one: it alone answers requests and runs schedules.

The sinks share one seat as workers share tasks: whoever the group `<prefix>-sink` assigns
partition 0 of export-requests. A frozen or dead one loses it when its session is over. For the
moments in which two believe that they have it, there is the fence of the `Committer`.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from worker.brokers.contract import Broker, Member
from worker.errors import BrokerUnavailable
from worker.sink.consume import sleep
from worker.topics import Names

SEAT: Final = 0
"""The partition whose owner is active."""
_ASK_SECONDS: Final = 0.2

_log = structlog.get_logger(__name__)


class Election:
    """This sink's membership; `join`, then `run` in a task of its own."""

    def __init__(self, broker: Broker, names: Names) -> None:
        self.group = f"{names.prefix}-sink"
        """Also the name under which the active one writes."""
        self.elected = asyncio.Event()
        """Set for as long as this sink has the seat, as far as it knows."""
        self._broker = broker
        self._topic = names.export_requests
        self._member: Member | None = None

    async def join(self) -> None:
        """Stand for election. Raises `MissingTopic`, `BrokerUnavailable`."""
        self._member = await self._broker.join(self.group, self._topic)

    async def run(self, stop: asyncio.Event) -> None:
        """Stay a member until `stop`, also while exports are made.

        Raises `ConfigurationError` where the broker does not allow the group.
        """
        if self._member is None:
            raise RuntimeError("join before you run")
        while not stop.is_set():
            try:
                elected = SEAT in await self._member.assignment()
            except BrokerUnavailable as error:
                elected = False
                _log.debug("election_waits_for_broker", error=str(error))
            if elected:
                self.elected.set()
            else:
                self.elected.clear()
            await sleep(stop, _ASK_SECONDS)

    async def close(self) -> None:
        """Leave at once, so that the other one takes over without waiting."""
        self.elected.clear()
        if self._member is not None:
            await self._member.close()
