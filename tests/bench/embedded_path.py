"""The whole path on the embedded broker: worker and sink, in two processes and in one."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path
from typing import NamedTuple

from tests.acceptance.kit import Buddy
from tests.bench import latency, mix, waiting
from tests.bench.copying import bare_copy, prepare
from tests.bench.figures import Cost, Figure, middle
from tests.bench.running import (
    GRACE_SECONDS,
    Run,
    Times,
    ended,
    opened,
    started,
)
from tests.bench.setting import Bench
from tests.bench.waiting import Waits
from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.sink.requests import ExportRequest, decode_announcement, encode_request
from worker.stream import Partition, ProducerRecord

SECTION = "embedded"
_APART_AIM, _TOGETHER_AIM = 90_000, 60_000
_LATENCY_AIMS = latency.Aims(None, 100.0)
_PATIENCE_SECONDS = 120.0


class Whole(NamedTuple):
    """One run; the rate up to an export of all of it, how long that was after the last outcome.

    It is asked for when nothing has come for 0.3 s, and holds milestones as CSV: small, but cut
    only when the sink has everything.
    """

    times: Times
    to_export: float
    late: float
    waits: Waits


def run(bench: Bench) -> list[Figure]:
    """Records a second, and how late outcomes are of a live stream at half of that rate."""
    figures = run_rates(bench)
    half = bench.rates["embedded"] / 2
    title = "at half of the backlog's rate"
    return [*figures, *latency.measure(bench, "embedded", half, title, _LATENCY_AIMS)]


def run_rates(bench: Bench) -> list[Figure]:
    """Records a second, and those of `publish` alone."""
    apart, together = [], []
    with bench.folder() as published:
        records, sent = asyncio.run(publish_all(bench, published))
        for number in range(bench.rounds):
            bench.say(f"embedded, round {number + 1} of {bench.rounds}")
            apart.append(_measure(bench, published, records, ("sink", "worker")))
            together.append(_measure(bench, published, records, ("run",)))
    bench.rates["embedded"] = middle([whole.times.cost.rate for whole, _ in apart])
    return [
        Figure(
            section=SECTION,
            name="publish alone, batches of 2,000",
            value=sent,
            unit="records/s",
        ),
        *_figures("worker and sink, a process each", apart, _APART_AIM),
        *_figures("buddy run, one process", together, _TOGETHER_AIM),
    ]


async def publish_all(bench: Bench, directory: Path) -> tuple[int, float]:
    """Make a log with the demo's mix on its inputs: how many records, and how many a second."""
    names = Names()
    messages = list(mix.outgoing(names, mix.mixed(bench.records)))
    return await prepare(f"embedded:{directory / 'broker'}", names, messages)


def _measure(
    bench: Bench, published: Path, records: int, commands: tuple[str, ...]
) -> tuple[Whole, Cost]:
    with bench.folder() as folder:
        shutil.copytree(published / "broker", folder / "broker")
        with ended(Buddy(folder, grace_seconds=GRACE_SECONDS)) as buddy:
            whole = asyncio.run(_run(buddy, records, commands))
        return whole, bare_copy(buddy.broker, buddy.names, records)


async def _run(buddy: Buddy, records: int, commands: tuple[str, ...]) -> Whole:
    services = []
    for command in commands:  # the sink first: it is to be there when the first rows come
        services.append(buddy.start(command))
        event = "worker_ready" if command == "worker" else "sink_started"
        await asyncio.to_thread(services[-1].wait_for, event)
    start = await started(services[-1])
    run = Run(buddy.names, services, records)
    async with opened(buddy.broker) as broker:
        exported: list[float] = []

        async def export() -> None:
            exported.append(await _exported(broker, buddy.names))

        span = await run.finish(broker, export)
        waits = await waiting.look(broker, buddy.names)
    to_export = records / (exported[0] - start)
    return Whole(run.times(start, span), to_export, exported[0] - span.last, waits)


async def _exported(broker: Broker, names: Names) -> float:
    """Ask for a small export of what has been accepted; when it was finished (1970 seconds)."""
    reader = broker.reader()
    reader.assign({Partition(names.exports, 0): 0})
    request = ExportRequest("bench", ("milestones",), ("csv",))
    await broker.publish([ProducerRecord(names.export_requests, *encode_request(request))])
    try:
        async with asyncio.timeout(_PATIENCE_SECONDS):
            while True:
                for message in await reader.read(100, 1.0):
                    answer = decode_announcement(message.value)
                    if answer is not None and answer.status == "finished":
                        return message.timestamp / 1000
                    if answer is not None and answer.status == "failed":
                        raise RuntimeError(f"the export failed: {answer.error}")
    finally:
        await reader.close()


def _figures(title: str, rounds: list[tuple[Whole, Cost]], aim: float) -> list[Figure]:
    runs, loops = [whole for whole, _ in rounds], [loop for _, loop in rounds]
    parts = ", ".join(
        f"{name} {middle([run.times.cpu[name] / run.times.cost.records * 1e6 for run in runs]):.0f}"
        for name in runs[0].times.cpu
    )
    most = middle([whole.times.to_most for whole in runs])
    parked = middle([whole.waits.parked for whole in runs])
    late = middle([whole.late for whole in runs])
    return [
        Figure(
            section=SECTION,
            name=f"{title}: to the last outcome",
            value=middle([whole.times.cost.rate for whole in runs]),
            unit="records/s",
            aim=aim,
            beside={"bare copy loop": middle([loop.rate for loop in loops])},
            note=f"to 99 % of them {most:,.0f}; {parked:.0f} % were parked",
        ),
        Figure(
            section=SECTION,
            name=f"{title}: CPU a record",
            value=middle([whole.times.cost.micros for whole in runs]),
            unit="µs",
            beside={"bare copy loop": middle([loop.micros for loop in loops])},
            note=parts,
        ),
        Figure(
            section=SECTION,
            name=f"{title}: to an export of them",
            value=middle([whole.to_export for whole in runs]),
            unit="records/s",
            note=f"finished {late:.2f} s after the last outcome",
        ),
    ]
