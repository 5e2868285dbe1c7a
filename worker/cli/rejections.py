"""`buddy rejections`: the group of commands, and `watch`."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import click

from schemas import ENTITIES
from worker.cli.console import (
    Context,
    OneOf,
    complain,
    count_of,
    print_json,
    say,
    say_found,
    say_more,
    short_time,
)
from worker.cli.in_time import InTime
from worker.cli.incidents import incidents_command
from worker.cli.rejection_lists import list_command, summary_command
from worker.cli.rejections_export import export_command
from worker.cli.replay import replay_command
from worker.cli.show import show_command
from worker.core.violations import Code
from worker.desk.seen import RejectionSeen, read_rejection
from worker.errors import MissingTopic
from worker.stream import Message, Partition

_ENTITY = click.option("--entity", type=OneOf("an entity", ENTITIES), help="Only this entity.")
_CODE = click.option(
    "--code",
    type=OneOf("a violation code", [code.value for code in Code]),
    metavar="CODE",
    help="Only this violation code.",
)
_SHOWN = 5
"""Number of violations of a rejection shown to people."""


@click.group("rejections")
def rejections_command() -> None:
    """Look at what was rejected, and why."""


@rejections_command.command("watch")
@_ENTITY
@_CODE
@click.option("--from-start", is_flag=True, help="Start with the existing rejections.")
@click.option("--limit", type=click.IntRange(1), help="Stop after this many.")
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_obj
def watch(
    context: Context,
    entity: str | None,
    code: str | None,
    from_start: bool,
    limit: int | None,
    as_json: bool,
) -> int:
    """Print rejections as they arrive, until Ctrl-C. Times are in UTC.

    With --from-start, print the existing rejections as well, in order of time.
    """

    async def run() -> None:
        count = 0
        async for seen in _rejections(context, entity, from_start=from_start):
            if code is not None and code not in {v.code.value for v in seen.violations}:
                continue
            if as_json:
                print_json(seen)
            else:
                _print(seen)
            count += 1
            if count == limit:
                return

    asyncio.run(run())
    return 0


rejections_command.add_command(summary_command)
rejections_command.add_command(list_command)
rejections_command.add_command(show_command)
rejections_command.add_command(incidents_command)
rejections_command.add_command(replay_command)
rejections_command.add_command(export_command)


async def _rejections(
    context: Context, entity: str | None, *, from_start: bool
) -> AsyncIterator[RejectionSeen]:
    names = context.names
    chosen = [names.rejected(e) for e in ([entity] if entity else ENTITIES)]
    async with context.broker(read_only=True, logs_damage=False) as broker:
        topics = await broker.topics(chosen)
        if len(topics) < len(chosen):
            raise MissingTopic("the rejection topics are missing: run 'buddy topics create'")
        partitions = [Partition(t.name, n) for t in topics.values() for n in range(t.partitions)]
        spans = await broker.spans(partitions)
        reader = broker.reader()
        reader.assign({p: s.start if from_start else s.end for p, s in spans.items()})
        try:
            damaged: dict[Partition, str] = {}
            in_time = InTime[RejectionSeen](partitions)
            if not from_start:
                in_time.ended(partitions)
            while True:
                for message in await reader.read(5_000, 0.5, in_time.full()):
                    if (seen := _read(message)) is not None:
                        partition = Partition(message.topic, message.partition)
                        in_time.add(partition, seen.rejected_at, seen)
                damaged, reported = reader.damaged(), damaged
                for _, line in sorted(damaged.items() - reported.items()):
                    complain(f"{line}; nothing behind it is shown until then")
                in_time.ended(p for p, s in spans.items() if reader.position(p) >= s.end)
                in_time.ended(damaged)
                for seen in in_time.due():
                    yield seen
        finally:
            await reader.close()


def _read(message: Message) -> RejectionSeen | None:
    seen = read_rejection(message)
    if seen is None:
        complain(f"{message.topic}/{message.partition}/{message.offset} is no rejection: skipped")
    return seen


def _print(seen: RejectionSeen) -> None:
    """Print a rejection for people: time and place, then the first violations."""
    at = short_time(seen.rejected_at, datetime.now(UTC))
    where = f"{seen.source.topic}/{seen.source.partition}/{seen.source.offset}"
    say(f"{at}  {where}  key {seen.key or '-'}")
    for found in seen.violations[:_SHOWN]:
        field = f"{found.field}: " if found.field else ""
        say_found(found.code.value, f"{field}{found.message}", found.severity)
    if more := len(seen.violations[_SHOWN:]) + seen.violations_omitted:
        say(f"  … and {count_of(more, 'violation')} more")
    if seen.unknown_names:
        say_more(f"fields that no column is for: {', '.join(seen.unknown_names)}")
