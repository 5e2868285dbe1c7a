"""One worker on a real Kafka, exactly once, beside a bare copy loop on the same records."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tests.acceptance.kit import Buddy
from tests.bench import mix
from tests.bench.figures import Figure, middle
from tests.bench.running import (
    GRACE_SECONDS,
    PARTITIONS,
    Run,
    Times,
    create,
    ended,
    opened,
    publish,
    started,
    waits,
)
from tests.bench.setting import Bench
from worker.brokers.contract import Broker, Outgoing, Topic
from worker.topics import Names

SECTION = "path: kafka"
AIM = 60.0
"""Per cent of the bare loop."""

WARM_UP = 10
QUICK_WARM_UP = 4
"""Times the records: two million, two hundred thousand."""

_BARE_SECONDS = 300.0
_DAY_MS = 24 * 3600 * 1000


class Copy(NamedTuple):
    """What the bare loop reached."""

    rate: float
    cpu: float


def run(bench: Bench) -> list[Figure]:
    """Records a second, alternately worker and loop."""
    address = bench.kafka()
    workers, copies, published = [], [], []
    for number in range(3):
        bench.say(f"Kafka, round {number + 1} of 3")
        names = Names(f"bench-{number}")
        messages = mix.outgoing(names, mix.mixed(bench.records))
        published.append(asyncio.run(prepare(address, names, messages)))
        # Alternately, so that neither always finds the records fresh in memory.
        for copying in (True, False) if number % 2 else (False, True):
            if copying:
                copies.append(bare_copy(address, names, len(messages)))
            else:
                workers.append(_work(bench, address, names, len(messages)))
    rate = middle([times.to_last for times in workers])
    bench.rates["kafka"] = rate
    return _figures(workers, copies, published)


def _figures(
    workers: Sequence[Times], copies: Sequence[Copy], published: Sequence[float]
) -> list[Figure]:
    rate = middle([times.to_last for times in workers])
    most = middle([times.to_most for times in workers])
    waited = waits(workers)
    copy = middle([copy.rate for copy in copies])
    ratios = [100 * w.to_last / c.rate for w, c in zip(workers, copies, strict=True)]
    cpu = middle([times.cpu["worker"] for times in workers])
    return [
        Figure(
            section=SECTION,
            name="publish alone, batches of 2,000",
            value=middle(published),
            unit="records/s",
        ),
        Figure(
            section=SECTION,
            name="one worker, exactly once: to the last outcome",
            value=rate,
            unit="records/s",
            beside={"bare copy loop": copy},
            note=f"to 99 % of them {most:,.0f}; {waited}",
        ),
        Figure(
            section=SECTION,
            name="one worker: share of the bare loop, median of the rounds",
            value=middle(ratios),
            unit="%",
            aim=AIM,
            note=f"from {min(ratios):.0f} to {max(ratios):.0f} %",
        ),
        Figure(
            section=SECTION,
            name="one worker: CPU of its process",
            value=cpu,
            unit="s",
            at_most=True,
            beside={"bare copy loop": middle([copy.cpu for copy in copies])},
        ),
    ]


async def warm_up(bench: Bench, address: str) -> None:
    """Let the broker compile its code: a cold one halves the rate."""
    rounds = QUICK_WARM_UP if bench.quick else WARM_UP
    names = Names("bench-warm")
    messages = mix.outgoing(names, mix.mixed(bench.records))
    bench.say(f"warming Kafka up with {rounds * len(messages):,} records")
    async with opened(f"kafka://{address}") as broker:
        await _create(broker, names)
        for _ in range(rounds):
            await publish(broker, messages)
    await asyncio.to_thread(bare_copy, address, names, rounds * len(messages))


async def prepare(address: str, names: Names, messages: Sequence[Outgoing]) -> float:
    """Topics of their own, and the records on the inputs; how many a second were sent."""
    async with opened(f"kafka://{address}") as broker:
        await _create(broker, names)
        return await publish(broker, messages)


async def _create(broker: Broker, names: Names) -> None:
    # The loop's output as well: a new topic refuses writes for a while, to be tried again.
    await create(broker, names)
    await broker.create([Topic(_output(names), PARTITIONS, retention_ms=_DAY_MS)])


def _output(names: Names) -> str:
    return f"{names.prefix}-copy"


def bare_copy(address: str, names: Names, total: int) -> Copy:
    """The loop in a process of its own, into a topic of its own."""
    command = ["-m", "tests.bench.bare", address, names.prefix, str(total), _output(names)]
    done = subprocess.run(
        [sys.executable, *command], check=True, stdout=subprocess.PIPE, timeout=_BARE_SECONDS
    )
    found = json.loads(done.stdout)
    return Copy(total / found["seconds"], found["cpu"])


def _work(bench: Bench, address: str, names: Names, total: int) -> Times:
    with (
        bench.folder() as folder,
        ended(
            Buddy(folder, f"kafka://{address}", names.prefix, grace_seconds=GRACE_SECONDS)
        ) as buddy,
    ):
        return asyncio.run(_run(buddy, total))


async def _run(buddy: Buddy, total: int) -> Times:
    worker = buddy.start("worker")
    start = await started(worker)
    run = Run(buddy.names, [worker], total)
    async with opened(buddy.broker) as broker:
        span = await run.finish(broker)
    times = run.times(start, span)
    await asyncio.to_thread(lambda: worker.stop().succeeded())
    return times
