"""A part of a measurement in a process of its own."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO


@contextmanager
def child(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """`python -m module`, once it has said that it is ready. Raises RuntimeError."""
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        if pipe_of(process.stdout).readline() != b"ready\n":
            raise RuntimeError(f"{module} did not start")
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            pipe_of(pipe).close()


def pipe_of(pipe: IO[bytes] | None) -> IO[bytes]:
    """The same: `child` has made both pipes."""
    assert pipe is not None
    return pipe
