"""What a round needs: topics of its own, the bare copy loop beside it, a Kafka that is warm."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager

from aiokafka.admin import AIOKafkaAdminClient

from tests.acceptance.kit import Buddy
from tests.bench import mix
from tests.bench.figures import Cost
from tests.bench.running import PARTITIONS, RECORD_LIMIT, ended, opened, publish
from tests.bench.setting import Bench
from worker.brokers.contract import Broker
from worker.core.topics import Names, wanted
from worker.errors import BrokerUnavailable
from worker.stream import Partition, ProducerRecord, Topic

WARM_UP = 10
QUICK_WARM_UP = 4
"""Times the records: two million, two hundred thousand."""

_BARE_SECONDS = 300.0
_DAY_MS = 24 * 3600 * 1000
_TRIES = 6


def warm_up(bench: Bench, address: str) -> None:
    """Let the broker compile its code: a cold one halves the rate."""
    rounds = QUICK_WARM_UP if bench.quick else WARM_UP
    names = Names("bench-warm")
    bench.say(f"warming Kafka up with {rounds} times {bench.records:,} records")
    messages = list(mix.outgoing(names, mix.mixed(bench.records)))
    url = f"kafka://{address}"
    asyncio.run(prepare(url, names, (m for _ in range(rounds) for m in messages)))
    bare_copy(url, names, rounds * len(messages))
    asyncio.run(remove(address, names))


@contextmanager
def own_buddy(bench: Bench, kind: str, **settings: object) -> Iterator[Buddy]:
    """`buddy` with a directory and a prefix of its own; what it leaves is removed.

    `kind` is `kafka` or `embedded`.
    """
    url = f"kafka://{bench.kafka()}" if kind == "kafka" else None
    with (
        bench.folder() as folder,
        ended(Buddy(folder, url, bench.prefix(), **settings)) as buddy,
    ):
        yield buddy
    if kind == "kafka":
        asyncio.run(remove(bench.kafka(), buddy.names))


async def prepare(
    url: str, names: Names, messages: Iterable[ProducerRecord], partitions: int = PARTITIONS
) -> tuple[int, float]:
    """Topics of their own, and the records on the inputs: how many, and how many a second."""
    async with topics(url, names, partitions) as broker:
        return await publish(broker, messages)


@asynccontextmanager
async def topics(url: str, names: Names, partitions: int = PARTITIONS) -> AsyncIterator[Broker]:
    """A broker on which all topics of that prefix are, and the loop's output as well.

    Before the loop starts: a new topic refuses writes for a while, to be tried again.
    """
    async with opened(url) as broker:
        made = [*wanted(names, partitions, RECORD_LIMIT).values()]
        made.append(Topic(_output(names), partitions, retention_ms=_DAY_MS))
        await _create(broker, made)
        yield broker


async def _create(broker: Broker, made: Sequence[Topic]) -> None:
    """Until each partition has a leader: 1,500 of them take Kafka longer than one call may."""
    places = [Partition(topic.name, n) for topic in made for n in range(topic.partitions)]
    for left in reversed(range(_TRIES)):
        try:
            await broker.create(made)
            await broker.spans(places)
        except BrokerUnavailable:
            if not left:
                raise
        else:
            return


async def remove(address: str, names: Names) -> None:
    """Delete the topics of a round that is over: the next one is to find room."""
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        there = await admin.list_topics()
        await admin.delete_topics([t for t in (*names.every(), _output(names)) if t in there])
    finally:
        await admin.close()


def bare_copy(url: str, names: Names, total: int, partitions: int = PARTITIONS) -> Cost:
    """The loop in a process of its own, into a topic of its own."""
    numbers = [str(total), str(partitions)]
    command = ["-m", "tests.bench.bare", url, names.prefix, *numbers, _output(names)]
    limit = _BARE_SECONDS + total / 1_000
    done = subprocess.run(
        [sys.executable, *command], check=True, stdout=subprocess.PIPE, timeout=limit
    )
    found = json.loads(done.stdout)
    return Cost(total, found["seconds"], found["cpu"])


def _output(names: Names) -> str:
    return f"{names.prefix}-copy"
