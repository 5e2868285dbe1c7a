"""One hot key: how fast versions of one user are judged, and what waits beside them.

Everything comes in one transaction to a worker that is ready, so that its start does not count.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from random import Random
from typing import NamedTuple

import msgspec

from tests.acceptance.kit import Buddy
from tests.bench import mix
from tests.bench.copying import bare_copy, own_buddy, topics
from tests.bench.figures import Cost, Figure, middle
from tests.bench.machine import cpu_seconds
from tests.bench.running import PARTITIONS, publish_at_once, started
from tests.bench.setting import Bench
from worker.brokers.contract import Broker
from worker.brokers.partitioner import partition_for
from worker.core.addresses import owner_of
from worker.core.known import address_digest
from worker.demo.record import Record, Row, encode, key_of, uuid4
from worker.stream import Message, Partition, ProducerRecord

UPDATES = 50_000
"""More than today's worker judges in the time it is given: then those judged by its end count."""
BESIDE = 1_500
GRACE_SECONDS = 1.0
_ORPHANS = 20  # over all partitions, the hot one too

_RATE_AIM = 5_000.0
_LATE_AIM = 1.0
_PATIENCE_SECONDS = 120.0


class Judged(NamedTuple):
    """Updates judged, and the bare loop on the same records."""

    cost: Cost
    loop: Cost


def run(bench: Bench) -> list[Figure]:
    """Both brokers, each round with topics of its own."""
    figures = []
    for kind in ("kafka", "embedded"):
        stays, moves, late = [], [], []
        for number in range(bench.rounds):
            bench.say(f"hotkey: {kind}, round {number + 1} of {bench.rounds}")
            stays.append(_rate(bench, kind, moves=False))
            moves.append(_rate(bench, kind, moves=True))
            late.append(_lateness(bench, kind))
        figures += _figures(f"{kind}: one user whose address stays", stays, _RATE_AIM)
        figures += _figures(f"{kind}: one user with another address each time", moves, None)
        figures.append(
            Figure(
                section="hot key",
                name=f"{kind}: orphans beside {BESIDE:,} updates: the last verdict after its grace",
                value=middle(late),
                unit="s late",
                aim=_LATE_AIM,
                at_most=True,
                note=f"grace {GRACE_SECONDS:.0f} s; {_ORPHANS} orphans in all partitions",
            )
        )
    return figures


def _figures(title: str, rates: list[Judged], aim: float | None) -> list[Figure]:
    return [
        Figure(
            section="hot key",
            name=f"{title}: updates",
            value=middle([each.cost.rate for each in rates]),
            unit="1/s",
            aim=aim,
            beside={"bare copy loop": middle([each.loop.rate for each in rates])},
            note=f"{rates[0].cost.records:,} judged in {rates[0].cost.seconds:.1f} s",
        ),
        Figure(
            section="hot key",
            name=f"{title}: CPU an update",
            value=middle([each.cost.micros for each in rates]),
            unit="µs",
            beside={"bare copy loop": middle([each.loop.micros for each in rates])},
        ),
    ]


def updates(count: int, *, moves: bool = False) -> Iterator[Record]:
    """Versions of one user, whose address stays, or `moves` to another one each time.

    The one that stays belongs to another task than the user does: that is the slower case.
    """
    rng = Random(mix.SEED)
    users = (mix.user(rng, number) for number in itertools.count())
    first = next(user for user in users if _is_elsewhere(user))
    row: Row = msgspec.json.decode(first.value or b"")
    for number in range(count):
        if moves:
            row["email"] = f"hot.key.{number}@example.org"
        yield Record("users", first.key, encode(row | {"location": f"Street {number}"}))


def _is_elsewhere(user: Record) -> bool:
    row = msgspec.json.decode(user.value or b"")
    own = partition_for((user.key or "").encode(), PARTITIONS)
    return owner_of(address_digest(row["email"]), PARTITIONS) != own


def orphans(count: int) -> Iterator[Record]:
    """Records of users that nobody sends."""
    rng = Random(mix.SEED + 1)
    _, good = mix.good_records(1)["milestones"][0]
    row: Row = msgspec.json.decode(good)
    for _ in range(count):
        row["user_id"] = uuid4(rng)
        yield Record("milestones", key_of("milestones", row), encode(row))


def _rate(bench: Bench, kind: str, *, moves: bool) -> Judged:
    count = min(UPDATES, bench.records // 4)
    with own_buddy(bench, kind) as buddy:
        messages = list(mix.outgoing(buddy.names, updates(count, moves=moves)))
        cost = asyncio.run(_judge(buddy, messages, bench.seconds / 6))
        return Judged(cost, bare_copy(buddy.broker, buddy.names, count))


async def _judge(buddy: Buddy, messages: list[ProducerRecord], seconds: float) -> Cost:
    """Those judged when all are, or when the time is over."""
    async with topics(buddy.broker, buddy.names) as broker:
        worker = buddy.start("worker")
        await started(worker)
        before = cpu_seconds(worker.process.pid)
        start = await publish_at_once(broker, messages)
        judged = await _outcomes(broker, buddy.names.accepted("users"), len(messages), seconds)
        used = cpu_seconds(worker.process.pid) - before
    end = judged[-1].timestamp / 1000 if len(judged) == len(messages) else time.time()
    return Cost(max(1, len(judged)), end - start, used)


def _lateness(bench: Bench, kind: str) -> float:
    with own_buddy(bench, kind, grace_seconds=GRACE_SECONDS) as buddy:
        return asyncio.run(_wait(buddy))


async def _wait(buddy: Buddy) -> float:
    """How many seconds after its grace the last orphan was rejected."""
    records = [*updates(BESIDE), *orphans(_ORPHANS)]
    async with topics(buddy.broker, buddy.names) as broker:
        await started(buddy.start("worker"))
        start = await publish_at_once(broker, list(mix.outgoing(buddy.names, records)))
        topic = buddy.names.rejected("milestones")
        found = await _outcomes(broker, topic, _ORPHANS, _PATIENCE_SECONDS)
    if len(found) < _ORPHANS:
        raise RuntimeError(f"no verdict on {_ORPHANS - len(found)} orphans")
    return max(message.timestamp for message in found) / 1000 - start - GRACE_SECONDS


async def _outcomes(broker: Broker, topic: str, count: int, seconds: float) -> list[Message]:
    """So many outcomes of that topic, or those that have come in that time."""
    reader = broker.reader()
    reader.assign({Partition(topic, n): 0 for n in range(PARTITIONS)})
    found: list[Message] = []
    deadline = time.monotonic() + seconds
    try:
        while len(found) < count and (left := deadline - time.monotonic()) > 0:
            found += await reader.read(5_000, min(left, 0.5))
    finally:
        await reader.close()
    return found
