"""Runs `buddy` as its users do: processes of their own, told by signals, watched by their logs.

Nothing here sleeps: what a test waits for is an event in a log, the end of a process or an outcome
on the broker, and each wait has a deadline.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Self

from worker.core.topics import Names

DEADLINE = 45.0
"""Seconds within which anything must have happened; nothing normally takes so long."""


class Result:
    """What a command that has ended left: exit code, standard output and standard error."""

    def __init__(self, command: str, code: int, out: str, err: str) -> None:
        self.command = command
        self.code = code
        self.out = out
        self.err = err
        assert "Traceback" not in err + out, f"{self}"

    @property
    def json(self) -> Any:
        """Standard output, which must be one JSON document."""
        return json.loads(self.out)

    def succeeded(self) -> Self:
        """Itself, once it is sure that the exit code is 0."""
        assert self.code == 0, f"{self}"
        return self

    def complained(self, code: int) -> str:
        """The one line on standard error of a command that failed with this exit code."""
        assert self.code == code, f"{self}"
        assert self.err.startswith("buddy: "), f"{self}"
        assert self.err.count("\n") == 1, f"{self}"
        assert self.err.endswith("\n"), f"{self}"
        return self.err.removeprefix("buddy: ").rstrip("\n")

    def __str__(self) -> str:
        return f"{self.command}: exit code {self.code}\n{self.out[-2000:]}\n{self.err[-2000:]}"


class Service:
    """A running `buddy` command, its log read as it comes."""

    def __init__(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self.name = name
        self.process = process
        self.lines: list[str] = []
        self._out: list[bytes] = []
        self._news = threading.Condition()
        self._ended = False
        assert process.stderr is not None
        assert process.stdout is not None
        self._threads = [
            threading.Thread(target=self._follow, args=(process.stderr,), daemon=True),
            threading.Thread(target=self._collect, args=(process.stdout,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def logged(self, event: str, after: int = 0) -> list[dict[str, Any]]:
        """The log lines of that event so far."""
        return [e for e in self.events[after:] if e.get("event") == event]

    @property
    def events(self) -> list[dict[str, Any]]:
        """Every log line that is JSON."""
        return [json.loads(line) for line in list(self.lines) if line.startswith("{")]

    @property
    def complaints(self) -> list[str]:
        """Every line of standard error that is no JSON."""
        return [line for line in self.lines if not line.startswith("{")]

    def wait_for(self, event: str, count: int = 1, *, deadline: float = DEADLINE) -> Self:
        """Until that event has been logged so often. Fails when the process ends before."""

        def there() -> bool:
            return len(self.logged(event)) >= count or self._ended

        with self._news:
            assert self._news.wait_for(there, deadline), f"{self.name}: no {event}\n{self}"
        assert len(self.logged(event)) >= count, f"{self.name} ended before {event}\n{self}"
        return self

    def ready(self) -> Self:
        """Until it does its work: the tasks run, the sink consumes."""
        if self.name in ("run", "worker"):
            self.wait_for("worker_ready").wait_for("task_started")
        if self.name in ("run", "sink"):
            self.wait_for("sink_started")
        return self

    def kill(self) -> None:
        """Kill -9."""
        self.process.kill()
        self._end()

    def send(self, number: signal.Signals) -> None:
        """Send a signal and go on."""
        self.process.send_signal(number)

    def freeze(self) -> None:
        """SIGSTOP, and until it stands still. Fails when the process has ended."""
        self.send(signal.SIGSTOP)
        state = os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        assert state is not None
        assert state.si_code == os.CLD_STOPPED, f"{self.name} has ended\n{self}"

    def stop(self, number: signal.Signals = signal.SIGTERM) -> Result:
        """Send a signal and wait for the end."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.end()

    def end(self, deadline: float = DEADLINE) -> Result:
        """Wait until it ends by itself."""
        try:
            self.process.wait(deadline)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"{self.name} does not end\n{self}") from None
        self._end()
        return self.result

    @property
    def result(self) -> Result:
        """What it left; it must have ended."""
        code = self.process.returncode
        return Result(self.name, code, b"".join(self._out).decode(), "".join(self.lines))

    def _end(self) -> None:
        self.process.wait(DEADLINE)
        for thread in self._threads:
            thread.join(DEADLINE)
        for stream in (self.process.stderr, self.process.stdout):
            if stream is not None:
                stream.close()

    def _follow(self, stream: IO[bytes]) -> None:
        for line in stream:
            with self._news:
                self.lines.append(line.decode(errors="replace"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _collect(self, stream: IO[bytes]) -> None:
        for piece in stream:
            with self._news:
                self._out.append(piece)
                self._news.notify_all()

    def printed(self, lines: int, deadline: float = DEADLINE) -> list[str]:
        """The lines of standard output, once there are so many."""
        with self._news:
            assert self._news.wait_for(lambda: len(self._out) >= lines or self._ended, deadline)
        return b"".join(self._out).decode().splitlines()

    def __str__(self) -> str:
        return "".join(self.lines[-30:])


class Buddy:
    """`buddy` with a directory of its own, on one broker and one prefix.

    Settings (`grace_seconds=2`) go into the environment, which holds no other `BUDDY_*`.
    """

    def __init__(
        self, directory: Path, broker: str | None = None, prefix: str = "buddy", **settings: object
    ) -> None:
        self.directory = directory
        self.broker = broker or f"embedded:{directory / 'broker'}"
        self.names = Names(prefix)
        self.settings = settings
        self._services: list[Service] = []
        directory.mkdir(parents=True, exist_ok=True)

    def run(
        self,
        *arguments: str | Path,
        input: bytes | None = None,  # noqa: A002 -- as subprocess.run calls it
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
        deadline: float = 2 * DEADLINE,
    ) -> Result:
        """Run a command to its end. `before` runs in the child, before the program."""
        done = subprocess.run(
            self._command(arguments), cwd=self.directory, env=self._environment(env), input=input,
            stdin=subprocess.DEVNULL if input is None else None, capture_output=True, check=False,
            timeout=deadline, preexec_fn=before,
        )  # fmt: skip
        name = " ".join(str(a) for a in arguments)
        return Result(name, done.returncode, done.stdout.decode(), done.stderr.decode())

    def start(
        self,
        *arguments: str | Path,
        env: Mapping[str, str] | None = None,
        before: Callable[[], None] | None = None,
    ) -> Service:
        """Start a command that goes on; `stop_all` ends what is still running at the end."""
        process = subprocess.Popen(
            self._command(arguments), cwd=self.directory, env=self._environment(env),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            preexec_fn=before,  # noqa: PLW1509 -- it makes one system call, nothing else
        )  # fmt: skip
        service = Service(_command_in(arguments), process)
        self._services.append(service)
        return service

    def create_topics(self, partitions: int = 3) -> Self:
        """As somebody does by hand on a new cluster."""
        self.run("topics", "create", "--partitions", str(partitions)).succeeded()
        return self

    def elsewhere(self, name: str, **settings: object) -> Buddy:
        """Another machine on the same broker: its own directory for state and exports."""
        other = Buddy(
            self.directory / name, self.broker, self.names.prefix, **{**self.settings, **settings}
        )
        other._services = self._services
        return other

    def export(self, *options: str) -> Path:
        """The directory of a finished export."""
        answer = self.run("export", "--wait", "--json", *options).succeeded().json
        assert answer["status"] == "finished"
        return self.directory / "exports" / str(answer["directory"])

    def stop_all(self) -> None:
        """Kill what still runs."""
        for service in self._services:
            if service.process.poll() is None:
                service.kill()
            else:
                service._end()

    def _command(self, arguments: tuple[str | Path, ...]) -> list[str]:
        return [sys.executable, "-m", "worker.cli.main", *map(str, arguments)]

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        clean = {name: v for name, v in os.environ.items() if not name.startswith("BUDDY_")}
        ours = {
            "broker": self.broker,
            "prefix": self.names.prefix,
            "data": self.directory / "data",
            "exports": self.directory / "exports",
            "schedules": "[]",  # a night must not change what a test finds
            **self.settings,
        }
        return clean | {f"BUDDY_{k.upper()}": str(v) for k, v in ours.items()} | dict(more or {})


def _command_in(arguments: Sequence[str | Path]) -> str:
    """The command; options before it have values that look like one."""
    words = [str(a) for a in arguments]
    while words[0].startswith("-"):
        words = words[2:]
    return words[0]


def eventually(is_so: Callable[[], bool], what: str, deadline: float = DEADLINE) -> None:
    """Ask again and again: for what announces itself nowhere, as the end of a foreign process."""
    end = time.monotonic() + deadline
    while not is_so():
        assert time.monotonic() < end, f"never happened: {what}"
        time.sleep(0.02)


Another = Callable[..., Buddy]
