"""One worker's machine: its clock, its disk, and the process that runs on it, if one does."""

from __future__ import annotations

import asyncio
from typing import Final, cast
from unittest.mock import patch

from tests.proofs.simulation.broker.cluster import Cluster
from tests.proofs.simulation.broker.connection import MemoryBroker
from tests.proofs.simulation.index import Disk
from tests.proofs.simulation.loop import Process
from tests.proofs.simulation.promises import Broken
from tests.proofs.simulation.weather import Conditions, SeededNetwork
from worker.clock import Clock
from worker.engine.reports import WorkerReports
from worker.engine.worker import Worker
from worker.errors import WAITED_OUT
from worker.index.store import IndexStore
from worker.ops.health import Health
from worker.ops.metrics import Metrics

START_OF_TIME: Final = 1_717_200_000_000

_METRICS: Final = Metrics()
"""Nobody looks at them, and they take long to make."""


def _never() -> None:
    raise Broken("a worker takes an internal topic for truncated, which none is")


patch.object(_METRICS.anomalies, "internal_truncated", _never).start()


class Machine:
    """Start its worker, freeze, thaw, stop or bury it."""

    def __init__(self, number: int, cluster: Cluster, conditions: Conditions) -> None:
        self.number = number
        self.disk = Disk()
        self.ahead = 0
        """How far its wall clock is ahead of the right time, in milliseconds."""
        self.process: Process | None = None
        self._cluster = cluster
        self._conditions = conditions
        self._run: asyncio.Task[None] | None = None

    @property
    def runs(self) -> bool:
        """Whether there is a process, and it has not ended."""
        return self._run is not None and not self._run.done()

    @property
    def has_ended(self) -> bool:
        """Whether its process has ended by itself."""
        return self._run is not None and self._run.done()

    @property
    def frozen(self) -> bool:
        """Whether its process does not go on."""
        return self.process is not None and self.process.frozen

    def start(self) -> None:
        """Start a worker on what is on the disk."""
        loop = self._conditions.loop
        self.process = Process(f"worker {self.number}", loop)
        self.network = SeededNetwork(self._conditions, self.process)
        self.broker = MemoryBroker(self._cluster, self.network)
        self._stop = asyncio.Event()
        clock = Clock(self._wall, lambda: int(loop.time() * 1000) + self.number * 7_777_777)
        reports = WorkerReports(_METRICS, Health(_METRICS, clock.steady).part("worker"), clock)
        settings = self._conditions.settings
        worker = Worker(
            self.broker,
            settings.rules,
            cast("IndexStore", self.disk),
            clock,
            settings.limits,
            reports,
        )
        self._run = self.process.spawn(self._serve(worker))

    async def _serve(self, worker: Worker) -> None:
        await self.broker.open()
        try:
            await worker.run(self._stop)
        finally:
            await self.broker.close()

    def stop(self) -> None:
        """Tell it to finish in order."""
        self._stop.set()

    def lapse(self) -> None:
        """Its group gives up a process of which it hears nothing, at some moment."""
        broker = self.broker

        def give_up() -> None:
            for member in broker._members:
                member.lapse()

        self._conditions.later(self._conditions.dice.choice((0.0, 0.0, 0.2, 2.0)), give_up)

    def bury(self) -> None:
        """Its process ends, if it has not; its disk may be gone. Raises what a worker died of."""
        if self.runs:
            assert self.process is not None
            self.process.kill()
        elif (error := self.outcome()) is not None:
            raise error
        self.process = self._run = None
        if self._conditions.dice.random() < 0.5:
            self.disk = Disk()

    def repair(self) -> str:
        """Have it go on, whatever it was that kept it from that; what was done."""
        if self.process is None:
            self.start()
            return "start"
        if self.process.frozen:
            self.process.thaw()
            return "thaw"
        return "leave"

    def outcome(self) -> BaseException | None:
        """What its worker ended with, other than what a supervisor would start it again after."""
        if self._run is None:
            return None
        try:
            self._run.result()
        except WAITED_OUT:
            return None
        except BaseException as error:  # noqa: BLE001 -- whatever it was
            return error
        return None

    def _wall(self) -> int:
        return START_OF_TIME + int(self._conditions.loop.time() * 1000) + self.ahead
