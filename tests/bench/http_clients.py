"""Clients of the API, for the bench: idle streams of events, and downloads at a rate of their own.

`python -m tests.bench.http_clients HOST PORT FILE STREAMS DOWNLOADS RATE` opens them and prints
`ready`. At the end of its input it prints as JSON how many streams are still open, and the bytes
that came a second. RATE is in bytes a second for each download; 0 means as fast as it goes.

The process yields to all others, since real clients are other machines.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time
from asyncio import StreamReader, StreamWriter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from tests.bench.child import child, pipe_of

_CHUNK = 64 * 1024
_OPENING = 32
"""Clients that come at one time: the API refuses more than 256 requests in progress."""
_STREAMS = ("/v1/exports/stream", "/v1/rejections/stream?code=internal_error")
_LOWEST_PRIORITY = 19


class Crowd(NamedTuple):
    """How many clients of each kind, and the rate of a download."""

    streams: int
    downloads: int
    rate: float


class Clients:
    """The clients of one process."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._turns = asyncio.Semaphore(_OPENING)
        self.open = 0
        self.received = 0

    async def stream(self, path: str, began: asyncio.Event) -> None:
        """Open a stream, and read what comes until it ends."""
        async with self._turns:
            reader, writer = await self._get(path)
            await reader.readuntil(b"\n\n")  # the first comment or id
        self.open += 1
        began.set()
        try:
            while await reader.read(_CHUNK):
                pass
        finally:
            self.open -= 1
            writer.close()

    async def download(self, path: str, rate: float, began: asyncio.Event) -> None:
        """Download a file again and again."""
        while True:
            reader, writer = await self._get(path)
            began.set()
            start, size = time.monotonic(), 0
            while chunk := await reader.read(_CHUNK):
                size += len(chunk)
                self.received += len(chunk)
                ahead = size / rate - (time.monotonic() - start) if rate else 0
                if ahead > 0:
                    await asyncio.sleep(ahead)
            writer.close()

    async def _get(self, path: str) -> tuple[StreamReader, StreamWriter]:
        """The connection, once the head of the answer is read. Raises RuntimeError."""
        reader, writer = await asyncio.open_connection(self._host, self._port, limit=_CHUNK)
        head = f"GET {path} HTTP/1.1\r\nHost: {self._host}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode())
        answer = await reader.readuntil(b"\r\n\r\n")
        if b" 200 " not in answer.split(b"\r\n", 1)[0]:
            raise RuntimeError(f"{path}: {answer[:100]!r}")
        return reader, writer


async def crowd(host: str, port: int, file: str, wanted: Crowd) -> dict[str, float]:
    """Open all, and hold them until the end of the input."""
    clients = Clients(host, port)
    running: list[asyncio.Task[None]] = []
    began: list[asyncio.Event] = []
    for number in range(wanted.streams):
        began.append(asyncio.Event())
        path = _STREAMS[number % len(_STREAMS)]
        running.append(asyncio.create_task(clients.stream(path, began[-1])))
    await _all(running, began)
    for _ in range(wanted.downloads):
        began.append(asyncio.Event())
        running.append(asyncio.create_task(clients.download(file, wanted.rate, began[-1])))
    await _all(running, began)
    print("ready", flush=True)
    start, before = time.monotonic(), clients.received
    await asyncio.to_thread(sys.stdin.read)
    for task in running:
        if task.done():
            task.result()
    took = time.monotonic() - start
    found = {"streams": clients.open, "rate": (clients.received - before) / took}
    for task in running:
        task.cancel()
    return found


async def _all(running: Sequence[asyncio.Task[None]], began: Sequence[asyncio.Event]) -> None:
    """Wait until all have begun, or one has failed."""

    async def wait() -> None:
        for one in began:
            await one.wait()

    everything = asyncio.create_task(wait())
    await asyncio.wait({everything, *running}, return_when=asyncio.FIRST_COMPLETED)
    if not everything.done():
        everything.cancel()
        await asyncio.gather(*running)


class Visitors:
    """Clients that are there, in a process of their own."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def leave(self) -> dict[str, float]:
        """Close them; what `crowd` returned. Raises RuntimeError if they failed."""
        pipe_of(self._process.stdin).close()
        line = pipe_of(self._process.stdout).readline()
        if not line:
            raise RuntimeError("the clients have failed")
        found: dict[str, float] = json.loads(line)
        return found


@contextmanager
def visiting(address: tuple[str, int], file: str, wanted: Crowd) -> Iterator[Visitors]:
    """The clients of a server, once all are served. Raises RuntimeError."""
    numbers = [str(number) for number in wanted]
    with child("tests.bench.http_clients", address[0], str(address[1]), file, *numbers) as process:
        yield Visitors(process)


if __name__ == "__main__":
    os.nice(_LOWEST_PRIORITY)
    _, _host, _port, _file, _streams, _downloads, _rate = sys.argv
    _wanted = Crowd(int(_streams), int(_downloads), float(_rate))
    print(json.dumps(asyncio.run(crowd(_host, int(_port), _file, _wanted))))
