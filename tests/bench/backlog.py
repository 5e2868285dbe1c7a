"""A backlog on Kafka: one worker, exactly once, beside a bare copy loop on the same records."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import NamedTuple

from tests.acceptance.kit import Buddy
from tests.bench import mix, waiting
from tests.bench.copying import bare_copy, own_buddy, prepare
from tests.bench.figures import Aims, Cost, Figure, beside_bare, middle
from tests.bench.running import GRACE_SECONDS, Run, opened, started
from tests.bench.setting import Bench
from tests.bench.waiting import Waits
from worker.demo.record import Record

LONG = 10
"""Times the records of the short backlog: two million."""
USERS = 2
"""Times the records: 400,000."""

_MIXED = Aims(share=40.0, cpu=2.5)
_USERS = Aims(share=30.0, cpu=3.5)
_NEEDLESS_AIM = 5.0
_LONG_AIM = 90.0


class Round(NamedTuple):
    """The same records by a worker and by the bare loop."""

    worker: Cost
    loop: Cost
    waits: Waits


def run(bench: Bench) -> list[Figure]:
    """The demo's mix: a short backlog and a long one, alternately."""
    short, long = [], []
    for number in range(bench.rounds):
        bench.say(f"backlog, round {number + 1} of {bench.rounds}")
        short.append(_round(bench, mix.mixed(bench.records), number))
        long.append(_round(bench, mix.mixed(LONG * bench.records), number))
    held = [100 * b.worker.rate / a.worker.rate for a, b in zip(short, long, strict=True)]
    return [
        *_short_figures(bench, short),
        *_figures("backlog", long, _MIXED),
        Figure(
            section="backlog",
            name="the long one's rate, of the short one's",
            value=middle(held),
            unit="%",
            aim=_LONG_AIM,
        ),
    ]


def run_short(bench: Bench) -> list[Figure]:
    """The short backlog alone: what a live stream is compared with."""
    bench.say("a backlog to compare with")
    rounds = [_round(bench, mix.mixed(bench.records), n) for n in range(bench.rounds)]
    return _short_figures(bench, rounds)


def _short_figures(bench: Bench, rounds: list[Round]) -> list[Figure]:
    bench.rates["kafka"] = middle([each.worker.rate for each in rounds])
    return _figures("backlog", rounds, _MIXED)


def run_users(bench: Bench) -> list[Figure]:
    """Users alone: every record claims an address."""
    rounds = []
    for number in range(bench.rounds):
        bench.say(f"users, round {number + 1} of {bench.rounds}")
        rounds.append(_round(bench, mix.users(USERS * bench.records), number))
    return _figures("users alone", rounds, _USERS)


def _figures(section: str, rounds: list[Round], aims: Aims) -> list[Figure]:
    title = f"{rounds[0].worker.records:,} records, one worker"
    pairs = [(each.worker, each.loop) for each in rounds]
    parked, kept, needless = (
        middle(list(values)) for values in zip(*(each.waits for each in rounds), strict=True)
    )
    note = f"{parked:.0f} % were parked, {kept:.0f} % kept in the log"
    found = beside_bare(section, title, pairs, aims, note)
    if section == "backlog":
        found.append(
            Figure(
                section=section,
                name=f"{title}: parked, of those whose references had been appended before them",
                value=needless,
                unit="%",
                aim=_NEEDLESS_AIM,
                at_most=True,
            )
        )
    return found


def _round(bench: Bench, records: Iterable[Record], number: int) -> Round:
    """Loop and worker take turns in going first, so that neither always finds warm memory."""
    with own_buddy(bench, "kafka", grace_seconds=GRACE_SECONDS) as buddy:
        messages = mix.outgoing(buddy.names, records)
        total, _ = asyncio.run(prepare(buddy.broker, buddy.names, messages))
        loop = bare_copy(buddy.broker, buddy.names, total) if number % 2 else None
        worker, waits = asyncio.run(_run(buddy, total))
        return Round(worker, loop or bare_copy(buddy.broker, buddy.names, total), waits)


async def _run(buddy: Buddy, total: int) -> tuple[Cost, Waits]:
    worker = buddy.start("worker")
    start = await started(worker)
    run = Run(buddy.names, [worker], total)
    async with opened(buddy.broker) as broker:
        times = run.times(start, await run.finish(broker))
        await asyncio.to_thread(lambda: worker.stop().succeeded())
        return times.cost, await waiting.look(broker, buddy.names)
