"""The program's processes: started, hurt, healed, watched, and at the end killed in any case."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.paths import ROOT
from tests.proofs.chaos.wall_clock import WallClock

END_SECONDS: Final = 40.0
"""Within which a process must have ended after a SIGTERM, whatever the broker does."""

READY_SECONDS: Final = 90.0

_READY: Final = {"worker": b'"worker_ready"', "sink": b'"sink_started"'}


class Process:
    """One worker or sink: the same state directory and log through all its lives."""

    def __init__(
        self, name: str, role: str, directory: Path, environment: Mapping[str, str]
    ) -> None:
        self.name = name
        self.role = role
        self.data = directory / "data" / name
        self.log = directory / "logs" / f"{name}.log"
        self.ending = False
        """Whether it was told to end: then it may."""
        self.frozen = False
        self.clock = WallClock(directory / "clocks" / name)
        """What it believes the time to be, in this life and the next ones."""
        self._environment = dict(environment) | {"BUDDY_DATA": str(self.data)}
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None
        self._born = 0
        self._scanned = 0

    @property
    def alive(self) -> bool:
        """Whether it runs, frozen or not."""
        return self._process is not None and self._process.poll() is None

    @property
    def code(self) -> int | None:
        """The exit code of its last life."""
        return None if self._process is None else self._process.returncode

    def start(self) -> None:
        """Begin another life."""
        assert not self.alive, f"{self.name} runs"
        self.ending = self.frozen = False
        self._born = self.log.stat().st_size if self.log.exists() else 0
        launcher = [sys.executable, "-m", "tests.proofs.chaos.wall_clock"]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [*launcher, str(self.clock.path), self.role],
                cwd=self._directory, env=self._environment, stdin=subprocess.DEVNULL,
                stdout=log, stderr=log,
            )  # fmt: skip

    def send(self, number: signal.Signals) -> None:
        """Send a signal; SIGSTOP and SIGCONT are remembered, SIGTERM and SIGKILL let it end."""
        if not self.alive:
            return
        assert self._process is not None
        self.ending = self.ending or number in (signal.SIGTERM, signal.SIGKILL)
        self.frozen = (self.frozen or number == signal.SIGSTOP) and number != signal.SIGCONT
        self._process.send_signal(number)
        if number == signal.SIGKILL:
            self._process.wait(30)

    async def end(self) -> str | None:
        """SIGTERM, and wait; what was wrong with how it ended."""
        if not self.alive:
            return None
        assert self._process is not None
        self.send(signal.SIGTERM)
        began = time.monotonic()
        while self.alive:
            if time.monotonic() - began > END_SECONDS:
                self.send(signal.SIGKILL)
                return f"{self.name} did not end within {END_SECONDS:.0f} s of SIGTERM"
            await asyncio.sleep(0.05)
        # Before it has said anything, nobody listens to signals yet.
        fine = self.code == 0 or (self.code == -signal.SIGTERM and not self._said())
        return None if fine else f"{self.name} ended by SIGTERM with exit code {self.code}"

    async def ready(self) -> bool:
        """Wait until this life does its work; False if it takes too long or ends."""
        deadline = time.monotonic() + READY_SECONDS
        while self.alive and time.monotonic() < deadline:
            if _READY[self.role] in self._said():
                return True
            await asyncio.sleep(0.1)
        return False

    def _said(self) -> bytes:
        """What it has logged in this life."""
        with self.log.open("rb") as file:
            file.seek(self._born)
            return file.read()

    def forget(self) -> None:
        """Remove its state: everything in it can be rebuilt."""
        shutil.rmtree(self.data, ignore_errors=True)

    def news(self) -> Iterator[str]:
        """The lines logged since the last call."""
        if not self.log.exists():
            return
        with self.log.open("rb") as file:
            file.seek(self._scanned)
            for line in file:
                if not line.endswith(b"\n"):
                    break
                self._scanned += len(line)
                yield line.decode(errors="replace").rstrip("\n")


class Fleet:
    """All processes of a run. `problems` are what no process may do, one line each."""

    def __init__(
        self, directory: Path, environment: Mapping[str, str], random_: random.Random
    ) -> None:
        self.problems: list[str] = []
        self.events: Counter[str] = Counter()
        self.workers: list[Process] = []
        self.sink = Process("sink", "sink", directory, environment)
        self._directory = directory
        self._environment = environment
        self._random = random_
        self._restarts: dict[Process, asyncio.Task[None]] = {}
        self._made = 0
        self._retired: list[Process] = []
        (directory / "logs").mkdir(parents=True)

    def add_worker(self) -> Process:
        """One more, with the state of one that has left or with none."""
        if self._retired and self._random.random() < 0.5:
            worker = self._retired.pop()
        else:
            self._made += 1
            name = f"worker-{self._made}"
            worker = Process(name, "worker", self._directory, self._environment)
        self.workers.append(worker)
        worker.start()
        return worker

    def retire(self, worker: Process) -> None:
        """It has left for good, or until another is added."""
        self.workers.remove(worker)
        self._retired.append(worker)

    @property
    def running(self) -> list[Process]:
        """The workers that are alive and not frozen."""
        return [w for w in self.workers if w.alive and not w.frozen]

    def restart_later(self, process: Process, longest: float = 3.0) -> None:
        """Start it again after a random delay."""

        async def restart() -> None:
            await asyncio.sleep(self._random.uniform(0, longest))
            if not process.alive:
                process.start()

        self._restarts[process] = asyncio.create_task(restart())

    async def heal(self) -> None:
        """Until everything runs that should."""
        self.look()
        await asyncio.gather(*self._restarts.values())
        for process in (*self.workers, self.sink):
            if process.frozen:
                process.send(signal.SIGCONT)
            if not process.alive:
                process.start()
        for process in (*self.workers, self.sink):
            if not await process.ready():
                self.problems.append(f"{process.name} was not ready after {READY_SECONDS:.0f} s")

    def look(self, *only: Process) -> None:
        """Whether one has ended by itself (then it is started again), and what they log."""
        for process in only or (*self.workers, self.sink):
            restarting = process in self._restarts and not self._restarts[process].done()
            if process.alive or process.ending or restarting or process.code is None:
                continue
            last = self._last_line(process)
            self.problems.append(
                f"{process.name} ended by itself with exit code {process.code}: {last}"
            )
            process.ending = True
            self.restart_later(process)
        for process in (*self.workers, *self._retired, self.sink):
            for line in process.news():
                self._note(process, line)

    async def end(self) -> None:
        """SIGTERM to all; everything must end in order."""
        await asyncio.gather(*self._restarts.values())
        ends = await asyncio.gather(*(p.end() for p in (*self.workers, self.sink)))
        self.problems += filter(None, ends)
        self.look()

    def kill(self) -> None:
        """At the end, whatever has happened."""
        for restart in self._restarts.values():
            restart.cancel()
        for process in (*self.workers, *self._retired, self.sink):
            process.send(signal.SIGKILL)

    def _note(self, process: Process, line: str) -> None:
        if not line.startswith("{"):
            self.events["stray line"] += 1
            if line.startswith("Traceback"):
                self.problems.append(f"{process.name} printed a traceback: {process.log}")
            return
        try:
            said = json.loads(line)
        except ValueError:
            self.events["stray line"] += 1
            return
        self.events[said.get("event", "?")] += 1
        # A clock that is set may make a request old; the checker counts these answers.
        old = "more than an hour old" in said.get("error", "")
        if said.get("level") in ("error", "critical") and not old:
            self.problems.append(f"{process.name} logged an error: {line[:300]}")

    @staticmethod
    def _last_line(process: Process) -> str:
        lines = process.log.read_bytes()[-4000:].decode(errors="replace").splitlines()
        return lines[-1][:300] if lines else "(nothing logged)"


def environment(broker: str, directory: Path, grace: float, prefix: str) -> dict[str, str]:
    """What every process of the program finds in its environment."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("BUDDY_")}
    checkout = str(ROOT)
    path = os.pathsep.join(filter(None, (checkout, clean.get("PYTHONPATH"))))
    return clean | {
        "PYTHONPATH": path,
        "BUDDY_BROKER": broker,
        "BUDDY_PREFIX": prefix,
        "BUDDY_DATA": str(directory / "data" / "cli"),
        "BUDDY_EXPORTS": str(directory / "exports"),
        "BUDDY_GRACE_SECONDS": str(grace),
        "BUDDY_SCHEDULES": "[]",
    }
