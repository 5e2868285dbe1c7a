"""From append to visible outcome, at a steady rate and at half of the highest.

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
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import IO, NamedTuple

from schemas import ENTITIES
from tests.acceptance.kit import Buddy
from tests.bench import embedded_path, kafka_path
from tests.bench.figures import Figure, quantile
from tests.bench.running import PARTITIONS, create, ended, opened, started
from tests.bench.setting import Bench
from worker.brokers.contract import Broker, Message, Partition
from worker.core.decode import Decoded, decoders
from worker.core.keys import id_bytes
from worker.core.outbox import SOURCE_HEADER, WARNINGS_HEADER
from worker.core.violations import Code
from worker.engine.follower import INDEXED
from worker.topics import Names

AIM = 250.0
"""Milliseconds, of 99 % of the outcomes."""

SECONDS = 12.0
QUICK_SECONDS = 4.0
WARM_SECONDS = 30.0
QUICK_WARM_SECONDS = 3.0
"""What was appended before then does not count: a Java that has just begun with transactions spends
half of its time on compiling them, and a broker that people use has been running for weeks."""
STEADY = 1_000.0
"""Records a second of the other measurement: far more than a programme sends."""
_QUIET_SECONDS = 2.0
_EVER = datetime.max.replace(tzinfo=UTC)


class Seen(NamedTuple):
    """Milliseconds in order: of all accepted records; of users; of all from their own append."""

    all: list[float]
    users: list[float]
    own: list[float]


def run(bench: Bench) -> list[Figure]:
    """p50 and p99, on both brokers."""
    figures = []
    for kind in ("kafka", "embedded"):
        if kind not in bench.rates:
            (kafka_path if kind == "kafka" else embedded_path).run(bench)
        for rate in (STEADY, bench.rates[kind] / 2):
            bench.say(f"latency: {kind}, {rate:,.0f} records/s")
            figures += _measure(bench, kind, rate)
    return figures


def _measure(bench: Bench, kind: str, rate: float) -> list[Figure]:
    url = f"kafka://{bench.kafka()}" if kind == "kafka" else None
    seconds = QUICK_SECONDS if bench.quick else SECONDS
    warm = QUICK_WARM_SECONDS if bench.quick else WARM_SECONDS
    prefix = f"bench-latency-{rate:.0f}"
    with bench.folder() as folder, ended(Buddy(folder, url, prefix)) as buddy:
        seen, paced = asyncio.run(_run(buddy, rate, warm, seconds))
    users, own = (
        ", ".join(f"p{q} {quantile(some, q / 100):,.0f}" for q in (50, 99))
        for some in (seen.users, seen.own)
    )
    note = (
        f"at {paced['rate']:,.0f} records/s; {len(seen.all):,} rows; users alone, whose addresses "
        f"are asked for: {users}"
    )
    section = f"latency: {kind}, {'steady' if rate == STEADY else 'half of the highest rate'}"
    return [
        Figure(section=section, name="p50", value=quantile(seen.all, 0.5), unit="ms", note=note),
        Figure(
            section=section,
            name="p99",
            value=quantile(seen.all, 0.99),
            unit="ms",
            aim=AIM,
            at_most=True,
            note=f"largest {seen.all[-1]:,.0f}; from its own append alone: {own}; "
            f"slowest publish {paced['slowest'] * 1000:,.0f} ms",
        ),
    ]


async def _run(
    buddy: Buddy, rate: float, warm: float, seconds: float
) -> tuple[Seen, dict[str, float]]:
    names = buddy.names
    async with opened(buddy.broker) as broker:
        await create(broker, names)
        worker = buddy.start("worker")
        await started(worker)
        with _pacer(buddy.broker, names, rate, warm + seconds) as pacer:
            await asyncio.to_thread(_await_ready, pacer)
            paced = asyncio.create_task(asyncio.to_thread(_send, pacer))
            arrived = await _observe(broker, names, paced)
            appended = await _appended(broker, names)
            return _latencies(names, arrived, appended, warm), await paced


@contextmanager
def _pacer(
    url: str, names: Names, rate: float, seconds: float
) -> Iterator[subprocess.Popen[bytes]]:
    """The sender, making ready."""
    command = ["-m", "tests.bench.pacer", url, names.prefix, str(rate), str(seconds)]
    process = subprocess.Popen(
        [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            _of(pipe).close()


def _await_ready(pacer: subprocess.Popen[bytes]) -> None:
    if _of(pacer.stdout).readline() != b"ready\n":
        raise RuntimeError("the sender did not start")


def _send(pacer: subprocess.Popen[bytes]) -> dict[str, float]:
    """Let it begin, and wait for what it has to say."""
    _of(pacer.stdin).write(b"go\n")
    _of(pacer.stdin).flush()
    line = _of(pacer.stdout).readline()
    if not line:
        raise RuntimeError("the sender has failed")
    found: dict[str, float] = json.loads(line)
    return found


def _of(pipe: IO[bytes] | None) -> IO[bytes]:
    assert pipe is not None
    return pipe


async def _observe(
    broker: Broker, names: Names, paced: asyncio.Task[dict[str, float]]
) -> list[tuple[float, list[Message]]]:
    """Accepted messages and when they were in hand, until everything is sent and it is quiet."""
    reader = broker.reader()
    topics = [names.accepted(entity) for entity in ENTITIES]
    reader.assign({Partition(topic, n): 0 for topic in topics for n in range(PARTITIONS)})
    arrived: list[tuple[float, list[Message]]] = []
    try:
        while True:
            done = paced.done()
            messages = await reader.read(5_000, _QUIET_SECONDS if done else 0.1)
            if messages:
                arrived.append((time.time() * 1000, messages))
            elif done:
                return arrived
    finally:
        await reader.close()


async def _appended(broker: Broker, names: Names) -> dict[bytes, int]:
    """When each input record was appended, by its coordinate."""
    topics = [names.inputs(entity) for entity in ENTITIES]
    spans = await broker.spans(Partition(t, n) for t in topics for n in range(PARTITIONS))
    reader = broker.reader()
    reader.assign({partition: span.start for partition, span in spans.items()})
    found: dict[bytes, int] = {}
    try:
        while any(reader.position(place) < span.end for place, span in spans.items()):
            for message in await reader.read(5_000, 1.0):
                source = f"{message.topic}/{message.partition}/{message.offset}"
                found[source.encode()] = message.timestamp
    finally:
        await reader.close()
    return found


def _latencies(
    names: Names,
    arrived: list[tuple[float, list[Message]]],
    appended: dict[bytes, int],
    warm: float,
) -> Seen:
    # The first record is sent to connect, some time before the others.
    begin = sorted(appended.values())[1] + warm * 1000
    seen = Seen([], [], [])
    ready = _Ready()
    # What is referred to comes first; each entity's messages stay in their order.
    order = {names.accepted(entity): place for place, entity in enumerate(ENTITIES)}
    rows = [(moment, message) for moment, messages in arrived for message in messages]
    for moment, message in sorted(rows, key=lambda row: order[row[1].topic]):
        entity = names.entity_of(message.topic)
        sent = appended[dict(message.headers)[SOURCE_HEADER]]
        possible = ready.note(entity, message, sent)
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
    """Whether its match never came: then the verdict waits for grace and barrier, as it must."""
    return Code.ORPHANED_MATCH_ID.value.encode() in dict(message.headers).get(WARNINGS_HEADER, b"")


class _Ready:
    """Since when a record could have been accepted, as far as others were there."""

    def __init__(self) -> None:
        self._decoders = decoders()
        self._ids: dict[bytes, int] = {}
        self._keys: dict[tuple[str, bytes | None], int] = {}

    def note(self, entity: str, message: Message, sent: int) -> int:
        """The append of the record, or of the last one that it had to wait for."""
        possible = max(sent, self._keys.get((entity, message.key), 0))
        row = self._decoders[entity].decode(message.value, message.key, _EVER)
        if isinstance(row, Decoded):
            for wanted in (*row.users, *row.matches):
                possible = max(possible, self._ids.get(wanted, 0))
            if entity in INDEXED:
                self._ids.setdefault(id_bytes(row.key.decode()), possible)
        self._keys[entity, message.key] = possible
        return possible
