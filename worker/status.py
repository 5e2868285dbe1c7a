"""What `buddy status` says: the tasks' own books, and who is there to work, made into figures.

Pure: the shell (`worker.cli.status`) asks the broker. What a task has read, accepted, deleted,
rejected and parked stands in its progress, written in the same transaction as the outcomes, so the
counts are exact on every broker. What is still to be read is a difference of offsets: on Kafka
transaction markers count as well, so there it is an upper bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

import msgspec
from msgspec.structs import asdict

from schemas import ENTITIES
from worker.brokers.contract import GroupMember, Message, Partition, Span
from worker.core.barrier import Counts, Progress
from worker.core.internal import read_progress
from worker.topics import Names

STALLED_MS: Final = 30_000
"""A task is stalled when it has committed nothing for so long, while a record has waited for it
for as long."""

_MOST_NAMED: Final = 8

_NOTHING: Final = Progress({}, {})


class Entry(msgspec.Struct, frozen=True):
    """The newest readable progress of a task, and when it was committed."""

    book: Progress = _NOTHING
    committed: int | None = None
    unreadable: int = 0
    """How many messages behind it are no progress of this task."""
    complete: bool = True
    """Whether there is nothing newer that could not be read."""

    @property
    def counted(self) -> bool:
        """Whether it says what the task has done. One that has saved nothing has done nothing."""
        return self.book.has_books or self.committed is None


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """All that the broker was asked for."""

    names: Names
    at: int
    """When, in milliseconds since 1970."""
    entries: Mapping[int, Entry]
    """By task."""
    spans: Mapping[Partition, Span]
    """Of the inputs, as far as they are committed."""
    ends: Mapping[Partition, int]
    """Their ends with open transactions."""
    told: Mapping[Partition, int]
    """The offsets that the workers' group has committed."""
    identities: Mapping[str, str]
    workers: Sequence[GroupMember]
    sinks: Sequence[GroupMember] | None
    """None if this user may not know."""
    exact: bool
    """Whether offsets count records alone."""


class Figures(msgspec.Struct, frozen=True):
    """Of one entity. `lag` is what is still to be read.

    `blocked` is what nobody can read yet: it lies in or behind a transaction that is still open.
    What has been counted is None where a task has kept no books: an earlier release saved it.
    """

    read: int | None
    accepted: int | None
    deleted: int | None
    rejected: int | None
    parked: int | None
    lag: int
    blocked: int


class TaskState(msgspec.Struct, frozen=True):
    """Of one task. `owner` is a member of the group, `worker` is who committed last.

    Unless `complete`, its progress could not be read to the end: there may be a newer one.
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
    """A live worker, and the tasks that the group has given it."""

    name: str
    tasks: list[int]


class Sink(msgspec.Struct, frozen=True):
    """A live sink. Of a pair the active one answers requests."""

    name: str
    active: bool


class Report(msgspec.Struct, frozen=True):
    """All of it, as `--json` prints it."""

    entities: dict[str, Figures]
    tasks: list[TaskState]
    workers: list[Working]
    sinks: list[Sink] | None
    oldest_parked: str | None
    incidents: dict[str, int]
    unreadable_progress: int
    lag_is_exact: bool


def entry_of(messages: Iterable[Message]) -> Entry:
    """The newest readable progress among the messages of one task, oldest first."""
    unreadable = 0
    for message in reversed(list(messages)):
        # By the rule of the workers, so that nobody is told what no worker believes.
        book = read_progress(message.key or b"", message.value or b"", message.partition)
        if book is not None:
            return Entry(book, message.timestamp, unreadable)
        unreadable += 1
    return Entry(unreadable=unreadable)


def unread(seen: Seen) -> dict[Partition, int]:
    """The inputs that are not read to their end: what of each is read next."""
    found = {}
    for number, entry in seen.entries.items():
        for entity in ENTITIES:
            place = Partition(seen.names.inputs(entity), number)
            position = _position(seen, place, entity, entry.book)
            if place in seen.spans and position < seen.spans[place].end:
                found[place] = position
    return found


def is_quiet(seen: Seen, task: int) -> bool:
    """Whether the task has committed nothing for `STALLED_MS`, or never."""
    committed = seen.entries[task].committed
    return committed is None or seen.at - committed >= STALLED_MS


def stalled(seen: Seen, waiting: Mapping[Partition, int | None]) -> dict[int, int]:
    """The tasks that nobody works at though records wait: for how many milliseconds, by task.

    `waiting` says since when the first unread record of an input has been there, None if that is
    not known.
    """
    found: dict[int, int] = {}
    for place, since in waiting.items():
        if is_quiet(seen, place.number):
            waited = STALLED_MS if since is None else seen.at - since
            if waited >= STALLED_MS:
                found[place.number] = max(waited, found.get(place.number, 0))
    return found


def trouble(
    seen: Seen, lag: int, stalled: Mapping[int, int], services: Iterable[str]
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
            tasks = ", ".join(map(str, sorted(stalled)[:_MOST_NAMED]))
            more = f" and {len(stalled) - _MOST_NAMED} more" if len(stalled) > _MOST_NAMED else ""
            seconds = max(stalled.values()) // 1000
            return (
                f"nobody reduces the lag of task {tasks}{more}: a record has waited for {seconds} s"
                " and nothing was committed meanwhile: look at the workers' log"
            )
    return None


def report(seen: Seen, lags: Mapping[Partition, int]) -> Report:
    """What is told. `lags` is how much of each input is still to be read."""
    owners = {number: member.name for member in seen.workers for number in member.numbers}
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
        unreadable_progress=sum(entry.unreadable for entry in seen.entries.values()),
        lag_is_exact=seen.exact or not any(lags.values()),
    )


def _by_name(members: Iterable[GroupMember]) -> list[GroupMember]:
    """A broker lists members in any order: what is told must not depend on it."""
    return sorted(members, key=lambda member: member.name)


def time_of(milliseconds: int | None) -> str | None:
    """A moment as people and programs are told, in UTC."""
    if milliseconds is None:
        return None
    try:
        return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
    except (ValueError, OverflowError, OSError):
        return None  # no clock ever said so


def _figures(seen: Seen, entity: str, lags: Mapping[Partition, int]) -> Figures:
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


def _position(seen: Seen, place: Partition, entity: str, book: Progress) -> int:
    """What of an input is read next. Of a topic that was made anew, nothing has been read."""
    span = seen.spans.get(place, Span(0, 0))
    known = book.topics.get(entity)
    position = book.next.get(entity, 0)
    if (known and known != seen.identities.get(place.topic)) or position > span.end:
        return span.start
    told = seen.told.get(place, 0)  # also past a transaction marker that is not worth a commit
    return max(span.start, position, told if told <= span.end else 0)
