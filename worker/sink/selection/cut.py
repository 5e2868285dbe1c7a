"""Takes a consistent cut: every record asked for is judged, and the store is at exact offsets.

1. Note the ends of all inputs, and wait until all records before them are judged, by any worker.
2. Hold the accepted topics at their ends: referring entities first, then matches, then users.
   Each stage is reached before the next stage's ends are noted. So the cut contains each row that
   its rows refer to. The referenced row was accepted earlier, or in the same transaction. A reader
   sees a transaction whole, whatever else the transaction wrote.
3. Take a snapshot while all partitions are held; then consumption goes on.

The rows in the snapshot depend on the accepted offsets alone, not on when or in which batches they
were read.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

import msgspec

from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.errors import StateLost
from worker.exports.manifest import Cut
from worker.sink.judged import wait_until_judged
from worker.sink.selection.plan import LEVELS
from worker.sink.store.consume import Consumer
from worker.sink.store.row_store import RowStore
from worker.sink.store.snapshot import Snapshot
from worker.stream import Partition

Report = Callable[[str, int, int], None]
"""Called with progress: stage ("judge", "read", "collect", "write"), done, total. In any thread."""


class CutSource(msgspec.Struct, frozen=True):
    """Everything that a cut is taken from."""

    broker: Broker
    names: Names
    store: RowStore
    consumer: Consumer
    clock: Callable[[], int]
    """Wall clock in milliseconds since 1970, for stamps only: no wait uses it."""
    unreadable: Callable[[Partition, int], None] = lambda _partition, _offset: None
    """Called for each garbage message in the project's own topics."""


class TakenCut(msgspec.Struct, frozen=True):
    """A cut, taken at `moment` (milliseconds since 1970); close the snapshot after use.

    `pending` counts the offsets not judged in time, by entity and input partition.
    """

    snapshot: Snapshot
    cut: Cut
    pending: dict[str, dict[int, int]]
    moment: int


async def take_cut(source: CutSource, patience: float, report: Report) -> TakenCut:
    """Take a cut of all records that are in the inputs now.

    After `patience` seconds without progress on the verdicts, the cut is taken without the pending
    verdicts. Without progress on the accepted topics for as long, it raises `NoAnswer`. Also raises
    `StateError`, `StateLost` if the store is being refilled, `MissingTopic`, `BrokerUnavailable`.
    """
    asked = source.clock()
    verdicts = await wait_until_judged(
        source.broker,
        source.names,
        patience,
        source.unreadable,
        lambda done, total: report("judge", done, total),
    )
    consumer = source.consumer
    try:
        for level in LEVELS:
            await consumer.hold(level, patience, lambda done, total: report("read", done, total))
        await asyncio.to_thread(source.store.mark_current, asked)
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
    return TakenCut(snapshot, cut, _by_entity(source.names, verdicts.pending), moment)


def _by_entity(names: Names, offsets: Mapping[Partition, int]) -> dict[str, dict[int, int]]:
    """The offsets as entity → partition → offset."""
    found: dict[str, dict[int, int]] = {}
    for partition, offset in sorted(offsets.items()):
        found.setdefault(names.entity_of(partition.topic), {})[partition.number] = offset
    return found
