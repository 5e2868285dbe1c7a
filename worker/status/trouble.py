"""Whether the services work: finds inputs that stand still, and gives the reason in one line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final

from schemas import ENTITIES
from worker.status.broker_answers import BrokerAnswers
from worker.stream import Partition

STALLED_MS: Final = 30_000
"""An input is stalled if its position has not moved for this long, while a record has waited there
as long. Commits of its task do not count: it may judge parked records, or other inputs."""

_OLD_MS: Final = 10_000
"""Unread users or matches that have waited this long are a backlog, and are read first."""

_FIRST: Final = ("users", "matches")
"""Entities read before the others, in this order. Each has its own room for parked records."""

_MOST_NAMED: Final = 8


def may_be_still(answers: BrokerAnswers, partition: Partition) -> bool:
    """Whether an input may stand still: no checkpoint read so far shows a recent move."""
    task = answers.tasks[partition.number]
    since = _still_since(answers, partition)
    return (
        task.earliest is None
        or since == task.earliest
        or answers.at - since >= _patience(answers, partition)
    )


def undecided(answers: BrokerAnswers, waiting: Mapping[Partition, int | None]) -> set[int]:
    """The tasks whose earlier checkpoints decide whether an input stands still."""
    return {
        partition.number
        for partition, since in waiting.items()
        if (first := answers.tasks[partition.number].earliest) is not None
        and may_be_still(answers, partition)
        and answers.at - first < _patience(answers, partition) <= _waited(answers, partition, since)
    }


def stalled(
    answers: BrokerAnswers, waiting: Mapping[Partition, int | None]
) -> dict[Partition, int]:
    """The inputs that no worker reads although records wait, each with the wait in milliseconds.

    `waiting` has, by input, the append time of the first unread record; None if unknown.
    An input that waits its turn, behind users or matches that are being read, is not stalled.
    """
    still = {
        partition
        for partition in waiting
        if answers.at - _still_since(answers, partition) >= _patience(answers, partition)
    }
    owners = answers.owners
    turns: dict[str | None, int] = {}
    """By worker, the first level of inputs that has a backlog and is being read."""
    for partition, since in waiting.items():
        if partition not in still and (since is None or answers.at - since >= _OLD_MS):
            owner = owners.get(partition.number)
            turns[owner] = min(_level(answers, partition), turns.get(owner, len(_FIRST)))
    return {
        partition: waited
        for partition in still
        if (waited := _waited(answers, partition, waiting[partition]))
        >= _patience(answers, partition)
        and _level(answers, partition) <= turns.get(owners.get(partition.number), len(_FIRST))
    }


def trouble(
    answers: BrokerAnswers, lag: int, stalled: Mapping[Partition, int], services: Iterable[str]
) -> str | None:
    """Why one of the services does not work, in one line; None if all is well."""
    for service in services:
        there = answers.workers if service == "worker" else answers.sinks
        if there is None:
            group = f"{answers.names.prefix}-{service}"
            return f"whether a {service} runs is unknown: grant this user DESCRIBE on group {group}"
        if not there:
            left = f"; {lag} records are to be read" if lag and service == "worker" else ""
            return f"no {service} is running: start 'buddy {service}' or 'buddy run'{left}"
        if line := answers.strangers.get(service):
            return line
        if service == "worker" and stalled:
            return _not_reduced(answers, stalled)
        hidden = sorted(number for number, task in answers.tasks.items() if not task.complete)
        if service == "worker" and hidden:
            return (
                f"whether anybody works on task {_listed(hidden)} is unknown: its checkpoints in"
                " internal.progress cannot be read to their end, look at /ready of the workers"
            )
    return None


def _not_reduced(answers: BrokerAnswers, stalled: Mapping[Partition, int]) -> str:
    """One line: the tasks whose lag no worker reduces, and the likely reason."""
    numbers = sorted({partition.number for partition in stalled})
    partition = max(sorted(stalled), key=lambda partition: stalled[partition])
    parked = _parked_beside(answers, partition)
    if partition.number in answers.without_progress:
        why = (
            "its checkpoint in internal.progress is lost: if no worker writes one within seconds,"
            " look at the workers' log"
        )
    elif not _works(answers, partition, with_others=parked > 0):
        why = "nothing was committed meanwhile: look at the workers' log"
    elif parked:
        why = (
            f"{parked} records of its kind are parked in this worker: the input may be paused"
            " until they have verdicts, see 'Back-pressure' in docs/operations/running.md"
        )
    else:
        why = "its position has not moved, though the task commits: look at the workers' log"
    return (
        f"nobody reduces the lag of task {_listed(numbers)}: a record has waited for"
        f" {stalled[partition] // 1000} s in {partition.topic}/{partition.number}, and {why}"
    )


def _listed(numbers: Sequence[int]) -> str:
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    return f"{', '.join(map(str, numbers[:_MOST_NAMED]))}{more}"


def _works(answers: BrokerAnswers, partition: Partition, *, with_others: bool) -> bool:
    """Whether the input's task has committed lately, or with others any task of its worker.

    What other tasks have parked may pause all inputs of a task, which then commits nothing.
    """
    owner = answers.owners.get(partition.number)
    numbers = [n for n in answers.tasks if with_others and answers.owners.get(n) == owner]
    tasks = (answers.tasks[number] for number in (partition.number, *numbers))
    return any(t.committed is not None and answers.at - t.committed < STALLED_MS for t in tasks)


def _waited(answers: BrokerAnswers, partition: Partition, since: int | None) -> int:
    """How long the first unread record has waited; if unknown, long enough to be stalled."""
    return _patience(answers, partition) if since is None else answers.at - since


def _patience(answers: BrokerAnswers, partition: Partition) -> int:
    """How long an input may stand still; plus the grace if parked records may pause it."""
    return STALLED_MS + (answers.grace_ms if _parked_beside(answers, partition) else 0)


def _still_since(answers: BrokerAnswers, partition: Partition) -> int:
    """Since when at least the position has not moved; 0 if nothing was ever committed."""
    task = answers.tasks[partition.number]
    return task.unmoved_since.get(answers.names.entity_of(partition.topic), task.committed or 0)


def _parked_beside(answers: BrokerAnswers, partition: Partition) -> int:
    """How many parked records share the room of this input: those of all tasks of its worker."""
    owner, level = answers.owners.get(partition.number), _level(answers, partition)
    return sum(answers.parked.get((owner, e), 0) for e in ENTITIES if _level_of(e) == level)


def _level(answers: BrokerAnswers, partition: Partition) -> int:
    return _level_of(answers.names.entity_of(partition.topic))


def _level_of(entity: str) -> int:
    """The level of an entity: 0 for users, 1 for matches, 2 for the rest, which are read last."""
    return _FIRST.index(entity) if entity in _FIRST else len(_FIRST)
