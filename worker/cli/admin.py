"""`buddy topics create`, `reprocess` and `config`."""

from __future__ import annotations

import asyncio

import click

from schemas import ENTITIES
from worker.cli.console import (
    Context,
    OneOf,
    confirm,
    count_of,
    print_json,
    print_table,
    say,
)
from worker.cli.settings import TABLES, shown
from worker.core.topics import complaints
from worker.engine.reprocess import reprocess
from worker.engine.startup import check_topics, create_topics
from worker.errors import ConfigurationError, UsageError
from worker.stream import Partition


@click.group("topics")
def topics_command() -> None:
    """Create the topics that everything else relies on."""


@topics_command.command("create")
@click.option(
    "--partitions", type=click.IntRange(1, 1000), help="Partitions of each input (default: 4)."
)
@click.option("--json", "as_json", is_flag=True, help="Print the names as JSON.")
@click.pass_obj
def create(context: Context, partitions: int | None, as_json: bool) -> int:
    """Create the missing topics. Existing topics stay unchanged.

    The partition count of the inputs is final. If --partitions differs from the existing count,
    nothing is changed and the exit code is 3.
    """
    settings, names, limit = context.settings, context.names, context.settings.max_record_bytes

    async def run() -> list[str]:
        async with context.broker() as broker:
            created, count = await create_topics(
                broker, names, limit, settings.partitions, partitions
            )
            # Print first: the check below needs further rights, so it may fail.
            if as_json:
                print_json({"created": created, "partitions": count})
            else:
                there = len(list(names.every())) - len(created)
                say(
                    f"{count_of(len(created), 'topic')} created, {there} "
                    f"{'was' if there == 1 else 'were'} there; "
                    f"inputs have {count_of(count, 'partition')}."
                )
            return list(complaints(names, await broker.topics(names.every()), limit))

    found = asyncio.run(run())
    if found:
        raise ConfigurationError(found[0])
    return 0


@click.command("reprocess")
@click.argument("entity", type=OneOf("an entity", ENTITIES), metavar="ENTITY")
@click.option("--from-start", is_flag=True, help="Judge everything that the input still holds.")
@click.option(
    "--offset", "offsets", multiple=True, metavar="PARTITION:OFFSET", help="Start here. Repeatable."
)
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
@click.pass_obj
def reprocess_command(
    context: Context, entity: str, from_start: bool, offsets: tuple[str, ...], yes: bool
) -> int:
    """Judge records of ENTITY again.

    Each record gets a second outcome: rows are published again, rejections too. Use this command
    after a fault in the rules is fixed. For a few rejections, send the records again instead.
    """
    if from_start == bool(offsets):
        raise click.UsageError("Say either --from-start or --offset PARTITION:OFFSET.")
    if not yes:
        confirm(f"Judge {entity} again, with a second outcome for each record?")
    back = asyncio.run(_reprocess(context, entity, _by_partition(offsets)))
    for number, count in sorted(back.items()):
        say(f"partition {number}: {count_of(count, 'offset')} back")
    return 0


def _by_partition(offsets: tuple[str, ...]) -> dict[int, int]:
    found = {}
    for text in offsets:
        number, _, offset = text.partition(":")
        if not (number.isdecimal() and offset.isdecimal()):
            raise click.UsageError(f"{text!r} is not PARTITION:OFFSET, such as 0:1200.")
        found[int(number)] = int(offset)
    return found


async def _reprocess(context: Context, entity: str, wanted: dict[int, int]) -> dict[int, int]:
    names = context.names
    topic = names.input(entity)
    async with context.broker() as broker:
        tasks = await check_topics(broker, names, context.settings.max_record_bytes)
        spans = await broker.spans(Partition(topic, number) for number in range(tasks))
        starts = {partition.number: span.start for partition, span in spans.items()}
        unknown = sorted(wanted.keys() - starts.keys())
        if unknown:
            raise UsageError(f"{topic} has no partition {unknown[0]}: it has {len(starts)}")
        offsets = {n: max(offset, starts[n]) for n, offset in (wanted or starts).items()}
        return await reprocess(broker, names, entity, offsets)


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
