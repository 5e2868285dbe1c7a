"""Taking a consistent cut: everything asked for is judged, and the store at exactly its offsets.

1. The ends of all inputs are noted, and what lies before them must be judged, by whichever worker.
2. The accepted topics are held at their ends: first those that refer, then matches, users last.
   Each stage is reached before the next one's ends are noted. So what a row in the cut refers to
   is in the cut: it was accepted before the row or with it, and a transaction that has been read
   is complete, whatever else it wrote.
3. With all partitions held a snapshot is taken, and consumption goes on.

The rows in the snapshot follow from the accepted offsets alone: not from when, or in which batches,
they were read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.errors import StateLost
from worker.exports.manifest import Cut
from worker.sink.selection.plan import STAGES
from worker.sink.store.consume import Consumer
from worker.sink.store.row_store import RowStore
from worker.sink.store.snapshot import Snapshot
from worker.sink.verdicts import wait_for_verdicts
from worker.stream import Partition

Report = Callable[[str, int, int], None]
"""Told of progress: stage ("judge", "read", "collect" or "write"), done, total. From any thread."""


class Source(msgspec.Struct, frozen=True):
    """Where exports are cut from."""

    broker: Broker
    names: Names
    store: RowStore
    consumer: Consumer
    clock: Callable[[], int]
    """Milliseconds since 1970, for stamps: nothing waits by it."""
    unreadable: Callable[[Partition, int], None] = lambda _place, _offset: None
    """Told of garbage in topics of the project's own."""


class Taken(msgspec.Struct, frozen=True):
    """A cut. `moment` is its time in milliseconds; close the snapshot after use.

    `pending` counts by entity and input partition the offsets that were not judged in time.
    """

    snapshot: Snapshot
    cut: Cut
    pending: dict[str, dict[int, int]]
    moment: int


async def take_cut(source: Source, patience: float, report: Report) -> Taken:
    """Take a cut of all that is in the inputs now.

    After `patience` seconds without progress on the verdicts it does without the pending ones;
    without progress on the accepted topics it raises `NoAnswer`. Raises `StateError`, `StateLost`
    where the store is read again, `MissingTopic`, `BrokerUnavailable`.
    """
    asked = source.clock()
    verdicts = await wait_for_verdicts(
        source.broker,
        source.names,
        patience,
        source.unreadable,
        lambda done, total: report("judge", done, total),
    )
    consumer = source.consumer
    try:
        for stage in STAGES:
            await consumer.hold(stage, patience, lambda done, total: report("read", done, total))
        await asyncio.to_thread(source.store.stamp_current, asked)
        moment = source.clock()
        snapshot = await asyncio.to_thread(source.store.snapshot)
        try:
            consumer.check_held()
        except StateLost:
            snapshot.close()
            raise
    finally:
        consumer.release()
    cut = Cut(
        accepted=_by_entity(source.names, snapshot.positions),
        judged=_by_entity(source.names, verdicts.judged),
    )
    return Taken(snapshot, cut, _by_entity(source.names, verdicts.pending), moment)


def _by_entity(names: Names, offsets: Mapping[Partition, int]) -> dict[str, dict[int, int]]:
    """The same, as entity → partition → offset."""
    found: dict[str, dict[int, int]] = {}
    for place, offset in sorted(offsets.items()):
        found.setdefault(names.entity_of(place.topic), {})[place.number] = offset
    return found
