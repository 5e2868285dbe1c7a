"""Servers that the tests start: their jars, fetched once through Maven into `.cache`."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import re
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import pytest

from tests.paths import ROOT

CACHE = ROOT / ".cache"


class NotFetched(Exception):
    """The jars cannot be had here; the text says in one line why."""


class Server(Protocol):
    """What can be started and stopped."""

    def start(self) -> None:
        """Start it."""

    def stop(self) -> None:
        """Stop it, started or not."""


@contextmanager
def started_or_skipped(server: Server, unavailable: type[Exception], name: str) -> Iterator[None]:
    """For fixtures: the server is up inside, and stopped at the end.

    Where none can be had the test is skipped, or fails if `BUDDY_REQUIRE_KAFKA=1` (which is set
    where Java and Maven must be there).
    """
    problem = None
    try:
        server.start()
    except unavailable as error:
        problem = str(error)
    try:
        if problem is None:
            yield
        elif os.environ.get("BUDDY_REQUIRE_KAFKA") == "1":
            pytest.fail(f"{name} is required (BUDDY_REQUIRE_KAFKA=1): {problem}", pytrace=False)
        else:
            pytest.skip(f"no {name}: {problem}")
    finally:
        server.stop()


def version(pom: Path, of: str) -> str:
    """The version that a pom names in its property `<of>.version`."""
    found = re.search(rf"<{of}\.version>(.+?)</{of}\.version>", pom.read_text())
    assert found, f"{pom} names no {of}.version"
    return found[1]


def jars(pom: Path, name: str) -> Path:
    """The directory of the jars that a pom depends on, fetched when it is not there yet."""
    home = CACHE / name
    if any(home.glob("*.jar")):
        return home
    maven = shutil.which("mvn")
    if maven is None:
        raise NotFetched(f"no Maven (mvn) to fetch {name} with")
    with locked(name):
        if not any(home.glob("*.jar")):
            _fetch(maven, pom, home)
    return home


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Nobody else makes what has this name in the cache: tests run in several processes."""
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(maven: str, pom: Path, home: Path) -> None:
    name = home.name
    # Fetched aside and moved: an interrupted download is never taken for a whole one.
    aside = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=CACHE))
    try:
        subprocess.run(
            [maven, "-q", "-B", "-f", pom, "dependency:copy-dependencies",
             f"-DoutputDirectory={aside}"],
            check=True, capture_output=True, text=True, timeout=600,
        )  # fmt: skip
        shutil.rmtree(home, ignore_errors=True)
        aside.rename(home)
    except subprocess.CalledProcessError as error:
        lines = [line for line in (error.stdout + error.stderr).splitlines() if "ERROR" in line]
        raise NotFetched(f"Maven could not fetch {name}: {lines[:1]}") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NotFetched(f"Maven could not fetch {name}: {error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at, on 127.0.0.1."""
    # Below those that the system gives to outgoing connections: one of them could take the port
    # of a server that is about to start, or to start again.
    free: list[int] = []
    while len(free) < count:
        port = random.randrange(10_000, 32_768)
        with socket.socket() as trial, contextlib.suppress(OSError):
            trial.bind(("127.0.0.1", port))
            free += {port} - set(free)
    return free
