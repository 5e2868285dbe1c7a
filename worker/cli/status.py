"""`buddy status`: shows workers, sinks, positions, counts and schedules."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import click
import msgspec

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.brokers.tables import read_checked
from worker.cli.console import Context, print_json, print_table, say, short_time
from worker.cli.settings import Settings
from worker.core.topics import Names
from worker.engine.latest import read_last
from worker.engine.startup import check_topics
from worker.errors import BrokerUnavailable, DamagedLog, NobodyWorks
from worker.sink.agenda import Standing, read_standing, upcoming
from worker.status import (
    BrokerAnswers,
    Entry,
    Report,
    earlier,
    entry_of,
    may_be_still,
    report,
    stalled,
    trouble,
    undecided,
    unread,
)
from worker.stream import GroupMember, Message, OffsetRange, Partition

_NEAR: Final = 20
"""Offsets to read at the end of a task's checkpoint partition. The newest checkpoint is there,
unless other programs write to the topic."""

_FAR: Final = 20_000
"""Offsets up to which earlier checkpoints are searched, back from the end."""

_LOOK_SECONDS: Final = 2.0
"""Seconds to look for the next messages, if tasks may be stalled."""


class Run(msgspec.Struct, frozen=True):
    """The last and the next slot of a schedule. An export may begin later than its slot."""

    cron: str
    last: str | None
    export: str | None
    next: str


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
@click.option("--quiet", is_flag=True, help="Print only problems.")
@click.option(
    "--service",
    "services",
    multiple=True,
    type=click.Choice(["worker", "sink"]),
    default=["worker"],
    help="Service that must be running (default: worker). Repeatable.",
)
@click.pass_obj
def status_command(context: Context, as_json: bool, quiet: bool, services: tuple[str, ...]) -> int:
    """Show workers, sinks, positions, counts, and the last and next run of each schedule.

    The exit code is 0 if the services of --service work. It is 8 if one is not running, or if
    records have waited for 30 s in an input whose position does not move. The command creates no
    topics and no files.
    """
    found, runs, wrong, damage = asyncio.run(_look(context, services))
    if as_json:
        settings = context.settings
        head = {
            "broker": settings.broker,
            "prefix": settings.prefix,
            "trouble": wrong,
            "damage": damage,
        }
        print_json({**head, **msgspec.structs.asdict(found), "schedules": runs})
    elif not quiet:
        _print(context.settings, found, runs)
        for line in damage:
            say(f"Damage: {line}")
    if wrong is not None:
        raise NobodyWorks(wrong)
    return 0


async def _look(
    context: Context, services: Collection[str]
) -> tuple[Report, dict[str, Run], str | None, list[str]]:
    settings, names = context.settings, context.names
    async with context.broker(looks=True) as broker:
        tasks = await check_topics(broker, names, settings.max_record_bytes)
        seen, runs = await asyncio.gather(
            _see(broker, settings, tasks),
            _runs(broker, names, settings),
        )
        positions = unread(seen)
        doubtful = any(may_be_still(seen, place) for place in positions)
        waiting = await _first_unread(broker, positions, seen.spans) if doubtful else {}
        seen = await _look_back(broker, seen, waiting)
        damage = await broker.damage()
    lags = {
        place: seen.spans[place].end - at
        for place, at in positions.items()
        if place in waiting or not doubtful
    }
    late = stalled(seen, waiting)
    return report(seen, lags), runs, trouble(seen, sum(lags.values()), late, services), damage


async def _see(broker: Broker, settings: Settings, tasks: int) -> BrokerAnswers:
    names = Names(settings.prefix)
    topics = [names.inputs(entity) for entity in ENTITIES]
    inputs = [Partition(topic, number) for topic in topics for number in range(tasks)]
    group = f"{names.prefix}-worker"
    (entries, told, spans, ends), (identities, workers, sinks, skipped) = await asyncio.gather(
        asyncio.gather(
            _entries(broker, names, tasks),
            broker.committed(group, inputs),
            broker.spans(inputs),
            broker.spans(inputs, uncommitted=True),
        ),
        asyncio.gather(
            broker.identities(topics),
            broker.members(group),
            _members_if_allowed(broker, f"{names.prefix}-sink"),
            broker.skipped(),
        ),
    )
    return BrokerAnswers(
        names=names,
        at=time.time_ns() // 1_000_000,
        entries=entries,
        spans=spans,
        ends={place: span.end for place, span in ends.items()},
        told=told,
        identities=identities,
        workers=workers,
        sinks=sinks,
        exact=settings.broker.startswith("embedded:"),
        skipped=skipped,
        grace_ms=int(settings.grace_seconds * 1000),
    )


async def _entries(broker: Broker, names: Names, tasks: int) -> dict[int, Entry]:
    """The newest checkpoint of each task. A whole partition is read only if its end holds none."""
    places = [Partition(names.progress, number) for number in range(tasks)]
    found, stuck = await read_last(broker, places, _NEAR)
    entries = {place.number: entry_of(messages) for place, messages in found.items()}
    rest = [p for p in places if entries[p.number].committed is None and p not in stuck]
    if rest:
        found, more = await read_last(broker, rest, 2**62)
        entries |= {place.number: entry_of(messages) for place, messages in found.items()}
        stuck += more
    for place in stuck:
        entries[place.number] = msgspec.structs.replace(entries[place.number], complete=False)
    return entries


async def _look_back(
    broker: Broker, seen: BrokerAnswers, waiting: Mapping[Partition, int | None]
) -> BrokerAnswers:
    """Read earlier checkpoints, up to `_FAR`, until they show whether positions move."""
    back = _NEAR
    spans: Mapping[Partition, OffsetRange] = {}
    while (tasks := undecided(seen, waiting)) and back < _FAR:
        places = [Partition(seen.names.progress, number) for number in tasks]
        spans = spans or await broker.spans(places)
        if all(span.end - span.start <= back for span in spans.values()):
            break
        back *= 2
        positions = {p: max(spans[p].start, spans[p].end - back) for p in places}
        found, _ = await _next(broker, positions, spans)
        read = {place.number: earlier(seen.entries[place.number], m) for place, m in found.items()}
        seen = msgspec.structs.replace(seen, entries={**seen.entries, **read})
    return seen


async def _members_if_allowed(broker: Broker, group: str) -> list[GroupMember] | None:
    """The members, or None if refused: watching workers needs no right on the sinks' group."""
    try:
        return await broker.members(group)
    except BrokerUnavailable:
        return None


async def _first_unread(
    broker: Broker, positions: Mapping[Partition, int], spans: Mapping[Partition, OffsetRange]
) -> dict[Partition, int | None]:
    """The append time of the first unread record of each input; None if the time is unknown.

    An input with only transaction markers left is not in the result.
    """
    found, left = await _next(broker, positions, spans)
    since = {place: m.timestamp if m.appended else None for place, m in found.items()}
    return {**since, **dict.fromkeys(left)}


async def _next(
    broker: Broker, positions: Mapping[Partition, int], spans: Mapping[Partition, OffsetRange]
) -> tuple[dict[Partition, Message], set[Partition]]:
    """The next message of each partition, and the unread partitions that gave none for 2 s."""
    found: dict[Partition, Message] = {}
    left = set(positions)
    if not left:
        return found, left
    loop = asyncio.get_running_loop()
    deadline = loop.time() + _LOOK_SECONDS
    reader = broker.reader()
    reader.assign(positions)
    try:
        while left and loop.time() < deadline:
            for message in await reader.read(1_000, 0.1, positions.keys() - left):
                found.setdefault(Partition(message.topic, message.partition), message)
            left = {p for p in left - found.keys() if reader.position(p) < spans[p].end}
    finally:
        await reader.close()
    return found, left


async def _runs(broker: Broker, names: Names, settings: Settings) -> dict[str, Run]:
    if not settings.schedules:
        return {}
    try:
        table = await read_checked(broker, Partition(names.schedules, 0), read_standing)
    except DamagedLog:  # reported with the other damage
        return {}
    now = datetime.now(UTC)
    runs = {}
    for schedule in settings.schedules:
        standing = table.rows.get(schedule.name.encode(), Standing(now))
        runs[schedule.name] = Run(
            schedule.cron,
            None if standing.made is None else _time(standing.made),
            standing.export,
            _time(upcoming(schedule, standing)),
        )
    return runs


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


def _print(settings: Settings, found: Report, runs: Mapping[str, Run]) -> None:
    entities = {name: msgspec.structs.asdict(figures) for name, figures in found.entities.items()}
    held_up = any(figures["blocked"] for figures in entities.values())
    counted = ("read", "accepted", "deleted", "rejected", "parked", "lag")
    shown = (*counted, "blocked") if held_up else counted
    titles = {"lag": "to be read", "blocked": "in open transactions"}
    print_table(
        f"{settings.broker}, prefix {settings.prefix}",
        ("entity", *(titles.get(column, column) for column in shown)),
        [
            (name, *("unknown" if figures[c] is None else figures[c] for c in shown))
            for name, figures in entities.items()
        ],
        "" if found.lag_is_exact else "to be read: at most so many, transaction markers count, too",
        whole=("entity",),
    )
    print_table(
        "Tasks",
        ("task", "owner", "last worker", "since", "last commit", "parked", "to be read"),
        [
            (
                str(task.task),
                task.owner or "nobody",
                task.worker or "unknown",
                _short(task.since, "unknown"),
                _short(task.committed, "never"),
                "unknown" if task.parked is None else task.parked,
                task.lag,
            )
            for task in found.tasks
        ],
        "times in UTC",
        whole=("since", "last commit"),
    )
    for line in _lines(found):
        say(line)
    if runs:
        print_table(
            "Schedules, by the settings of this command",
            ("schedule", "cron", "last run", "next run"),
            [
                (name, run.cron, _short(run.last, "never"), _short(run.next, ""))
                for name, run in runs.items()
            ],
            "times in UTC; a next run in the past is overdue",
        )


def _short(moment: str | None, absent: str) -> str:
    """A moment of a report, for people."""
    if moment is None:
        return absent
    return short_time(datetime.fromisoformat(moment), datetime.now(UTC))


def _lines(found: Report) -> list[str]:
    sinks: Any = found.sinks
    if sinks is None:
        sinks = "unknown: this user may not describe their group"
    else:
        sinks = ", ".join(f"{s.name}{' (active)' if s.active else ''}" for s in sinks) or "none"
    incidents = ", ".join(f"{kind} {count}" for kind, count in found.incidents.items())
    skipped = ", ".join(f"{topic} {count}" for topic, count in found.skipped.items())
    lines = [
        f"Workers: {', '.join(worker.name for worker in found.workers) or 'none'}",
        f"Sinks: {sinks}",
        f"Oldest parked record: {found.oldest_parked or 'none'}",
        f"Incidents: {incidents or 'none'}",
    ]
    if skipped:
        lines.append(f"Damaged offsets that were skipped, and are lost: {skipped}")
    lines += [
        f"Task {task.task}: internal.progress cannot be read to its end"
        for task in found.tasks
        if not task.complete
    ]
    if any(task.parked is None for task in found.tasks):
        lines.append(
            "Figures are unknown: an earlier release, which kept no books, saved a task's progress."
            " Start a worker"
        )
    if found.unreadable_progress:
        lines.append(f"Unreadable messages in internal.progress: {found.unreadable_progress}")
    return lines
