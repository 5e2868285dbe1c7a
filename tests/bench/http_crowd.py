"""What clients of the API cost the worker: its latency without them, and with a crowd of them.

`buddy run` serves the API from its second process. Rounds without clients, with downloads at the
rate of a network, and with downloads as fast as one machine can take them follow each other, each
with services of its own.
"""

from __future__ import annotations

import asyncio
import time
from random import Random

from tests.bench.copying import own_buddy
from tests.bench.figures import Figure, middle, quantile
from tests.bench.http_clients import Crowd, visiting
from tests.bench.latency import Seen, observed
from tests.bench.machine import children, cpu_seconds
from tests.bench.running import create, opened, started
from tests.bench.setting import Bench
from tests.unit.place_kit import FIRST, never, staged
from worker.exports.places.directory import DirectoryPlace

SECTION = "crowd"
RATE = 1_000.0
_STREAMS, _DOWNLOADS = 500, 50
_NETWORK = 2e6
"""Bytes a second for each download: 50 of them nearly fill a network of 1 Gbit/s."""
_CROWDS = {
    "no clients": None,
    "downloads at 2 MB/s each": Crowd(_STREAMS, _DOWNLOADS, _NETWORK),
    "downloads at full speed": Crowd(_STREAMS, _DOWNLOADS, 0.0),
}
_MOST_ROUNDS = 2
_FILE = "large.bin"
_FILE_BYTES = 64 * 1024 * 1024
_AIM = 110.0
"""Per cent of the latency without clients: the issue's."""


def run(bench: Bench) -> list[Figure]:
    """p50 and p99 of outcomes at 1,000 records/s, with clients and without."""
    found: dict[str, list[Seen]] = {title: [] for title in _CROWDS}
    notes = dict.fromkeys(_CROWDS, "")
    rounds = min(_MOST_ROUNDS, bench.rounds)
    for number in range(rounds):
        for title, crowd in _CROWDS.items():
            bench.say(f"{title}, round {number + 1} of {rounds}")
            seen, notes[title] = _round(bench, crowd)
            found[title].append(seen)
    figures = []
    for title, crowd in _CROWDS.items():
        for quantity, share in (("p50", 0.5), ("p99", 0.99)):
            alone, ours = (
                middle([quantile(seen.all, share) for seen in found[one]])
                for one in ("no clients", title)
            )
            figures.append(
                Figure(
                    section=SECTION,
                    name=f"{title}: {quantity}",
                    value=ours,
                    unit="ms",
                    aim=None if crowd is None else alone * _AIM / 100,
                    at_most=True,
                    beside={} if crowd is None else {"no clients": alone},
                    note=notes[title],
                )
            )
    return figures


def _round(bench: Bench, crowd: Crowd | None) -> tuple[Seen, str]:
    """The latency of new services, and what was done meanwhile."""
    warm, seconds = bench.seconds / 10, bench.seconds / 5
    with own_buddy(bench, "embedded", http=True, http_port=0) as buddy:
        place = DirectoryPlace(buddy.directory / "exports")
        more = {_FILE: Random(1).randbytes(_FILE_BYTES)}
        place.publish(staged(place, FIRST, more=more), never)

        async def main() -> tuple[Seen, str]:
            async with opened(buddy.broker) as broker:
                await create(broker, buddy.names)
            service = buddy.start("run")
            await started(service)
            await asyncio.to_thread(service.wait_for, "http_started")
            (entry,) = service.logged("http_started")
            (api,) = children(service.process.pid)
            if crowd is None:
                seen, paced, _ = await observed(buddy, service, RATE, warm, seconds)
                return seen, f"at {paced['rate']:,.0f} records/s"
            file = f"/v1/exports/{FIRST}/files/{_FILE}"
            with visiting((entry["host"], entry["port"]), file, crowd) as clients:
                before, begin = cpu_seconds(api), time.monotonic()
                seen, paced, _ = await observed(buddy, service, RATE, warm, seconds)
                used = (cpu_seconds(api) - before) / (time.monotonic() - begin)
                left = await asyncio.to_thread(clients.leave)
            if left["streams"] < crowd.streams:
                raise RuntimeError("streams of events have ended")
            return seen, (
                f"at {paced['rate']:,.0f} records/s; {_STREAMS} idle streams, {_DOWNLOADS}"
                f" downloads with {left['rate'] / 1e6:,.0f} MB/s together; the API uses"
                f" {100 * used:.0f} % of a core"
            )

        return asyncio.run(main())
