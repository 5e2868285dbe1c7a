"""The worker: validates the records of the inputs, whatever happens to their topics."""

from __future__ import annotations

import asyncio

import msgspec
import structlog

from worker.brokers.contract import Broker
from worker.clock import Clock
from worker.core.internal import read_progress
from worker.core.pressure import Limits
from worker.core.task_settings import TaskSettings
from worker.engine.identities import Identities
from worker.engine.loop import WorkLoop, retried
from worker.engine.reports import WorkerReports, unheard
from worker.engine.startup import check_topics, message_limit
from worker.errors import StateLost, TopicRecreated
from worker.index.store import IndexStore
from worker.stream import Partition
from worker.waiting import Backoff, wait

_log = structlog.get_logger(__name__)


class Worker:
    """Validates the records of the inputs. One instance per process."""

    def __init__(
        self,
        broker: Broker,
        settings: TaskSettings,
        index: IndexStore,
        clock: Clock,
        limits: Limits | None = None,
        reports: WorkerReports | None = None,
    ) -> None:
        self._broker = broker
        self._settings = settings
        self._index = index
        self._clock = clock
        self._limits = limits or Limits()
        self._reports = reports or unheard(clock)
        self._identities = Identities(broker, settings.names, clock.steady)
        self.loop: WorkLoop | None = None
        """The loop on the current topics; None before the start."""

    async def run(self, stop: asyncio.Event) -> None:
        """Work until `stop` is set, then finish the commits in flight and leave the group.

        Raises ConfigurationError or MissingTopic if the topics are wrong at the start,
        BrokerUnavailable if the broker is unreachable at the start, and StateError. Retries later
        outages with backoff. When a topic is deleted, recreated or truncated, or damage is found, a
        new loop reopens the reader and the index, and restores all tasks.
        """
        await self._check_topics()
        damage = Backoff(self._clock.steady, longest=60.0)
        while not stop.is_set():
            self._reports.health.restoring()
            self.loop = self._new_loop()
            try:
                await self.loop.run(stop)
            except TopicRecreated as error:
                _log.warning("topics_changed", reason=str(error))
                self._identities.remember()
                await retried(self._check_topics, stop, self._reports, self._clock)
            except StateLost:  # the index logs the reason when it is reopened
                await wait(stop, damage.failed())
        _log.info("worker_stopped")

    def _new_loop(self) -> WorkLoop:
        return WorkLoop(
            self._broker,
            self._settings,
            self._index,
            self._identities,
            self._limits,
            self._reports,
            self._clock,
        )

    async def _check_topics(self) -> None:
        """Read the number of tasks, the message limit and the identities of the topics."""
        await self._identities.capture()
        names, limit = self._settings.names, self._settings.record_limit
        tasks = await check_topics(self._broker, names, limit)
        for number, value in self._identities.checkpoints.take_beyond(tasks).items():
            if (last := read_progress(b"%d" % number, value, number)) is not None:
                parked = {entity: counts.parked for entity, counts in last.counts.items()}
                self._reports.task_gone(Partition(names.parked, number), parked)
        limit = await message_limit(self._broker, names)
        self._settings = msgspec.structs.replace(
            self._settings,
            tasks=tasks,
            rejection_limit=limit,
            decision_bytes=self._limits.batch(tasks),
        )
