"""Records by HTTP into both brokers, through one process of the API; beside `publish` alone."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from itertools import islice

import httpx

from tests.acceptance.kit import Buddy, Service
from tests.bench import mix
from tests.bench.figures import Cost, Figure, Skipped, middle
from tests.bench.machine import cpu_seconds
from tests.bench.running import create, ended, opened
from tests.bench.setting import Bench
from worker.core.topics import Names
from worker.stream import ProducerRecord

SECTION = "http"
AIM = 10_000
"""Records a second at `BATCH` a request: the issue's."""
BATCH = 1_000
_CLIENTS = 4
_HEADERS = {"content-type": "application/x-ndjson"}


def run(bench: Bench) -> list[Figure]:
    """Records a second and CPU a record, at 1,000 records a request."""
    figures = []
    for kind in ("embedded", "kafka"):
        rounds = []
        try:
            for number in range(bench.rounds):
                bench.say(f"{kind}, HTTP, round {number + 1} of {bench.rounds}")
                rounds.append(_round(bench, kind))
        except Skipped as skipped:
            bench.say(str(skipped))
            continue
        figures += _figures(kind, rounds)
    return figures


def _round(bench: Bench, kind: str) -> tuple[Cost, Cost]:
    """Through the API, and with `publish` alone."""
    names = Names(bench.prefix())
    messages = list(mix.outgoing(names, mix.users(bench.records)))
    with bench.folder() as folder:
        broker = None if kind == "embedded" else f"kafka://{bench.kafka()}"
        with ended(Buddy(folder, broker, names.prefix, http_port=0)) as buddy:
            asyncio.run(_create(buddy))
            service = buddy.start("serve").wait_for("http_started")
            (started,) = service.logged("http_started")
            bodies = list(_bodies([message.value or b"" for message in messages]))
            through = asyncio.run(_send(f"http://127.0.0.1:{started['port']}", bodies, service))
            alone = asyncio.run(_publish(buddy, messages))
    return through, alone


async def _create(buddy: Buddy) -> None:
    async with opened(buddy.broker) as broker:
        await create(broker, buddy.names)


def _bodies(values: Sequence[bytes]) -> Iterator[bytes]:
    rest = iter(values)
    while batch := list(islice(rest, BATCH)):
        yield b"\n".join(batch)


async def _send(address: str, bodies: Sequence[bytes], service: Service) -> Cost:
    """Send all bodies over some connections, each after the answer to the one before."""
    rest = iter(bodies)
    sent = 0

    async def one(client: httpx.AsyncClient) -> None:
        nonlocal sent
        for body in rest:
            answer = await client.post("/v1/records/users", content=body, headers=_HEADERS)
            sent += answer.json()["sent"]

    async with _client(address) as client:
        await client.post("/v1/records/users", content=bodies[0], headers=_HEADERS)  # connects
        before, start = cpu_seconds(service.process.pid), time.perf_counter()
        await asyncio.gather(*(one(client) for _ in range(_CLIENTS)))
        took = time.perf_counter() - start
    return Cost(sent, took, cpu_seconds(service.process.pid) - before)


@asynccontextmanager
async def _client(address: str) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=address, timeout=60) as client:
        yield client


async def _publish(buddy: Buddy, messages: Sequence[ProducerRecord]) -> Cost:
    """Send the same messages in the same batches, one after the other."""
    async with opened(buddy.broker) as broker:
        await broker.publish(messages[:BATCH])
        before, start = time.process_time(), time.perf_counter()
        for first in range(0, len(messages), BATCH):
            await broker.publish(messages[first : first + BATCH])
        took = time.perf_counter() - start
        return Cost(len(messages), took, time.process_time() - before)


def _figures(kind: str, rounds: list[tuple[Cost, Cost]]) -> list[Figure]:
    through, alone = [one for one, _ in rounds], [other for _, other in rounds]
    title = f"{kind}: {BATCH:,} users a request, {_CLIENTS} clients"
    return [
        Figure(
            section=SECTION,
            name=title,
            value=middle([cost.rate for cost in through]),
            unit="records/s",
            aim=AIM,
            beside={"publish alone": middle([cost.rate for cost in alone])},
        ),
        Figure(
            section=SECTION,
            name=f"{title}: CPU a record",
            value=middle([cost.micros for cost in through]),
            unit="µs",
            beside={"publish alone": middle([cost.micros for cost in alone])},
        ),
    ]
