"""Sends records at a steady rate, in small batches: a process of its own beside the worker.

`python -m tests.bench.pacer BROKER PREFIX RATE SECONDS` prints `ready`, waits for a line, sends,
and prints what it did as JSON.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
import time

from tests.bench import mix
from tests.bench.running import opened
from worker.topics import Names

TICK_SECONDS = 0.01


async def pace(url: str, prefix: str, rate: float, seconds: float) -> dict[str, float]:
    """Send what is due every 10 ms. Behind time it sends more at once: the rate stays."""
    messages = mix.outgoing(Names(prefix), mix.mixed(int(rate * seconds)))
    total = min(len(messages), int(rate * seconds))
    async with opened(url) as broker:
        await broker.publish(messages[:1])  # connects
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        start = time.perf_counter()
        sent, slowest, batches = 1, 0.0, 0
        while sent < total:
            due = min(total, int((time.perf_counter() - start) * rate) + 1)
            if due > sent:
                before = time.perf_counter()
                await broker.publish(messages[sent:due])
                slowest = max(slowest, time.perf_counter() - before)
                sent, batches = due, batches + 1
            behind = (time.perf_counter() - start) % TICK_SECONDS
            await asyncio.sleep(TICK_SECONDS - behind)
        took = time.perf_counter() - start
    return {"sent": sent, "rate": sent / took, "batches": batches, "slowest": slowest}


if __name__ == "__main__":
    logging.basicConfig(level=logging.CRITICAL)  # aiokafka's
    _, _url, _prefix, _rate, _seconds = sys.argv
    print(json.dumps(asyncio.run(pace(_url, _prefix, float(_rate), float(_seconds)))))
