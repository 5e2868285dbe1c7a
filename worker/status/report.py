"""The report of `buddy status`, computed from the answers of the broker."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

import msgspec
from msgspec.structs import asdict

from schemas import ENTITIES
from worker.core.checkpoint import Counts
from worker.status.broker_answers import BrokerAnswers
from worker.stream import GroupMember, Partition


class Figures(msgspec.Struct, frozen=True):
    """The figures of one entity. `lag` counts records still to be read.

    `blocked` counts offsets that cannot be read yet: they are in or after an open transaction. The
    counts of outcomes are None if the checkpoint of a task is lost, or is of an earlier release.
    """

    read: int | None
    accepted: int | None
    deleted: int | None
    rejected: int | None
    parked: int | None
    lag: int
    blocked: int


class TaskState(msgspec.Struct, frozen=True):
    """The state of one task. `owner` is a member of the group; `worker` committed last.

    Unless `complete`, its checkpoints could not be read to the end: a newer one may exist. If it
    `begins_again`, it has worked, and its checkpoint is lost.
    """

    task: int
    owner: str | None
    worker: str | None
    since: str | None
    committed: str | None
    parked: int | None
    lag: int
    complete: bool
    begins_again: bool


class LiveWorker(msgspec.Struct, frozen=True):
    """A live worker, and the tasks that the group assigns to it."""

    name: str
    tasks: list[int]


class LiveSink(msgspec.Struct, frozen=True):
    """A live sink. Of a pair, the active one answers requests."""

    name: str
    active: bool


class Report(msgspec.Struct, frozen=True):
    """The whole report, as `--json` prints it."""

    entities: dict[str, Figures]
    tasks: list[TaskState]
    workers: list[LiveWorker]
    sinks: list[LiveSink] | None
    oldest_parked: str | None
    incidents: dict[str, int]
    skipped: dict[str, int]
    """By topic, damaged offsets that an operator had skipped and that have not expired since."""
    unreadable_progress: int
    lag_is_exact: bool


def report(answers: BrokerAnswers, lags: Mapping[Partition, int]) -> Report:
    """The report. `lags` is how much of each input is still to be read."""
    owners = answers.owners
    checkpoints = [task.checkpoint for task in answers.tasks.values()]
    stamps = [checkpoint.oldest for checkpoint in checkpoints if checkpoint.oldest]
    incidents: Counter[str] = Counter()
    for checkpoint in checkpoints:
        incidents.update(checkpoint.incidents)
    return Report(
        entities={entity: _figures(answers, entity, lags) for entity in ENTITIES},
        tasks=[
            TaskState(
                task=number,
                owner=owners.get(number),
                worker=task.checkpoint.worker or None,
                since=time_of(task.checkpoint.since or None),
                committed=time_of(task.committed),
                parked=sum(counts.parked for counts in task.checkpoint.counts.values())
                if task.counted and number not in answers.without_progress
                else None,
                lag=sum(lag for partition, lag in lags.items() if partition.number == number),
                complete=task.complete,
                begins_again=number in answers.without_progress,
            )
            for number, task in sorted(answers.tasks.items())
        ],
        workers=[LiveWorker(one.name, sorted(one.numbers)) for one in _by_name(answers.workers)],
        sinks=None
        if answers.sinks is None
        else [LiveSink(one.name, bool(one.numbers)) for one in _by_name(answers.sinks)],
        oldest_parked=time_of(min(stamps, default=None)),
        incidents={kind: count for kind, count in sorted(incidents.items()) if count},
        skipped=_skipped(answers),
        unreadable_progress=sum(task.unreadable for task in answers.tasks.values()),
        lag_is_exact=answers.exact or not any(lags.values()),
    )


def _figures(answers: BrokerAnswers, entity: str, lags: Mapping[Partition, int]) -> Figures:
    counts: Counter[str] = Counter()
    for task in answers.tasks.values():
        counts.update(asdict(task.checkpoint.counts.get(entity, Counts())))
    counted = all(task.counted for task in answers.tasks.values()) and not answers.without_progress
    topic = answers.names.input(entity)
    return Figures(
        **{name: counts[name] if counted else None for name in Counts.__struct_fields__},
        lag=sum(lag for partition, lag in lags.items() if partition.topic == topic),
        blocked=sum(
            max(0, end - answers.spans[partition].end)  # the ends were asked for first
            for partition, end in answers.ends.items()
            if partition.topic == topic and partition in answers.spans
        ),
    )


def _skipped(answers: BrokerAnswers) -> dict[str, int]:
    found: Counter[str] = Counter()
    for partition, count in answers.skipped.items():
        found[partition.topic] += count
    return {name: found[name] for name in answers.names.every() if found[name]}


def _by_name(members: Iterable[GroupMember]) -> list[GroupMember]:
    """Sort members by name: brokers list them in any order, the report must be stable."""
    return sorted(members, key=lambda member: member.name)


def time_of(milliseconds: int | None) -> str | None:
    """A time in UTC for people and programs; None if it is unknown or out of range."""
    if milliseconds is None:
        return None
    try:
        return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return None  # out of range: no clock gave this time
