"""The report of `buddy status`, computed from the tasks' checkpoints and the group members.

Pure: the shell (`worker.cli.status`) asks the broker. A checkpoint holds the task's counts of
records read, accepted, deleted, rejected and parked. It is written in the same transaction as the
outcomes, so the counts are exact on every broker. The lag is a difference of offsets: on Kafka it
includes transaction markers, so there it is an upper bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec.structs import asdict

from schemas import ENTITIES
from worker.core.checkpoint import Checkpoint, Counts
from worker.core.internal import read_progress
from worker.core.topics import Names
from worker.stream import GroupMember, Message, OffsetRange, Partition

STALLED_MS: Final = 30_000
"""An input is stalled if its position has not moved for this long, while a record has waited there
as long. Commits of its task do not count: it may judge parked records, or other inputs."""

_OLD_MS: Final = 10_000
"""Unread users or matches that have waited this long are a backlog, and are read first."""

_FIRST: Final = ("users", "matches")
"""Entities read before the others, in this order. Each has its own room for parked records."""

_MOST_NAMED: Final = 8

_NOTHING: Final = Checkpoint({}, {})


class Entry(msgspec.Struct, frozen=True):
    """The newest readable checkpoint of a task, and when it was committed.

    `still` tells, by entity, since when earlier checkpoints show the same position. `first` is the
    time of the earliest checkpoint read.
    """

    book: Checkpoint = _NOTHING
    committed: int | None = None
    unreadable: int = 0
    """How many newer messages are not a checkpoint of this task."""
    complete: bool = True
    """Whether every newer message could be read."""
    still: Mapping[str, int] = {}
    first: int | None = None

    @property
    def counted(self) -> bool:
        """Whether the counts are known. A task that never committed has done nothing."""
        return self.book.has_books or self.committed is None


class BrokerAnswers(msgspec.Struct, frozen=True, kw_only=True):
    """All answers of the broker."""

    names: Names
    at: int
    """When, in milliseconds since 1970."""
    entries: Mapping[int, Entry]
    """By task."""
    spans: Mapping[Partition, OffsetRange]
    """The offset ranges of the inputs, committed messages only."""
    ends: Mapping[Partition, int]
    """The ends of the inputs, open transactions included."""
    told: Mapping[Partition, int]
    """The offsets that the workers' group has committed."""
    identities: Mapping[str, str]
    workers: Sequence[GroupMember]
    sinks: Sequence[GroupMember] | None
    """None if this user lacks the right to ask."""
    exact: bool
    """Whether offsets count nothing but records."""
    skipped: Mapping[Partition, int] = {}
    """Damaged offsets that an operator had skipped."""
    grace_ms: int = 0


class Figures(msgspec.Struct, frozen=True):
    """The figures of one entity. `lag` counts records still to be read.

    `blocked` counts offsets that cannot be read yet: they are in or after an open transaction. The
    counts of outcomes are None if the checkpoint of a task has none: an earlier release wrote it.
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

    Unless `complete`, its checkpoints could not be read to the end: a newer one may exist.
    """

    task: int
    owner: str | None
    worker: str | None
    since: str | None
    committed: str | None
    parked: int | None
    lag: int
    complete: bool


class Working(msgspec.Struct, frozen=True):
    """A live worker, and the tasks that the group assigns to it."""

    name: str
    tasks: list[int]


class Sink(msgspec.Struct, frozen=True):
    """A live sink. Of a pair, the active one answers requests."""

    name: str
    active: bool


class Report(msgspec.Struct, frozen=True):
    """The whole report, as `--json` prints it."""

    entities: dict[str, Figures]
    tasks: list[TaskState]
    workers: list[Working]
    sinks: list[Sink] | None
    oldest_parked: str | None
    incidents: dict[str, int]
    skipped: dict[str, int]
    """By topic, damaged offsets that an operator had skipped and that have not expired since."""
    unreadable_progress: int
    lag_is_exact: bool


def entry_of(messages: Iterable[Message]) -> Entry:
    """The newest readable checkpoint in the messages of one task, which come oldest first."""
    entry = Entry()
    for message in reversed(list(messages)):
        # The rule of the workers: the report must show nothing that a worker would not accept.
        book = read_progress(message.key or b"", message.value or b"", message.partition)
        if entry.committed is not None:
            entry = earlier(entry, message)
        elif book is not None:
            at = message.timestamp
            entry = Entry(book, at, entry.unreadable, still=dict.fromkeys(ENTITIES, at), first=at)
        else:
            entry = msgspec.structs.replace(entry, unreadable=entry.unreadable + 1)
    return entry


def earlier(entry: Entry, message: Message) -> Entry:
    """The entry, extended by an earlier message of the same task.

    Positions only grow: if an earlier position is the same, it has not moved in between.
    """
    book = read_progress(message.key or b"", message.value or b"", message.partition)
    if book is None:
        return entry
    same = {e for e in ENTITIES if _place(book, e) == _place(entry.book, e)}
    still = {**entry.still, **dict.fromkeys(same, message.timestamp)}
    return msgspec.structs.replace(entry, still=still, first=message.timestamp)


def unread(seen: BrokerAnswers) -> dict[Partition, int]:
    """The inputs that are not read to their end, each with the next offset to read."""
    found = {}
    for number, entry in seen.entries.items():
        for entity in ENTITIES:
            place = Partition(seen.names.inputs(entity), number)
            position = _position(seen, place, entity, entry.book)
            if place in seen.spans and position < seen.spans[place].end:
                found[place] = position
    return found


def may_be_still(seen: BrokerAnswers, place: Partition) -> bool:
    """Whether an input may stand still: no checkpoint read so far shows a recent move."""
    entry = seen.entries[place.number]
    since = _still_since(seen, place)
    return entry.first is None or since == entry.first or seen.at - since >= _patience(seen, place)


def undecided(seen: BrokerAnswers, waiting: Mapping[Partition, int | None]) -> set[int]:
    """The tasks whose earlier checkpoints are needed to tell whether an input stands still."""
    return {
        place.number
        for place, since in waiting.items()
        if (first := seen.entries[place.number].first) is not None
        and may_be_still(seen, place)
        and seen.at - first < _patience(seen, place) <= _waited(seen, place, since)
    }


def stalled(seen: BrokerAnswers, waiting: Mapping[Partition, int | None]) -> dict[Partition, int]:
    """The inputs that no worker reads although records wait, each with the wait in milliseconds.

    `waiting` tells since when the first unread record of an input has been there; None if unknown.
    An input that waits its turn, behind users or matches that are being read, is not stalled.
    """
    still = {
        place for place in waiting if seen.at - _still_since(seen, place) >= _patience(seen, place)
    }
    owners = _owners(seen)
    turns: dict[str | None, int] = {}
    """By worker, the first level of inputs that has a backlog and is being read."""
    for place, since in waiting.items():
        if place not in still and (since is None or seen.at - since >= _OLD_MS):
            owner = owners.get(place.number)
            turns[owner] = min(_level(seen, place), turns.get(owner, len(_FIRST)))
    return {
        place: waited
        for place in still
        if (waited := _waited(seen, place, waiting[place])) >= _patience(seen, place)
        and _level(seen, place) <= turns.get(owners.get(place.number), len(_FIRST))
    }


def trouble(
    seen: BrokerAnswers, lag: int, stalled: Mapping[Partition, int], services: Iterable[str]
) -> str | None:
    """Why one of the services does not work, in one line; None if all is well."""
    for service in services:
        there = seen.workers if service == "worker" else seen.sinks
        if there is None:
            group = f"{seen.names.prefix}-{service}"
            return f"whether a {service} runs is unknown: grant this user DESCRIBE on group {group}"
        if not there:
            left = f"; {lag} records are to be read" if lag and service == "worker" else ""
            return f"no {service} is running: start 'buddy {service}' or 'buddy run'{left}"
        if service == "worker" and stalled:
            return _not_reduced(seen, stalled)
    return None


def report(seen: BrokerAnswers, lags: Mapping[Partition, int]) -> Report:
    """The report. `lags` is how much of each input is still to be read."""
    owners = _owners(seen)
    books = [entry.book for entry in seen.entries.values()]
    stamps = [book.oldest for book in books if book.oldest]
    incidents: Counter[str] = Counter()
    for book in books:
        incidents.update(book.incidents)
    return Report(
        entities={entity: _figures(seen, entity, lags) for entity in ENTITIES},
        tasks=[
            TaskState(
                task=number,
                owner=owners.get(number),
                worker=entry.book.worker or None,
                since=time_of(entry.book.since or None),
                committed=time_of(entry.committed),
                parked=sum(counts.parked for counts in entry.book.counts.values())
                if entry.counted
                else None,
                lag=sum(lag for place, lag in lags.items() if place.number == number),
                complete=entry.complete,
            )
            for number, entry in sorted(seen.entries.items())
        ],
        workers=[Working(one.name, sorted(one.numbers)) for one in _by_name(seen.workers)],
        sinks=None
        if seen.sinks is None
        else [Sink(one.name, bool(one.numbers)) for one in _by_name(seen.sinks)],
        oldest_parked=time_of(min(stamps, default=None)),
        incidents={kind: count for kind, count in sorted(incidents.items()) if count},
        skipped=_skipped(seen),
        unreadable_progress=sum(entry.unreadable for entry in seen.entries.values()),
        lag_is_exact=seen.exact or not any(lags.values()),
    )


def _not_reduced(seen: BrokerAnswers, stalled: Mapping[Partition, int]) -> str:
    """One line: the tasks whose lag no worker reduces, and the likely reason."""
    numbers = sorted({place.number for place in stalled})
    tasks = ", ".join(map(str, numbers[:_MOST_NAMED]))
    more = f" and {len(numbers) - _MOST_NAMED} more" if len(numbers) > _MOST_NAMED else ""
    place = max(sorted(stalled), key=lambda place: stalled[place])
    entry = seen.entries[place.number]
    if entry.committed is None or seen.at - entry.committed >= STALLED_MS:
        why = "nothing was committed meanwhile: look at the workers' log"
    elif parked := _parked_beside(seen, place):
        why = (
            f"{parked} records of its kind are parked: the input may be paused until they have"
            " verdicts, see 'Back-pressure' in docs/operations/running.md"
        )
    else:
        why = "its position has not moved, though the task commits: look at the workers' log"
    return (
        f"nobody reduces the lag of task {tasks}{more}: a record has waited for"
        f" {stalled[place] // 1000} s in {place.topic}/{place.number}, and {why}"
    )


def _owners(seen: BrokerAnswers) -> dict[int, str]:
    """By task, the worker to which the group assigns it."""
    return {number: member.name for member in seen.workers for number in member.numbers}


def _skipped(seen: BrokerAnswers) -> dict[str, int]:
    found: Counter[str] = Counter()
    for place, count in seen.skipped.items():
        found[place.topic] += count
    return {name: found[name] for name in seen.names.every() if found[name]}


def _waited(seen: BrokerAnswers, place: Partition, since: int | None) -> int:
    """How long the first unread record has waited; if unknown, long enough to be stalled."""
    return _patience(seen, place) if since is None else seen.at - since


def _patience(seen: BrokerAnswers, place: Partition) -> int:
    """How long an input may stand still; plus the grace if parked records may pause it."""
    return STALLED_MS + (seen.grace_ms if _parked_beside(seen, place) else 0)


def _still_since(seen: BrokerAnswers, place: Partition) -> int:
    """Since when at least the position has not moved; 0 if nothing was ever committed."""
    entry = seen.entries[place.number]
    return entry.still.get(seen.names.entity_of(place.topic), entry.committed or 0)


def _parked_beside(seen: BrokerAnswers, place: Partition) -> int:
    """How many parked records share the room for parked records of this input."""
    counts = seen.entries[place.number].book.counts
    inputs = {entity: Partition(seen.names.inputs(entity), place.number) for entity in counts}
    level = _level(seen, place)
    return sum(c.parked for e, c in counts.items() if _level(seen, inputs[e]) == level)


def _level(seen: BrokerAnswers, place: Partition) -> int:
    """The level of an input: 0 for users, 1 for matches, 2 for the rest, which are read last."""
    entity = seen.names.entity_of(place.topic)
    return _FIRST.index(entity) if entity in _FIRST else len(_FIRST)


def _place(book: Checkpoint, entity: str) -> tuple[int, str]:
    """The next offset of an input, and the identity of its topic."""
    return book.next.get(entity, 0), book.topics.get(entity, "")


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


def _figures(seen: BrokerAnswers, entity: str, lags: Mapping[Partition, int]) -> Figures:
    counts: Counter[str] = Counter()
    for entry in seen.entries.values():
        counts.update(asdict(entry.book.counts.get(entity, Counts())))
    counted = all(entry.counted for entry in seen.entries.values())
    topic = seen.names.inputs(entity)
    return Figures(
        **{name: counts[name] if counted else None for name in Counts.__struct_fields__},
        lag=sum(lag for place, lag in lags.items() if place.topic == topic),
        blocked=sum(
            end - seen.spans[place].end
            for place, end in seen.ends.items()
            if place.topic == topic and place in seen.spans
        ),
    )


def _position(seen: BrokerAnswers, place: Partition, entity: str, book: Checkpoint) -> int:
    """The next offset to read of an input. Of a topic created anew, nothing has been read."""
    span = seen.spans.get(place, OffsetRange(0, 0))
    known = book.topics.get(entity)
    position = book.next.get(entity, 0)
    if (known and known != seen.identities.get(place.topic)) or position > span.end:
        return span.start
    told = seen.told.get(place, 0)  # may have passed a marker, which no task commits alone
    return max(span.start, position, told if told <= span.end else 0)
