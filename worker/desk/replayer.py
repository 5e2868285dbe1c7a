"""A whole replay: sends the chosen rejections to their inputs again, page by page.

The command and the HTTP API run it alike. What it promises is in `worker.desk.replay`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from worker.brokers.contract import Broker, Committer
from worker.core.topics import Names
from worker.desk import replay
from worker.desk.opening import StoreAccess
from worker.desk.pages import Pages
from worker.desk.queries import Filter
from worker.desk.replay import ReplayRun, Resent
from worker.errors import Fenced, MissingTopic, ReplayTakenOver
from worker.stream import ProducerRecord

USUAL_RATE: Final = 1_000
"""Records a second, unless told otherwise."""
_AT_ONCE: Final = 1_000
"""Most records in one transaction. The store is brought up to date before each."""
_EXAMPLES: Final = 10

Sent = Callable[[Sequence[ProducerRecord], Sequence[tuple[int, int]]], None]
"""Called with records that were sent again, and the partition and offset of each."""


class ReplayPlan(NamedTuple):
    """What to send again, and how."""

    chosen: Filter
    coordinates: tuple[str, ...] = ()
    """If there are any, these rejections and no others."""
    rate: int = USUAL_RATE
    """Records a second."""
    dry: bool = False
    with_orphans: bool = False
    seconds: float | None = None
    """After so many seconds, no further page is sent."""


class Replayer:
    """One replay: `prepare`, then `send`."""

    def __init__(self, access: StoreAccess, this_run: ReplayRun, plan: ReplayPlan) -> None:
        self.this_run = this_run
        self.plan = plan
        self.sent = 0
        """Records sent again, or with `dry` those that would be."""
        self.complete = True
        """Whether all chosen rejections were looked at."""
        self.pages = Pages(
            access,
            plan.chosen,
            plan.coordinates,
            limit=min(plan.rate, _AT_ONCE),
            with_orphans=plan.with_orphans,
        )
        self.examples: list[Resent] = []
        self._names: Names = access.names

    async def prepare(self, broker: Broker) -> None:
        """Look at the topics. Raises MissingTopic, BrokerUnavailable."""
        inputs, replays = self._names.input("users"), self._names.replays
        topics = await broker.topics([inputs, replays])
        for name in (inputs, replays):
            if name not in topics:
                raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
        self.this_run = self.this_run._replace(partitions=topics[inputs].partitions)

    async def send(
        self,
        broker: Broker,
        on_sent: Sent = lambda _records, _places: None,
        on_page: Callable[[int], None] = lambda _rejections: None,
    ) -> None:
        """Send everything, as the only replay; with `dry`, look at everything.

        What others have sent until now is in the audit. Raises ReplayTakenOver, UsageError for a
        coordinate without a rejection, NoAnswer, StateError, MissingTopic, BrokerUnavailable,
        DamagedLog. `sent` says how much was sent before an error.
        """
        try:
            if self.plan.dry:
                await self._send(broker, None, on_sent, on_page)
                return
            writer = f"{self._names.prefix}-replay"
            committer = await broker.committer(writer, writer)
            try:
                await self._send(broker, committer, on_sent, on_page)
            except Fenced:
                raise ReplayTakenOver(
                    "another 'buddy rejections replay' has begun: this one has stopped; the topic "
                    f"{self._names.replays} says what it has sent"
                ) from None
            finally:
                await committer.close()
        finally:
            await self.pages.close()

    async def _send(
        self,
        broker: Broker,
        committer: Committer | None,
        on_sent: Sent,
        on_page: Callable[[int], None],
    ) -> None:
        clock = asyncio.get_running_loop().time
        due = clock()
        until = None if self.plan.seconds is None else due + self.plan.seconds
        while candidates := await self.pages.next(broker):
            if until is not None and clock() >= until:
                self.complete = False
                return
            may = replay.sendable(candidates, self.this_run, self.pages.skipped)
            async for resent in replay.batches(
                broker, self._names, may, self.this_run, self.pages.skipped
            ):
                self.examples += resent[: _EXAMPLES - len(self.examples)]
                if committer is None:
                    self.sent += len(resent)
                    continue
                sent = await replay.commit(committer, self._names, resent, self.pages.skipped)
                on_sent(*sent)
                self.sent += len(sent[0])
                due = max(due, clock()) + len(sent[0]) / self.plan.rate
                await asyncio.sleep(max(0.0, due - clock()))
            on_page(len(candidates))

    def report(self) -> dict[str, Any]:
        """What was sent and what was not, as JSON."""
        report: dict[str, Any] = {
            "replay": self.this_run.replay,
            "dry_run": self.plan.dry,
            "sent": 0 if self.plan.dry else self.sent,
            "skipped": dict(sorted((+self.pages.skipped).items())),
            "orphans": self.pages.orphans,
        }
        if self.plan.dry:
            report |= {
                "would_send": self.sent,
                "examples": [one.audit.rejection for one in self.examples],
            }
        return report
