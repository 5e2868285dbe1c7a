"""A live stream: the highest rate at which lag does not grow, and the latency below it.

A step sends at one rate to a worker of its own. Nobody watches meanwhile: when it is over, the
append times in the log say how many records had no outcome at each moment.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

from schemas import ENTITIES
from tests.acceptance.kit import Buddy
from tests.bench import backlog, embedded_path, latency, waiting
from tests.bench.copying import bare_copy, own_buddy, topics
from tests.bench.figures import Cost, Figure
from tests.bench.lag import Searched, grows, lags, search
from tests.bench.latency import Aims
from tests.bench.machine import cpu_seconds
from tests.bench.pacer import pacing
from tests.bench.running import PARTITIONS, started
from tests.bench.setting import Bench
from tests.bench.waiting import Waits, messages
from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.stream import Partition

STEADY = 1_000.0
"""Records a second: far more than a programme sends."""

_AIMS = {
    "kafka": (Aims(60.0, 200.0), Aims(30.0, 100.0)),
    "embedded": (Aims(None, 100.0), Aims(None, 100.0)),
}
"""At half of the live rate, and at `STEADY`."""
_SHARE_AIM = 80.0
_NEEDLESS_AIM = 5.0
_SENT_SHARE = 0.98
"""A sender below this share of its rate has not tried that rate."""
_SAMPLES = 60


class Step(NamedTuple):
    """What one rate gave: whether lag stayed, what was sent a second, CPU in the time that counts.

    Where lag stayed: who waited, and the bare loop on the same records.
    """

    sustained: bool
    sent: float
    cost: Cost
    lag: float
    waits: Waits | None = None
    loop: Cost | None = None


def run(bench: Bench) -> list[Figure]:
    """Both brokers: the live rate, then p50 and p99 at half of it and at 1,000/s."""
    figures = []
    for kind, path in (("kafka", backlog.run_short), ("embedded", embedded_path.run_rates)):
        if kind not in bench.rates:
            figures += path(bench)
        figures += _highest(bench, kind)
    return figures


def _highest(bench: Bench, kind: str) -> list[Figure]:
    tried: dict[float, Step] = {}

    def sustains(asked: float) -> bool:
        bench.say(f"live: {kind}, {asked:,.0f} records/s for {bench.seconds:.0f} s")
        tried[asked] = step(bench, kind, asked)
        return tried[asked].sustained

    found = search(sustains, _SHARE_AIM / 100 * bench.rates[kind])
    half, steady = _AIMS[kind]
    at_half = []
    if found.good:
        at_half = latency.measure(bench, kind, found.good / 2, "at half of the live rate", half)
    return [
        *_figures(bench, kind, found, tried),
        *at_half,
        *latency.measure(bench, kind, STEADY, f"at {STEADY:,.0f}/s", steady),
    ]


def _figures(
    bench: Bench, kind: str, found: Searched, tried: Mapping[float, Step]
) -> Iterator[Figure]:
    section = f"live: {kind}"
    note = f"it grows at {found.bad:,.0f}; {found.steps} steps"
    if (sent := tried[found.bad].sent) < _SENT_SHARE * found.bad:
        note += f"; there the sender itself reached only {sent:,.0f}"
    best = tried.get(found.good)
    if best is not None:
        note += f"; lag at the end {best.lag:,.0f} records"
    yield Figure(
        section=section,
        name=f"highest rate at which lag does not grow over {bench.seconds:.0f} s",
        value=found.good,
        unit="records/s",
        aim=_SHARE_AIM / 100 * bench.rates[kind],
        beside={"backlog": bench.rates[kind]}
        | ({"bare copy loop": best.loop.rate} if best and best.loop else {}),
        note=note,
    )
    if best is None or best.waits is None:
        return
    yield Figure(
        section=section,
        name="CPU a record at that rate",
        value=best.cost.micros,
        unit="µs",
        beside={"bare copy loop": best.loop.micros} if best.loop else {},
        note=f"{best.waits.parked:.0f} % were parked, {best.waits.kept:.0f} % kept in the log",
    )
    yield Figure(
        section=section,
        name="parked, of those whose references had been appended before them",
        value=best.waits.needless,
        unit="%",
        aim=_NEEDLESS_AIM,
        at_most=True,
    )


def step(bench: Bench, kind: str, rate: float) -> Step:
    """A quarter of the time to settle, then the time that counts."""
    with own_buddy(bench, kind) as buddy:
        total, found = asyncio.run(_step(buddy, rate, bench.seconds / 4, bench.seconds))
        if found.sustained:
            found = found._replace(loop=bare_copy(buddy.broker, buddy.names, total))
        return found


async def _step(buddy: Buddy, rate: float, warm: float, seconds: float) -> tuple[int, Step]:
    async with topics(buddy.broker, buddy.names) as broker:
        worker = buddy.start("worker")
        await started(worker)
        with pacing(buddy.broker, buddy.names, rate, warm + seconds) as pacer:
            paced = asyncio.create_task(asyncio.to_thread(pacer.send))
            await asyncio.wait({paced}, timeout=warm)
            begin, before = time.time(), cpu_seconds(worker.process.pid)
            sent = (await paced)["rate"]
            end, used = time.time(), cpu_seconds(worker.process.pid) - before
        await asyncio.to_thread(worker.stop)
        appended, judged = await _times(broker, buddy.names)
        moments = [begin + (end - begin) * n / _SAMPLES for n in range(1, _SAMPLES + 1)]
        found = lags(appended, judged, moments)
        done = sum(begin <= moment < end for moment in judged)
        sustained = sent >= _SENT_SHARE * rate and not grows(found, rate, end - begin)
        waits = await waiting.look(broker, buddy.names) if sustained else None
        cost = Cost(max(1, done), end - begin, used)
        return len(appended), Step(sustained, sent, cost, found[-1], waits)


async def _times(broker: Broker, names: Names) -> tuple[list[float], list[float]]:
    """When each record was appended, and when each outcome was, in seconds since 1970."""

    async def of(*topics: Callable[[str], str]) -> list[float]:
        places = [
            Partition(topic(entity), n)
            for topic in topics
            for entity in ENTITIES
            for n in range(PARTITIONS)
        ]
        return sorted([m.timestamp / 1000 async for m in messages(broker, places)])

    return await of(names.input), await of(names.accepted, names.rejected)
