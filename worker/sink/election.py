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
from worker.clock import Clock
from worker.core.topics import Names
from worker.errors import WAITED_OUT
from worker.sink.reports import Reports
from worker.sink.store.consume import sleep

SEAT: Final = 0
"""The partition whose owner is active."""
_ASK_SECONDS: Final = 0.2
_HINDERED_MS: Final = 30_000
"""So long after a failure a sink that has not got the seat may still be kept from standing for it:
what is wrong is told once for each attempt to join, and a passive sink is told nothing at all."""
_ELECTION: Final = "election"

_log = structlog.get_logger(__name__)


class Election:
    """This sink's membership; `join`, then `run` in a task of its own."""

    def __init__(
        self,
        broker: Broker,
        names: Names,
        reports: Reports,
        clock: Clock,
    ) -> None:
        self.group = f"{names.prefix}-sink"
        """Also the name under which the active one writes."""
        self.elected = asyncio.Event()
        """Set for as long as this sink has the seat, as far as it knows."""
        self._broker = broker
        self._topic = names.export_requests
        self._reports = reports
        self._steady = clock.steady
        self._failed_at: int | None = None
        self._member: Member | None = None

    async def join(self) -> None:
        """Stand for election. Raises `MissingTopic`, `BrokerUnavailable`."""
        self._member = await self._broker.join(self.group, self._topic)

    async def run(self, stop: asyncio.Event) -> None:
        """Stay a member until `stop`, also while exports are made; outages are waited out."""
        if self._member is None:
            raise RuntimeError("join before you run")
        while not stop.is_set():
            try:
                elected = SEAT in await self._member.assignment()
            except WAITED_OUT as error:
                elected = False
                self._hindered(str(error))
            if elected:
                self.elected.set()
            else:
                self.elected.clear()
            if self._failed_at is not None and (
                elected or self._steady() - self._failed_at >= _HINDERED_MS
            ):
                self._failed_at = None
                self._reports.free(_ELECTION)
            await sleep(stop, _ASK_SECONDS)

    def _hindered(self, reason: str) -> None:
        if self._failed_at is None:
            _log.warning("election_waits_for_broker", error=reason)
        self._failed_at = self._steady()
        self._reports.hindered(_ELECTION, reason)

    async def close(self) -> None:
        """Leave at once, so that the other one takes over without waiting."""
        self.elected.clear()
        if self._member is not None:
            await self._member.close()
