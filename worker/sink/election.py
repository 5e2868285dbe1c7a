"""Elects the leader of a prefix: the one active sink, which answers requests and runs schedules.

The leader is the sink to which the group `<prefix>-sink` assigns partition 0 of export-requests. A
frozen or dead sink loses the lead when its session in the group expires. Two sinks may believe for
a moment that they lead; the fence of the `Committer` makes that harmless.
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from worker.brokers.contract import Broker, Member
from worker.clock import Clock
from worker.core.topics import Names
from worker.errors import WAITED_OUT
from worker.ops.steady_health import STEADY_MS
from worker.sink.reports import SinkReports
from worker.waiting import wait

LEADER_PARTITION: Final = 0
"""The partition whose owner is the leader."""
_ASK_SECONDS: Final = 0.2
_HINDERED_MS: Final = 30_000
"""How long after a failure a sink that does not lead still counts as hindered. The broker reports a
failure once per attempt to join, and tells a passive sink nothing when an attempt succeeds."""
_ELECTION: Final = "election"

_log = structlog.get_logger(__name__)


class Election:
    """This sink's membership. Call `join`, then `run` in a task of its own."""

    def __init__(
        self,
        broker: Broker,
        names: Names,
        reports: SinkReports,
        clock: Clock,
    ) -> None:
        self.group = f"{names.prefix}-sink"
        """The consumer group; also the name under which the leader writes."""
        self.elected = asyncio.Event()
        """Set while this sink is the leader, as far as it knows."""
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
        """Stay a member until `stop`, even while exports are made; outages are waited out."""
        if self._member is None:
            raise RuntimeError("join before you run")
        while not stop.is_set():
            try:
                elected = LEADER_PARTITION in await self._member.assignment()
            except WAITED_OUT as error:
                elected = False
                self._hindered(str(error))
            if elected:
                self.elected.set()
            else:
                self.elected.clear()
            limit = STEADY_MS if elected else _HINDERED_MS
            if self._failed_at is not None and self._steady() - self._failed_at >= limit:
                self._failed_at = None
                self._reports.free(_ELECTION, after=0)
            await wait(stop, _ASK_SECONDS)

    def _hindered(self, reason: str) -> None:
        if self._failed_at is None:
            _log.warning("election_waits_for_broker", error=reason)
        self._failed_at = self._steady()
        self._reports.hindered(_ELECTION, reason)

    async def close(self) -> None:
        """Leave at once, so that another sink takes over without waiting."""
        self.elected.clear()
        if self._member is not None:
            await self._member.close()
