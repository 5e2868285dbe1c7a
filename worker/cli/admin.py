"""`buddy topics create`, `status`, `reprocess`, `schema` and `config`."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from schemas import ENTITIES, json_schema
from worker.brokers.contract import Broker, Partition
from worker.cli.console import Context, print_json, print_table
from worker.engine.reprocess import reprocess
from worker.engine.startup import check_topics
from worker.engine.tables import read_table
from worker.errors import ConfigurationError, UsageError
from worker.settings import TABLES, shown
from worker.sink.agenda import Standing, read_standings, upcoming
from worker.topics import Names, complaints, wanted


@click.group("topics")
def topics_command() -> None:
    """Create the topics that everything else relies on."""


@topics_command.command("create")
@click.option("--partitions", type=click.IntRange(1, 1000), help="Of each input (default: 4).")
@click.option("--json", "as_json", is_flag=True, help="Print the names as JSON.")
@click.pass_obj
def create(context: Context, partitions: int | None, as_json: bool) -> int:
    """Create the topics that are missing; those that exist stay as they are."""
    settings = context.settings

    async def run() -> tuple[list[str], int, list[str]]:
        async with context.broker() as broker:
            count = partitions or settings.partitions
            topics = wanted(context.names, count, settings.max_record_bytes)
            created = await broker.create(topics.values())
            there = await broker.topics(topics)
            found = complaints(context.names, there, settings.max_record_bytes)
            return created, len(there), list(found)

    created, total, found = asyncio.run(run())
    if as_json:
        print_json({"created": created})
    else:
        click.echo(f"{len(created)} topics created, {total - len(created)} were there.")
    if found:
        raise ConfigurationError(found[0])
    return 0


@click.command("reprocess")
@click.argument("entity", type=click.Choice(list(ENTITIES)))
@click.option("--from-start", is_flag=True, help="All that the input still holds.")
@click.option("--offset", "places", multiple=True, metavar="PARTITION:OFFSET", help="Repeatable.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def reprocess_command(
    context: Context, entity: str, from_start: bool, places: tuple[str, ...], yes: bool
) -> int:
    """Have records of ENTITY judged again that have been judged already.

    Each of them gets a second outcome: rows are published again, rejections too. For a fault in
    the rules that has been mended; single rejections are better replayed.
    """
    if from_start == bool(places):
        raise click.UsageError("Say either --from-start or --offset PARTITION:OFFSET.")
    if not yes:
        click.confirm(f"Judge {entity} again, with a second outcome for each record?", abort=True)
    back = asyncio.run(_reprocess(context, entity, _places(places)))
    for number, count in sorted(back.items()):
        click.echo(f"partition {number}: {count} offsets back")
    return 0


def _places(places: tuple[str, ...]) -> dict[int, int]:
    found = {}
    for place in places:
        number, _, offset = place.partition(":")
        if not (number.isdecimal() and offset.isdecimal()):
            raise click.UsageError(f"{place!r} is not PARTITION:OFFSET, such as 0:1200.")
        found[int(number)] = int(offset)
    return found


async def _reprocess(context: Context, entity: str, places: dict[int, int]) -> dict[int, int]:
    names = context.names
    topic = names.inputs(entity)
    async with context.broker() as broker:
        tasks = await check_topics(broker, names, context.settings.max_record_bytes)
        spans = await broker.spans(Partition(topic, number) for number in range(tasks))
        starts = {partition.number: span.start for partition, span in spans.items()}
        unknown = sorted(places.keys() - starts.keys())
        if unknown:
            raise UsageError(f"{topic} has no partition {unknown[0]}: it has {len(starts)}")
        offsets = {n: max(offset, starts[n]) for n, offset in (places or starts).items()}
        return await reprocess(broker, names, entity, offsets)


@click.command("status")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
@click.option("--quiet", is_flag=True, help="Print nothing: the exit code says it all.")
@click.pass_obj
def status_command(context: Context, as_json: bool, quiet: bool) -> int:
    """Show how far the worker is, and when the schedules run.

    Records received, read and to be read, by entity; of each schedule the last and the next run.
    Exit code 0 if the broker can be reached and the topics are as they should be.
    """
    figures, runs = asyncio.run(_status(context))
    if quiet:
        return 0
    if as_json:
        print_json({"broker": context.settings.broker, "entities": figures, "schedules": runs})
        return 0
    columns = ("entity", "received", "read", "to be read", "rows", "rejections")
    print_table(
        f"{context.settings.broker}, prefix {context.settings.prefix}",
        columns,
        [
            (name, f["received"], f["read"], f["lag"], f["accepted"], f["rejected"])
            for name, f in figures.items()
        ],
        "rows counts versions and deletions still in the log",
    )
    if runs:
        print_table(
            "Schedules, by the settings of this command",
            ("schedule", "cron", "last run", "next run"),
            [(name, run.cron, run.last or "never", run.next) for name, run in runs.items()],
            "times in UTC; a next run in the past is overdue",
        )
    return 0


class Run(msgspec.Struct, frozen=True):
    """When a schedule ran last, and when it runs next. Slots: an export may begin later."""

    cron: str
    last: str | None
    export: str | None
    next: str


async def _status(context: Context) -> tuple[dict[str, dict[str, int]], dict[str, Run]]:
    names = context.names
    async with context.broker() as broker:
        await check_topics(broker, names, context.settings.max_record_bytes)
        figures = await _figures(broker, names)
        if not context.settings.schedules:
            return figures, {}
        standings = read_standings(await read_table(broker, Partition(names.schedules, 0)))
    now = datetime.now(UTC)
    runs = {}
    for schedule in context.settings.schedules:
        standing = standings.get(schedule.name, Standing(now))
        runs[schedule.name] = Run(
            schedule.cron,
            None if standing.export is None else _time(standing.until),
            standing.export,
            _time(upcoming(schedule, standing)),
        )
    return figures, runs


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


async def _figures(broker: Broker, names: Names) -> dict[str, dict[str, int]]:
    there = await broker.topics(names.every())
    spans = await broker.spans(
        Partition(topic.name, number)
        for topic in there.values()
        for number in range(topic.partitions)
    )
    inputs = [p for p in spans if p.topic.startswith(f"{names.prefix}.in.")]
    read = await broker.committed(f"{names.prefix}-worker", inputs)
    figures = {}
    for entity in ENTITIES:
        ins = [p for p in spans if p.topic == names.inputs(entity)]
        taken = sum(read.get(p, spans[p].start) for p in ins)
        end = sum(spans[p].end for p in ins)
        figures[entity] = {
            "received": end,
            "read": taken,
            "lag": end - taken,
            "accepted": _length(spans, names.accepted(entity)),
            "rejected": _length(spans, names.rejected(entity)),
        }
    return figures


def _length(spans: dict[Partition, Any], topic: str) -> int:
    return sum(span.end - span.start for p, span in spans.items() if p.topic == topic)


@click.command("schema")
@click.argument("entity", required=False)
def schema_command(entity: str | None) -> int:
    """Print the JSON Schema of ENTITY, or of all eight."""
    if entity is not None and entity not in ENTITIES:
        raise click.UsageError(f"{entity!r} is no entity: use one of {', '.join(ENTITIES)}.")
    chosen = ENTITIES.values() if entity is None else [ENTITIES[entity]]
    schemas = {e.name: json_schema(e) for e in chosen}
    document: Any = schemas if entity is None else schemas[entity]
    click.echo(msgspec.json.format(msgspec.json.encode(document)).decode())
    return 0


@click.command("config")
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def config_command(context: Context, as_json: bool) -> int:
    """Print the settings in force; secrets are masked."""
    settings = shown(context.settings, context.environment)
    if as_json:
        print_json(settings)
        return 0
    schedules = settings.pop("schedules")
    rows = [(name, value) for name, value in settings.items() if not isinstance(value, dict)]
    for schedule in schedules:
        name = schedule.pop("name")
        rows.append((f"schedules.{name}", ", ".join(f"{k} {v}" for k, v in schedule.items() if v)))
    for table in (*TABLES, "secrets"):
        rows += [(f"{table}.{name}", value) for name, value in settings[table].items()]
    print_table("Settings in force", ("setting", "value"), [(n, str(v)) for n, v in rows])
    return 0
