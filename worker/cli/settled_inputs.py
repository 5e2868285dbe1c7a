"""Waits until everything that was sent before now has its verdict."""

from __future__ import annotations

import asyncio
from typing import Final

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.cli.ask_broker import broker_answers, first_unread
from worker.cli.settings import Settings
from worker.errors import NobodyWorks
from worker.status.broker_answers import BrokerAnswers, unread
from worker.stream import OffsetRange, Partition

_LOOK_SECONDS: Final = 0.5


async def until_judged(broker: Broker, settings: Settings, tasks: int, patience: float) -> None:
    """Wait until all records that are in the inputs at the start of the call are judged.

    Raises NobodyWorks after `patience` seconds, and BrokerUnavailable.
    """
    clock = asyncio.get_running_loop().time
    deadline = clock() + patience
    answers = await broker_answers(broker, settings, tasks)
    ends = dict(answers.ends)
    while left := _parked(answers, ends) or await _unread(broker, answers, ends):
        if clock() >= deadline:
            topic, number = min(left)
            raise NobodyWorks(
                f"records of {topic}/{number} have no verdict after {patience:.0f} s, and newer"
                " versions may be among them: see 'buddy status', or do not wait (--at-once)"
            )
        await asyncio.sleep(_LOOK_SECONDS)
        answers = await broker_answers(broker, settings, tasks)


def _parked(answers: BrokerAnswers, ends: dict[Partition, int]) -> set[Partition]:
    """The inputs of which records before these ends have been read and are not judged."""
    found = set()
    for number, task in answers.tasks.items():
        for entity in ENTITIES:
            partition = Partition(answers.names.input(entity), number)
            read = min(task.checkpoint.next.get(entity, 0), ends[partition])
            if task.checkpoint.judged.get(entity, read) < read:
                found.add(partition)
    return found


async def _unread(
    broker: Broker, answers: BrokerAnswers, ends: dict[Partition, int]
) -> set[Partition]:
    """The inputs that hold records before these ends that no worker has read."""
    left = {p: offset for p, offset in unread(answers).items() if offset < ends[p]}
    # Behind the last record there may be transaction markers, for which nobody commits.
    spans = {p: OffsetRange(offset, ends[p]) for p, offset in left.items()}
    return set(await first_unread(broker, left, spans)) if left else set()
