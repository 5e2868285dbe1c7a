"""`buddy rejections watch` and `summary`: what is rejected, and why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Annotated

import click
import msgspec

from schemas import ENTITIES
from worker.brokers.contract import Message, Partition
from worker.cli.console import Context, print_json, print_table
from worker.core.rejection import Source
from worker.core.violations import Violation
from worker.errors import DamagedLog, MissingTopic

_ENTITY = click.option("--entity", type=click.Choice(list(ENTITIES)), help="Of this entity only.")
_CODE = click.option("--code", help="With this violation code only.")


class Seen(msgspec.Struct):
    """What is read of a rejection; `buddy rejections` never prints the record itself."""

    entity: str
    key: str | None
    rejected_at: Annotated[datetime, msgspec.Meta(tz=True)]
    source: Source
    violations: list[Violation]
    violations_omitted: int = 0


_seen = msgspec.json.Decoder(Seen)


class Kind(msgspec.Struct, frozen=True, order=True):
    """What a summary counts rejections by; no place inside a list is told apart."""

    entity: str
    code: str
    field: str


class Counted(msgspec.Struct):
    """How many rejections of a kind there are, the earliest and the latest of them."""

    records: int
    first: datetime
    last: datetime


class Tally:
    """Rejections by kind. What it says does not depend on the order in which they were added."""

    def __init__(self) -> None:
        self.total = 0
        self._kinds: dict[Kind, Counted] = {}

    def add(self, seen: Seen) -> None:
        """Count one rejection, once for each kind of violation in it."""
        self.total += 1
        at = seen.rejected_at
        for kind in {Kind(seen.entity, v.code.value, _no_index(v.field)) for v in seen.violations}:
            counted = self._kinds.setdefault(kind, Counted(0, at, at))
            counted.records += 1
            counted.first = min(counted.first, at)
            counted.last = max(counted.last, at)

    def kinds(self) -> list[tuple[Kind, Counted]]:
        """The most frequent kind first, equal ones by their names."""
        return sorted(self._kinds.items(), key=lambda item: (-item[1].records, item[0]))


@click.group("rejections")
def rejections_command() -> None:
    """Look at what was rejected, and why."""


@rejections_command.command("watch")
@_ENTITY
@_CODE
@click.option("--from-start", is_flag=True, help="Begin with those that are there already.")
@click.option("--limit", type=int, help="Stop after so many.")
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
    """Print rejections as they come, until Ctrl-C: a line each."""

    async def run() -> None:
        count = 0
        async for seen in _rejections(context, entity, follow=True, from_start=from_start):
            if code is not None and code not in {v.code.value for v in seen.violations}:
                continue
            if as_json:
                print_json(seen)
            else:
                found = ", ".join(f"{v.code} {v.field}".strip() for v in seen.violations[:5])
                where = f"{seen.source.topic}/{seen.source.partition}/{seen.source.offset}"
                click.echo(f"{_time(seen.rejected_at)}  {where}  key {seen.key or '-'}  {found}")
            count += 1
            if count == limit:
                return

    asyncio.run(run())
    return 0


@rejections_command.command("summary")
@_ENTITY
@_CODE
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def summary(context: Context, entity: str | None, code: str | None, as_json: bool) -> int:
    """Count the rejections that are there, by entity, code and field."""

    async def run() -> Tally:
        tally = Tally()
        async for seen in _rejections(context, entity, follow=False, from_start=True):
            if code is None or code in {v.code.value for v in seen.violations}:
                tally.add(seen)
        return tally

    tally = asyncio.run(run())
    found = [
        {**msgspec.structs.asdict(kind), **msgspec.structs.asdict(counted)}
        for kind, counted in tally.kinds()
    ]
    if as_json:
        print_json({"rejections": tally.total, "violations": found})
    else:
        columns = (*Kind.__struct_fields__, *Counted.__struct_fields__)
        rows = [
            [_time(cell) if isinstance(cell, datetime) else cell for cell in row.values()]
            for row in found
        ]
        print_table(f"{tally.total} rejections", columns, rows)
    return 0


async def _rejections(
    context: Context, entity: str | None, *, follow: bool, from_start: bool
) -> AsyncIterator[Seen]:
    names = context.names
    chosen = [names.rejected(e) for e in ([entity] if entity else ENTITIES)]
    async with context.broker(looks=True) as broker:
        topics = await broker.topics(chosen)
        if len(topics) < len(chosen):
            raise MissingTopic("the rejection topics are missing: run 'buddy topics create'")
        places = [Partition(t.name, n) for t in topics.values() for n in range(t.partitions)]
        spans = await broker.spans(places)
        reader = broker.reader()
        reader.assign({p: s.start if from_start else s.end for p, s in spans.items()})
        try:
            damaged: dict[Partition, str] = {}
            while follow or any(
                reader.position(p) < s.end for p, s in spans.items() if p not in damaged
            ):
                for message in await reader.read(5_000, 0.5):
                    span = spans[Partition(message.topic, message.partition)]
                    if not follow and message.offset >= span.end:
                        continue  # how many came meanwhile depends on the order of reading
                    if (seen := _read(message)) is not None:
                        yield seen
                damaged = reader.damaged()
            if damaged:
                raise DamagedLog(next(iter(damaged.values())))
        finally:
            await reader.close()


def _read(message: Message) -> Seen | None:
    try:
        return _seen.decode(message.value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        click.echo(
            f"buddy: {message.topic}/{message.partition}/{message.offset} is no rejection: skipped",
            err=True,
        )
        return None


def _time(moment: datetime) -> str:
    """As the rejection itself says it."""
    return moment.isoformat().replace("+00:00", "Z")


def _no_index(field: str) -> str:
    return field.split("[", maxsplit=1)[0]
