"""Many parked records under a hard limit of memory: every one gets its verdict.

Records of one entity refer to users who come when all of them lie there: of every ten records one
becomes known that way, the others are orphans. So all are parked, and none can go before its grace
is over. The worker is a process of its own whose data may not grow beyond the limit
(`RLIMIT_DATA`: the index, which is a mapped file, does not count).
"""

from __future__ import annotations

import asyncio
import resource
import time
from pathlib import Path

import msgspec

from tests.acceptance.accounts import broker_of
from tests.acceptance.kit import Buddy, Service
from tests.unit.core_kit import good, to_json, uid
from worker.brokers.contract import Broker
from worker.brokers.tables import read_table
from worker.core.checkpoint import Counts
from worker.core.internal import read_progress
from worker.core.topics import Names
from worker.stream import Partition, ProducerRecord

MIB = 1024 * 1024
KNOWN_EVERY = 10
_STEP_BYTES = 16 * MIB
_STEP_RECORDS = 5_000


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """One run. Sizes in bytes, the limit in MiB."""

    records: int
    size: int
    limit: int = 1024
    max_parked_mib: int = 256
    grace: float = 30.0
    patience: float = 3_600.0
    partitions: int = 4
    kafka: str | None = None
    """The address of a Kafka, whose topics pack what they hold; else the embedded broker."""


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """What became of them, how long it took and what the worker needed."""

    counts: Counts
    seconds: float
    peak_mib: int
    """Of resident memory, the mapped index included."""
    most_parked: int


async def play(plan: Plan, directory: Path, say: bool = False) -> Report:
    """Carry out a run. Fails when the worker dies, or does not end in time."""
    address = None if plan.kafka is None else f"kafka://{plan.kafka}"
    grace, most = plan.grace, plan.max_parked_mib
    buddy = Buddy(
        directory, address, grace_seconds=grace, max_parked_mib=most, partitions=plan.partitions
    )
    buddy.create_topics(plan.partitions)
    async with broker_of(buddy) as broker:
        await _send(broker, buddy.names, plan)
        worker = buddy.start("worker", before=lambda: _limit(plan.limit))
        began = time.monotonic()
        try:
            return await _watch(broker, buddy.names, worker, plan, began, say=say)
        finally:
            buddy.stop_all()


def _limit(mib: int) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (mib * MIB, mib * MIB))


async def _send(broker: Broker, names: Names, plan: Plan) -> None:
    text = "x" * max(0, plan.size - len(_record(0, "")))
    messages: list[ProducerRecord] = []
    for number in range(plan.records):
        messages.append(ProducerRecord(names.input("milestones"), None, _record(number, text)))
        if len(messages) == min(_STEP_RECORDS, max(1, _STEP_BYTES // plan.size)):
            await broker.publish(messages)
            messages = []
    if messages:
        await broker.publish(messages)
    for first in range(0, plan.records, KNOWN_EVERY * _STEP_RECORDS):
        numbers = range(first, min(plan.records, first + KNOWN_EVERY * _STEP_RECORDS), KNOWN_EVERY)
        users = [to_json(good("users", number + 1)) for number in numbers]
        topic = names.input("users")
        keyed = zip(numbers, users, strict=True)
        await broker.publish([ProducerRecord(topic, uid(n + 1).encode(), u) for n, u in keyed])


def _record(number: int, text: str) -> bytes:
    # In another order than the canonical row's, so that both are held.
    record = good("milestones", number + 1, user_id=uid(number + 1), metadata={"text": text})
    return to_json(dict(reversed(record.items())))


async def _watch(
    broker: Broker, names: Names, worker: Service, plan: Plan, began: float, *, say: bool
) -> Report:
    users = -(-plan.records // KNOWN_EVERY)
    most = 0
    while True:
        assert worker.process.poll() is None, f"it died ({worker.process.poll()}): {worker}"
        counts = await _counts(broker, names, plan.partitions)
        most = max(most, counts.parked)
        seconds = time.monotonic() - began
        if say:
            print(f"{seconds:6.0f} s, {_peak(worker)} MiB, {counts}", flush=True)
        done = counts.accepted + counts.rejected
        if done == plan.records + users and not counts.parked:
            peak = _peak(worker)
            worker.stop().succeeded()
            return Report(counts=counts, seconds=seconds, peak_mib=peak, most_parked=most)
        assert seconds < plan.patience, f"{done} of {plan.records + users}: {worker}"
        await asyncio.sleep(5.0 if say else 0.1)


async def _counts(broker: Broker, names: Names, partitions: int) -> Counts:
    """What the tasks' books say of all entities together."""
    found = [0, 0, 0, 0, 0]
    for number in range(partitions):
        for key, value in (await read_table(broker, Partition(names.progress, number))).items():
            progress = read_progress(key, value, number)
            assert progress is not None
            for counts in progress.counts.values():
                for place, count in enumerate(msgspec.structs.astuple(counts)):
                    found[place] += count
    return Counts(*found)


def _peak(worker: Service) -> int:
    status = Path(f"/proc/{worker.process.pid}/status").read_text("utf-8")
    peaks = [int(line.split()[1]) for line in status.splitlines() if "VmHWM" in line]
    return max(peaks, default=0) // 1024
