"""Reads the saved state of a task from its topics, skipping messages that are not valid."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from worker.brokers.contract import Broker
from worker.brokers.tables import KeyedTable, read_checked
from worker.core.checkpoint import Checkpoint
from worker.core.internal import read_parked, read_progress, read_reservation
from worker.core.restoring import SavedState
from worker.core.task_settings import TaskSettings
from worker.core.topics import Names
from worker.errors import StateError
from worker.stream import Partition

Skipped = Callable[[Partition, Sequence[int]], None]
"""Called with the offsets of skipped messages."""
Holes = Callable[[Mapping[Partition, int]], None]
"""Called with the number of offsets that were removed, or damaged and skipped."""


async def read_state(
    broker: Broker, settings: TaskSettings, number: int, skipped: Skipped, holes: Holes
) -> SavedState:
    """The saved state of a task. Fence all earlier owners first.

    Raises StateError if the task has checkpoints but none is readable, DamagedLog, and
    BrokerUnavailable.
    """
    names, tasks = settings.names, settings.tasks

    def tell(partition: Partition, table: KeyedTable[Any]) -> None:
        if table.unreadable:
            skipped(partition, table.unreadable)
        if table.holes:
            holes({partition: table.holes})

    partition = Partition(names.progress, number)
    progress = await read_progress_table(broker, names, number)
    tell(partition, progress)
    key = b"%d" % number
    if key in progress.lost:
        raise StateError(
            f"{partition.topic}/{number} says at offset {progress.lost[key]} how far task {number}"
            " is, and cannot be read; nothing before it is left. Have its inputs judged again:"
            f" buddy reprocess users --offset {number}:0"
        )
    partition = Partition(names.parked, number)
    parked = await read_checked(broker, partition, lambda k, v: read_parked(k, v, number, names))
    tell(partition, parked)
    partition = Partition(names.granted, number)
    granted = await read_checked(
        broker, partition, lambda k, v: read_reservation(k, v, number, tasks)
    )
    tell(partition, granted)
    return SavedState(
        progress.rows.get(key),
        tuple(parked.rows.values()),
        tuple(granted.rows.values()),
        doubtful=bool(parked.holes or granted.holes),
    )


async def read_progress_table(broker: Broker, names: Names, number: int) -> KeyedTable[Checkpoint]:
    """The checkpoints of a task."""
    partition = Partition(names.progress, number)
    return await read_checked(broker, partition, lambda k, v: read_progress(k, v, number))
