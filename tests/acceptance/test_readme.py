"""The README's commands, run as they stand there, in their order.

Blocks marked `sh` are run in a directory of their own; what follows `# exit code` is the exit code
that the README promises (else 0). Lines of make and docker are others' business.
"""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.acceptance.kit import eventually
from tests.paths import ROOT

README = ROOT / "README.md"
BUDDY = ".venv/bin/buddy"
DEADLINE = 60.0

BLOCK = re.compile(r"^```sh\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROMISED = re.compile(r"# exit code (\d+)")

pytestmark = pytest.mark.acceptance


def commands() -> Iterator[str]:
    """Each command of the blocks, with what is fed to it (`<<'END'` … `END`)."""
    for block in BLOCK.findall(README.read_text("utf-8")):
        lines = iter(block.splitlines())
        for line in lines:
            command = line
            while command.endswith("\\"):
                command = command[:-1] + next(lines)
            if here := re.search(r"<<'(\w+)'", command):
                end = here[1]
                for fed in lines:
                    command += f"\n{fed}"
                    if fed == end:
                        break
            if command.strip():
                yield command


class Shell:
    """What keeps between two commands of the README: variables, and the service that runs."""

    def __init__(self, directory: Path) -> None:
        clean = {name: text for name, text in os.environ.items() if not name.startswith("BUDDY_")}
        self.environment = clean
        self._directory = directory
        self._service: subprocess.Popen[bytes] | None = None

    def do(self, command: str) -> None:
        """Run one command and look at its exit code."""
        promised = int(found[1]) if (found := PROMISED.search(command)) else 0
        if command.startswith("export "):
            name, _, value = command.removeprefix("export ").partition("=")
            self.environment[name] = value
        elif command.rstrip().endswith("&"):
            self._start(command.rstrip().removesuffix("&"))
        elif command == "kill %1":
            assert self.stop() == promised, command
        else:
            done = self._run(command)
            told = f"{command}\n{done.stdout}{done.stderr}"
            assert done.returncode == promised, told
            assert "Traceback" not in told, told

    def stop(self) -> int | None:
        """End the service that runs, if one does; its exit code."""
        service, self._service = self._service, None
        if service is None:
            return None
        service.send_signal(signal.SIGTERM)
        try:
            return service.wait(DEADLINE)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()
            raise

    def _run(self, command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-c", self._here(command)],
            cwd=self._directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=DEADLINE,
        )

    def _start(self, command: str) -> None:
        """Start a service, and wait until its log says that it works."""
        found = re.search(r"2> (\S+)", command)
        assert found, f"where does the log go? {command}"
        log = self._directory / found[1]
        self._service = subprocess.Popen(
            ["sh", "-c", f"exec {self._here(command)}"],
            cwd=self._directory,
            env=self.environment,
            stdin=subprocess.DEVNULL,
        )
        service = self._service

        def works() -> bool:
            told = log.read_text("utf-8") if log.exists() else ""
            assert service.poll() is None, told
            return {"task_started", "sink_started"} <= set(re.findall(r"\w+", told))

        eventually(works, command)

    def _here(self, command: str) -> str:
        return command.replace(BUDDY, f"{shlex.quote(sys.executable)} -m worker.cli.main")


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(tmp_path)
    yield shell
    shell.stop()


def test_the_commands_of_the_readme_do_what_it_says(shell: Shell, tmp_path: Path) -> None:
    done = []
    for command in commands():
        if not command.startswith(("make ", "docker ")):
            shell.do(command)
            done.append(command)
    assert sum(BUDDY in command for command in done) >= 10
    assert shell.stop() is None, "the README leaves a service running"
    exports = list((tmp_path / "buddy-exports").glob("2*"))
    assert all((export / "manifest.json").is_file() for export in exports)
    assert len(exports) == sum(f"{BUDDY} export " in command for command in done)
