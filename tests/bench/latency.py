"""From append to visible outcome, at a steady rate.

A record's append time stands in the input topic, in milliseconds. Its outcome is visible when an
observer, reading the accepted topics as everybody may (read_committed), has it in hand. One clock
gives both times: everything runs on one machine.

The demo sends references up to 1,000 records late, and nobody can accept a record before the user
it names has been sent. So the time runs from the append of the record or, if that came later, of
what it refers to (of whatever that refers to in turn) or an earlier record of its key. Counted
from its own append alone, the figure would tell how late references are sent: it is in the note.
"""

from __future__ import annotations

import asyncio
import time
from typing import NamedTuple

from schemas import ENTITIES
from tests.acceptance.kit import Buddy, Service
from tests.bench.copying import own_buddy
from tests.bench.figures import Cost, Figure, quantile
from tests.bench.machine import cpu_seconds
from tests.bench.pacer import pacing
from tests.bench.running import PARTITIONS, create, opened, started
from tests.bench.setting import Bench
from tests.bench.waiting import Ready, messages
from worker.brokers.contract import Broker
from worker.core.outbox import SOURCE_HEADER, WARNINGS_HEADER
from worker.core.topics import Names
from worker.core.violations import Code
from worker.stream import Message, Partition

_QUIET_SECONDS = 2.0


class Seen(NamedTuple):
    """Milliseconds in order: of all accepted records; of users; of all from their own append."""

    all: list[float]
    users: list[float]
    own: list[float]


class Aims(NamedTuple):
    """Milliseconds at most, of half of the outcomes and of 99 % of them."""

    p50: float | None
    p99: float


def measure(bench: Bench, kind: str, rate: float, title: str, aims: Aims) -> list[Figure]:
    """p50 and p99 of a worker at that rate, and what CPU it takes then."""
    bench.say(f"latency: {kind}, {rate:,.0f} records/s")
    seconds, warm = bench.seconds / 5, bench.seconds / 2
    with own_buddy(bench, kind) as buddy:
        seen, paced, cost = asyncio.run(_run(buddy, rate, warm, seconds))
    section = f"latency: {kind}"
    users, own = (
        ", ".join(f"p{q} {quantile(some, q / 100):,.0f}" for q in (50, 99))
        for some in (seen.users, seen.own)
    )
    note = (
        f"at {paced['rate']:,.0f} records/s, {cost.micros:,.0f} µs CPU a record; "
        f"{len(seen.all):,} rows; users alone, whose addresses are asked for: {users}"
    )
    return [
        Figure(
            section=section,
            name=f"{title}: p50",
            value=quantile(seen.all, 0.5),
            unit="ms",
            aim=aims.p50,
            at_most=True,
            note=note,
        ),
        Figure(
            section=section,
            name=f"{title}: p99",
            value=quantile(seen.all, 0.99),
            unit="ms",
            aim=aims.p99,
            at_most=True,
            note=f"largest {seen.all[-1]:,.0f}; from its own append alone: {own}; "
            f"slowest publish {paced['slowest'] * 1000:,.0f} ms",
        ),
    ]


async def _run(
    buddy: Buddy, rate: float, warm: float, seconds: float
) -> tuple[Seen, dict[str, float], Cost]:
    async with opened(buddy.broker) as broker:
        await create(broker, buddy.names)
    worker = buddy.start("worker")
    await started(worker)
    return await observed(buddy, worker, rate, warm, seconds)


async def observed(
    buddy: Buddy, worker: Service, rate: float, warm: float, seconds: float
) -> tuple[Seen, dict[str, float], Cost]:
    """What a worker that runs makes of a steady rate, what was sent, and what it took."""
    names, pid = buddy.names, worker.process.pid
    async with opened(buddy.broker) as broker:
        with pacing(buddy.broker, names, rate, warm + seconds) as pacer:

            async def send() -> tuple[dict[str, float], Cost]:
                before, begin = cpu_seconds(pid), time.monotonic()
                done = await asyncio.to_thread(pacer.send)
                used, took = cpu_seconds(pid) - before, time.monotonic() - begin
                return done, Cost(int(done["sent"]), took, used)

            paced = asyncio.create_task(send())
            arrived = await _observe(broker, names, paced)
            done, cost = await paced
            appended = await _appended(broker, names)
    return _latencies(names, arrived, appended, warm), done, cost


async def _observe(
    broker: Broker, names: Names, paced: asyncio.Task[tuple[dict[str, float], Cost]]
) -> list[tuple[float, list[Message]]]:
    """Accepted messages and when they were in hand, until everything is sent and it is quiet."""
    reader = broker.reader()
    topics = [names.accepted(entity) for entity in ENTITIES]
    reader.assign({Partition(topic, n): 0 for topic in topics for n in range(PARTITIONS)})
    arrived: list[tuple[float, list[Message]]] = []
    try:
        while True:
            done = paced.done()
            found = await reader.read(5_000, _QUIET_SECONDS if done else 0.1)
            if found:
                arrived.append((time.time() * 1000, found))
            elif done:
                return arrived
    finally:
        await reader.close()


async def _appended(broker: Broker, names: Names) -> dict[bytes, int]:
    """When each input record was appended, by its coordinate."""
    topics = [names.input(entity) for entity in ENTITIES]
    places = [Partition(t, n) for t in topics for n in range(PARTITIONS)]
    return {
        f"{message.topic}/{message.partition}/{message.offset}".encode(): message.timestamp
        async for message in messages(broker, places)
    }


def _latencies(
    names: Names,
    arrived: list[tuple[float, list[Message]]],
    appended: dict[bytes, int],
    warm: float,
) -> Seen:
    # The first record is sent to connect, some time before the others.
    begin = sorted(appended.values())[1] + warm * 1000
    seen = Seen([], [], [])
    ready = Ready(unknown=0.0)
    # What is referred to comes first; each entity's messages stay in their order.
    order = {names.accepted(entity): place for place, entity in enumerate(ENTITIES)}
    rows = [(moment, message) for moment, some in arrived for message in some]
    for moment, message in sorted(rows, key=lambda row: order[row[1].topic]):
        entity = names.entity_of(message.topic)
        sent = appended[dict(message.headers)[SOURCE_HEADER]]
        possible = max(sent, ready.note(entity, message, sent).since)
        if sent < begin or _waited_out(message):
            continue
        seen.all.append(moment - possible)
        seen.own.append(moment - sent)
        if entity == "users":
            seen.users.append(moment - possible)
    for each in seen:
        each.sort()
    return seen


def _waited_out(message: Message) -> bool:
    """Whether its match never came: then the verdict waits for grace and frontier, as it must."""
    return Code.ORPHANED_MATCH_ID.value.encode() in dict(message.headers).get(WARNINGS_HEADER, b"")
