"""The API of a real `buddy run`, fuzzed from its own description by schemathesis."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from tests.acceptance.kit import Buddy
from tests.unit.rows_kit import match, user

CHECKS: Final = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)
_MOST_SECONDS: Final = 900


class Api:
    """Services with the API, some rows, and an export to ask for."""

    def __init__(self, directory: Path) -> None:
        self._buddy = Buddy(directory, http=True, http_port=0, grace_seconds=1)
        self._service = self._buddy.start("run")
        self.url = ""

    def __enter__(self) -> Self:
        self._service.ready().wait_for("http_started")
        (started,) = self._service.logged("http_started")
        self.url = f"http://127.0.0.1:{started['port']}"
        for entity, rows in (("users", map(user, range(9))), ("matches", [match(1, 1, 2)])):
            lines = b"\n".join(value for _, value in rows)
            self._buddy.run("send", "-", "--entity", entity, "--wait", input=lines).succeeded()
        self._buddy.export()
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self._buddy.stop_all()

    @property
    def faults(self) -> list[str]:
        """The requests that failed by a fault of the program, as the log has them."""
        return [f"{e['path']}: {e['error']}" for e in self._service.logged("http_failed")]


def fuzz(api: Api, seconds: float, seed: int, examples: int) -> str:
    """Fuzz for so long, at least once; what is wrong, empty if nothing is."""
    end = time.monotonic() + seconds
    while True:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "run", f"{api.url}/openapi.json"),
                *("--max-examples", str(examples), "--seed", str(seed)),
                *("--phases", "coverage,fuzzing", "--checks", CHECKS, "--warnings", "off"),
                # A stream never ends, and whoever waits for an export takes a minute.
                *("--exclude-path-regex", "/stream$", "--request-timeout", "90"),
                "--no-color",
            ],
            capture_output=True,
            text=True,
            check=False,
            timeout=_MOST_SECONDS,
        )
        if done.returncode != 0 or api.faults:
            return "\n".join(
                [f"seed {seed}", *api.faults, done.stdout[-8_000:], done.stderr[-500:]]
            )
        seed += 1
        if time.monotonic() >= end:
            return ""
