"""Sends records at a steady rate, in small batches: a process of its own beside the worker.

`python -m tests.bench.pacer BROKER PREFIX RATE SECONDS` prints `ready`, waits for a line, sends,
and prints what it did as JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice

from tests.bench import mix
from tests.bench.child import child, pipe_of
from tests.bench.figures import settled_memory
from tests.bench.running import opened
from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.stream import ProducerRecord

TICK_SECONDS = 0.01


async def pace(url: str, prefix: str, rate: float, seconds: float) -> dict[str, float]:
    """Send what is due every 10 ms. Behind time it sends more at once: the rate stays."""
    wanted = int(rate * seconds)
    messages = list(islice(mix.outgoing(Names(prefix), mix.mixed(wanted)), wanted))
    async with opened(url) as broker:
        await broker.publish(messages[:1])  # connects
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        with settled_memory():
            return await _pace(broker, messages, rate)


async def _pace(broker: Broker, messages: list[ProducerRecord], rate: float) -> dict[str, float]:
    start = time.perf_counter()
    sent, slowest, batches = 1, 0.0, 0
    while sent < len(messages):
        due = min(len(messages), int((time.perf_counter() - start) * rate) + 1)
        if due > sent:
            before = time.perf_counter()
            await broker.publish(messages[sent:due])
            slowest = max(slowest, time.perf_counter() - before)
            sent, batches = due, batches + 1
        behind = (time.perf_counter() - start) % TICK_SECONDS
        await asyncio.sleep(TICK_SECONDS - behind)
    took = time.perf_counter() - start
    return {"sent": sent, "rate": sent / took, "batches": batches, "slowest": slowest}


class Sender:
    """A sender that is ready. It sends once."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def send(self) -> dict[str, float]:
        """Send everything; what `pace` returned. Raises RuntimeError if it failed."""
        pipe_of(self._process.stdin).write(b"go\n")
        pipe_of(self._process.stdin).flush()
        line = pipe_of(self._process.stdout).readline()
        if not line:
            raise RuntimeError("the sender has failed")
        found: dict[str, float] = json.loads(line)
        return found


@contextmanager
def pacing(url: str, names: Names, rate: float, seconds: float) -> Iterator[Sender]:
    """A sender as a process, once it has made its records. Raises RuntimeError."""
    with child("tests.bench.pacer", url, names.prefix, str(rate), str(seconds)) as process:
        yield Sender(process)


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL)  # aiokafka's
    _, _url, _prefix, _rate, _seconds = sys.argv
    print(json.dumps(asyncio.run(pace(_url, _prefix, float(_rate), float(_seconds)))))
