"""The faults: what is done to the processes and to the broker, one a round, by a seeded choice."""

from __future__ import annotations

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Final

from tests.kafka_server import KafkaServer
from tests.proofs.chaos.processes import Fleet, Process

SESSION_SECONDS: Final = 6.0
"""After which a silent worker is taken for dead, on both brokers."""

FEWEST: Final = 2

_HOUR: Final = 3_600_000
_JUMPS: Final = (-24 * _HOUR, -_HOUR, _HOUR, 24 * _HOUR)
"""By how many milliseconds a wall clock is set wrong."""

Ask = Callable[[], Awaitable[None]]
"""Asks for an export and does not wait for it."""


class Faults:
    """Each method is a fault; `one` picks and commits it, and says which it was."""

    def __init__(
        self,
        fleet: Fleet,
        server: KafkaServer | None,
        ask: Ask,
        random_: random.Random,
        most_workers: int,
    ) -> None:
        self._fleet = fleet
        self._server = server
        self._ask = ask
        self._random = random_
        self._most = most_workers
        self._weights: dict[Callable[[], Awaitable[None]], float] = {
            self.kill_worker: 3,
            self.kill_all_workers: 1.5,
            self.kill_worker_and_its_state: 1,
            self.freeze_worker: 2,
            self.freeze_all_workers: 0.5,
            self.restart_worker: 2,
            self.add_worker: 1.5,
            self.remove_worker: 1.5,
            self.kill_sink: 1.5,
            self.jump_clock_of_worker: 2,
            self.jump_all_clocks: 1,
        }
        if server is not None:
            self._weights |= {self.restart_kafka: 1.5, self.kill_kafka: 1.5}
        self._recent: list[str] = []
        self.clocks_wrong: list[tuple[int, int]] = []
        """From when until when some clock was wrong, in milliseconds since 1970."""

    async def one(self) -> str:
        """Commit a random fault that can be committed now."""
        choices = [fault for fault in self._weights if self._possible(fault.__name__)]
        weights = [self._weights[fault] for fault in choices]
        fault = self._random.choices(choices, weights)[0]
        self._recent = [*self._recent, fault.__name__][-2:]
        await fault()
        return fault.__name__

    def _possible(self, name: str) -> bool:
        if name in self._recent:  # so that few rounds see many kinds
            return False
        if name == "add_worker":
            return len(self._fleet.workers) < self._most
        if name == "remove_worker":
            return len(self._fleet.workers) > FEWEST and bool(self._fleet.running)
        return "worker" not in name or bool(self._fleet.running)

    async def kill_worker(self) -> None:
        """Kill -9."""
        worker = self._any()
        worker.send(signal.SIGKILL)
        self._fleet.restart_later(worker)

    async def kill_all_workers(self) -> None:
        """Kill -9 of every worker at once."""
        for worker in self._fleet.running:
            worker.send(signal.SIGKILL)
            self._fleet.restart_later(worker)

    async def kill_worker_and_its_state(self) -> None:
        """Kill -9, and its disk is lost: everything on it can be rebuilt."""
        worker = self._any()
        worker.send(signal.SIGKILL)
        worker.forget()
        self._fleet.restart_later(worker)

    async def freeze_worker(self) -> None:
        """SIGSTOP until others have taken over, then it wakes as a zombie."""
        await self._freeze([self._any()])

    async def freeze_all_workers(self) -> None:
        """All stop for longer than their sessions, and wake at one moment."""
        await self._freeze(self._fleet.running)

    async def _freeze(self, workers: list[Process]) -> None:
        for worker in workers:
            worker.send(signal.SIGSTOP)
        await asyncio.sleep(SESSION_SECONDS + self._random.uniform(1, 4))
        for worker in workers:
            worker.send(signal.SIGCONT)

    async def restart_worker(self) -> None:
        """SIGTERM, and start again."""
        worker = self._any()
        self._note(await worker.end())
        self._fleet.restart_later(worker)

    async def add_worker(self) -> None:
        """One more than there was."""
        self._fleet.add_worker()

    async def remove_worker(self) -> None:
        """SIGTERM, for good."""
        worker = self._any()
        self._note(await worker.end())
        self._fleet.retire(worker)

    async def kill_sink(self) -> None:
        """Kill -9 of the sink, now and then in the middle of an export."""
        if not self._fleet.sink.alive:
            return
        if self._random.random() < 0.5:
            await self._ask()
            await asyncio.sleep(self._random.uniform(0, 0.5))
        self._fleet.sink.send(signal.SIGKILL)
        self._fleet.restart_later(self._fleet.sink)

    async def jump_clock_of_worker(self) -> None:
        """The wall clock of one worker's machine is set, by an hour or a day, and back later."""
        await self._jump([self._any()])

    async def jump_all_clocks(self) -> None:
        """So is that of all machines at once, where workers and the sink run."""
        sink = self._fleet.sink
        await self._jump([*self._fleet.running, *([sink] if sink.alive else [])])

    async def _jump(self, processes: list[Process]) -> None:
        ahead = self._random.choice(_JUMPS)
        began = _now()
        for process in processes:
            process.clock.set_ahead(ahead)
        await asyncio.sleep(self._random.uniform(0.5, 4))
        # The embedded broker refuses a process that starts with a clock ahead of its log.
        if (self._server is not None or ahead < 0) and self._random.random() < 0.6:
            process = self._random.choice(processes)
            if self._random.random() < 0.5:
                process.send(signal.SIGKILL)
            else:
                self._note(await process.end())
            process.start()
            await process.ready()  # so that it works by the wrong clock, too
            await asyncio.sleep(self._random.uniform(1, 4))
        for process in processes:
            process.clock.set_ahead(0)
        self.clocks_wrong.append((began, _now()))

    async def restart_kafka(self) -> None:
        """The broker stops in order and comes back."""
        await self._restart(kill=False)

    async def kill_kafka(self) -> None:
        """Kill -9 of the broker, and it comes back."""
        await self._restart(kill=True)

    async def _restart(self, *, kill: bool) -> None:
        # A process that starts while the broker is away gives up with a message, as documented.
        assert self._server is not None
        await self._fleet.heal()
        if kill:
            await asyncio.to_thread(self._server.kill)
            await asyncio.sleep(self._random.uniform(0, 3))
        await asyncio.to_thread(self._server.restart, kill=kill)

    def _any(self) -> Process:
        return self._random.choice(self._fleet.running)

    def _note(self, problem: str | None) -> None:
        if problem is not None:
            self._fleet.problems.append(problem)


def _now() -> int:
    return time.time_ns() // 1_000_000
