"""What more workers and more partitions cost: CPU a record, and CPU of workers that are idle.

The backlog comes in one transaction, once the workers have shared the tasks and have been idle for
a while: neither their start nor the hand-over of tasks counts, and what they use anyway is taken
off. It is sent as clients send a stream, in many small batches: in one large batch a partition,
all users of a partition would be appended at one moment, and much before what it refers to.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from aiokafka import AIOKafkaProducer

from tests.acceptance.kit import Buddy, Service, eventually
from tests.bench import mix
from tests.bench.copying import bare_copy, own_buddy, topics
from tests.bench.figures import Cost, Figure, middle
from tests.bench.machine import cpu_seconds
from tests.bench.running import GRACE_SECONDS, Run, Times
from tests.bench.setting import Bench
from worker.stream import ProducerRecord

RECORDS = 60_000
"""At least: 61,555 of the demo's."""

_TIMES_AIM = 1.3
_SETTLE_SECONDS = 180.0
_LINGER_MS = 2
_IDLE_SECONDS = 5.0
"""At least: the CPU of a process is counted in hundredths of a second."""


class Shape(NamedTuple):
    """So many workers on so many partitions; the most of a core that they may take when idle."""

    workers: int
    partitions: int
    idle_aim: float | None = None

    def __str__(self) -> str:
        of = "worker" if self.workers == 1 else "workers"
        return f"{self.workers} {of}, {self.partitions} partitions"


class Measured(NamedTuple):
    """What all workers took, without their idle cost and with it, and the bare loop.

    `idle` is that cost in per cent of a core.
    """

    cost: Cost
    gross: Cost
    idle: float
    loop: Cost


_WORKERS = (Shape(1, 12), Shape(2, 12), Shape(4, 12))
_PARTITIONS = (Shape(1, 4, 1.0), Shape(1, 12, 1.0), Shape(1, 48, 2.0))


def run_workers(bench: Bench) -> list[Figure]:
    """1, 2 and 4 workers on 12 partitions."""
    return _run(bench, "workers", _WORKERS)


def run_partitions(bench: Bench) -> list[Figure]:
    """4, 12 and 48 partitions on one worker."""
    return _run(bench, "partitions", _PARTITIONS)


def _run(bench: Bench, section: str, shapes: Sequence[Shape]) -> list[Figure]:
    found: dict[Shape, list[Measured]] = {shape: [] for shape in shapes}
    for number in range(bench.rounds):
        for shape in shapes:
            bench.say(f"{section}, round {number + 1} of {bench.rounds}: {shape}")
            found[shape].append(_measure(bench, shape))
    return [f for shape in shapes for f in figures(section, shape, found[shape], found[shapes[0]])]


def figures(
    section: str, shape: Shape, rounds: Sequence[Measured], first: Sequence[Measured]
) -> list[Figure]:
    """Of one shape, compared with the first one round by round."""
    times = [own.cost.micros / base.cost.micros for own, base in zip(rounds, first, strict=True)]
    found = [
        Figure(
            section=section,
            name=f"{shape}: CPU of all a record, idle cost off",
            value=middle([each.cost.micros for each in rounds]),
            unit="µs",
            beside={"bare copy loop": middle([each.loop.micros for each in rounds])},
            note=f"with it {middle([each.gross.micros for each in rounds]):,.0f}",
        ),
        Figure(
            section=section,
            name=f"{shape}: records a second",
            value=middle([each.cost.rate for each in rounds]),
            unit="records/s",
            beside={"bare copy loop": middle([each.loop.rate for each in rounds])},
        ),
        Figure(
            section=section,
            name=f"{shape}: idle",
            value=middle([each.idle for each in rounds]),
            unit="% of a core",
            aim=shape.idle_aim,
            at_most=True,
        ),
    ]
    if rounds is not first:
        found.append(
            Figure(
                section=section,
                name=f"{shape}: CPU a record, times that of the first",
                value=middle(times),
                unit="×",
                aim=_TIMES_AIM,
                at_most=True,
            )
        )
    return found


def _measure(bench: Bench, shape: Shape) -> Measured:
    with own_buddy(bench, "kafka", grace_seconds=GRACE_SECONDS) as buddy:
        records = mix.mixed(min(RECORDS, bench.records))
        messages = list(mix.outgoing(buddy.names, records))
        times, idle = asyncio.run(_judge(bench, buddy, shape, messages))
        loop = bare_copy(buddy.broker, buddy.names, len(messages), shape.partitions)
        cost = times.cost.without(idle, times.watched)
        return Measured(cost, times.cost, 100 * idle, loop)


async def _judge(
    bench: Bench, buddy: Buddy, shape: Shape, messages: list[ProducerRecord]
) -> tuple[Times, float]:
    async with topics(buddy.broker, buddy.names, shape.partitions) as broker:
        workers = [buddy.elsewhere(f"w{n}").start("worker") for n in range(shape.workers)]
        shared = f"{shape.partitions} tasks shared by {shape.workers} workers"
        await asyncio.to_thread(
            eventually, lambda: are_shared(map(tasks, workers), shape), shared, _SETTLE_SECONDS
        )
        idle = await _idle(workers, max(_IDLE_SECONDS, bench.seconds / 2))
        run = Run(buddy.names, workers, len(messages), shape.partitions)
        start = await _send(bench.kafka(), messages)
        return run.times(start, await run.finish(broker)), idle


async def _send(address: str, messages: Sequence[ProducerRecord]) -> float:
    """Send them in their order: services that run see all or nothing; when that was."""
    producer = AIOKafkaProducer(
        bootstrap_servers=address, transactional_id="bench-sender", linger_ms=_LINGER_MS
    )
    await producer.start()
    try:
        async with producer.transaction():
            for message in messages:
                # aiokafka sends nothing that has neither key nor value: no value is as malformed.
                value = b"" if message.key is None and message.value is None else message.value
                await producer.send(message.topic, value, message.key)
        return time.time()
    finally:
        await producer.stop()


async def _idle(workers: Sequence[Service], seconds: float) -> float:
    """CPU seconds a second of all of them, over a time in which nothing comes."""
    start, before = time.monotonic(), _used(workers)
    await asyncio.sleep(seconds)
    return (_used(workers) - before) / (time.monotonic() - start)


def _used(workers: Sequence[Service]) -> float:
    return sum(cpu_seconds(worker.process.pid) for worker in workers)


def tasks(worker: Service) -> set[int]:
    """The tasks that it has now, as its log tells."""
    found: set[int] = set()
    for event in worker.events:
        if event.get("event") == "task_started":
            found.add(event["task"])
        elif event.get("event") == "task_dropped":
            found.discard(event["task"])
    return found


def are_shared(owned: Iterable[set[int]], shape: Shape) -> bool:
    """Whether every task is some worker's, and none has two more than another."""
    sizes = [len(each) for each in owned]
    return sum(sizes) == shape.partitions and max(sizes) - min(sizes) <= 1
