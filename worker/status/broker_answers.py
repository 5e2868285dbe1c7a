"""What the broker answers to `buddy status`, and how far each task has read its inputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.core.checkpoint import Checkpoint
from worker.core.internal import read_progress
from worker.core.topics import Names
from worker.stream import GroupMember, Message, OffsetRange, Partition

_NOTHING: Final = Checkpoint({}, {})


class TaskCheckpoint(msgspec.Struct, frozen=True):
    """The newest readable checkpoint of a task, and when it was committed.

    `unmoved_since` has, by entity, the time since which all checkpoints read show the same
    position. `earliest` is the time of the earliest checkpoint read.
    """

    checkpoint: Checkpoint = _NOTHING
    committed: int | None = None
    unreadable: int = 0
    """How many newer messages are not a checkpoint of this task."""
    complete: bool = True
    """Whether every newer message could be read."""
    unmoved_since: Mapping[str, int] = {}
    earliest: int | None = None

    @property
    def counted(self) -> bool:
        """Whether the counts are known. A task that never committed has done nothing."""
        return self.checkpoint.has_books or self.committed is None


class BrokerAnswers(msgspec.Struct, frozen=True, kw_only=True, dict=True):
    """All answers of the broker."""

    names: Names
    at: int
    """When, in milliseconds since 1970."""
    tasks: Mapping[int, TaskCheckpoint]
    """By task."""
    spans: Mapping[Partition, OffsetRange]
    """The offset ranges of the inputs, committed messages only."""
    ends: Mapping[Partition, int]
    """The ends of the inputs, open transactions included, from just before `spans`."""
    group_offsets: Mapping[Partition, int]
    """The offsets that the workers' group has committed."""
    identities: Mapping[str, str]
    workers: Sequence[GroupMember]
    strangers: Mapping[str, str | None] = {}
    """By service, a line about another program that holds partitions of its group."""
    sinks: Sequence[GroupMember] | None
    """None if this user lacks the right to ask."""
    exact: bool
    """Whether offsets count nothing but records."""
    skipped: Mapping[Partition, int] = {}
    """Damaged offsets that an operator had skipped."""
    grace_ms: int = 0

    @cached_property
    def owners(self) -> dict[int, str]:
        """By task, the worker to which the group assigns it."""
        return {number: member.name for member in self.workers for number in member.numbers}

    @cached_property
    def without_progress(self) -> frozenset[int]:
        """The tasks that have worked, as the group's offsets prove, and have no checkpoint.

        One transaction saves both, so the topic has been created anew. Unless a worker remembers
        how far it was, such a task judges all of its inputs again: the rule of the workers.
        """
        worked = {place.number for place, offset in self.group_offsets.items() if offset}
        return frozenset(
            number
            for number, task in self.tasks.items()
            if number in worked and task.committed is None and task.complete and not task.unreadable
        )

    @cached_property
    def parked(self) -> Mapping[tuple[str | None, str], int]:
        """How many records are parked, by worker and entity; None for tasks without a worker."""
        found = Counter[tuple[str | None, str]]()
        for number, task in self.tasks.items():
            for entity, counts in task.checkpoint.counts.items():
                found[self.owners.get(number), entity] += counts.parked
        return found


def latest_checkpoint(messages: Iterable[Message]) -> TaskCheckpoint:
    """The newest readable checkpoint in the messages of one task, which come oldest first."""
    task = TaskCheckpoint()
    for message in reversed(list(messages)):
        # The rule of the workers: the report must show nothing that a worker would not accept.
        checkpoint = read_progress(message.key or b"", message.value or b"", message.partition)
        if task.committed is not None:
            task = with_earlier(task, message)
        elif checkpoint is not None:
            at = message.timestamp
            task = TaskCheckpoint(
                checkpoint,
                at,
                task.unreadable,
                unmoved_since=dict.fromkeys(ENTITIES, at),
                earliest=at,
            )
        else:
            task = msgspec.structs.replace(task, unreadable=task.unreadable + 1)
    return task


def with_earlier(task: TaskCheckpoint, message: Message) -> TaskCheckpoint:
    """The checkpoint of a task, extended by what an earlier message of the task shows.

    Positions only grow: if an earlier position is the same, it has not moved in between.
    """
    checkpoint = read_progress(message.key or b"", message.value or b"", message.partition)
    if checkpoint is None:
        return task
    same = {e for e in ENTITIES if _reached(checkpoint, e) == _reached(task.checkpoint, e)}
    unmoved = {**task.unmoved_since, **dict.fromkeys(same, message.timestamp)}
    return msgspec.structs.replace(task, unmoved_since=unmoved, earliest=message.timestamp)


def unread(answers: BrokerAnswers) -> dict[Partition, int]:
    """The inputs that are not read to their end, each with the next offset to read."""
    found = {}
    for number, task in answers.tasks.items():
        for entity in ENTITIES:
            partition = Partition(answers.names.input(entity), number)
            position = _next_offset(answers, partition, entity, task.checkpoint)
            if partition in answers.spans and position < answers.spans[partition].end:
                found[partition] = position
    return found


def _next_offset(
    answers: BrokerAnswers, partition: Partition, entity: str, checkpoint: Checkpoint
) -> int:
    """The next offset to read of an input. Of a topic created anew, nothing has been read.

    If a topic has lost records that had been read, its worker goes on at its end.
    """
    span = answers.spans.get(partition, OffsetRange(0, 0))
    if partition.number in answers.without_progress:
        return span.start
    known = checkpoint.topics.get(entity)
    position = checkpoint.next.get(entity, 0)
    if known and known != answers.identities.get(partition.topic):
        return span.start
    if position > span.end:
        return span.end if known else span.start
    # The group's offset may lie behind a transaction marker, for which alone no task commits.
    committed = answers.group_offsets.get(partition, 0)
    return max(span.start, position, committed if committed <= span.end else 0)


def _reached(checkpoint: Checkpoint, entity: str) -> tuple[int, str]:
    """The next offset of an input, and the identity of its topic."""
    return checkpoint.next.get(entity, 0), checkpoint.topics.get(entity, "")
