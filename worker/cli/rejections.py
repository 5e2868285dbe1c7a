"""`buddy rejections watch` and `summary`: what is rejected, and why."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated

import click
import msgspec

from schemas import ENTITIES
from worker.cli.console import (
    Context,
    OneOf,
    complain,
    count_of,
    print_json,
    print_table,
    say,
    say_found,
    say_more,
    short_time,
)
from worker.cli.in_time import InTime
from worker.cli.unknown_fields import print_unknown
from worker.core.rejection import Source
from worker.core.unknown import UnknownNames, unknown_names
from worker.core.violations import Code, Violation
from worker.errors import DamagedLog, MissingTopic
from worker.stream import Message, Partition

_ENTITY = click.option("--entity", type=OneOf("an entity", ENTITIES), help="Only this entity.")
_CODE = click.option(
    "--code",
    type=OneOf("a violation code", [code.value for code in Code]),
    metavar="CODE",
    help="Only this violation code.",
)
_COLUMNS = {
    name: frozenset(column.name for column in entity.columns) for name, entity in ENTITIES.items()
}
_SHOWN = 5
"""Number of violations of a rejection shown to people."""


class RejectionSeen(msgspec.Struct):
    """The parts of a rejection that are read; `buddy rejections` never prints the record itself."""

    entity: str
    key: str | None
    rejected_at: Annotated[datetime, msgspec.Meta(tz=True)]
    source: Source
    violations: list[Violation]
    violations_omitted: int = 0
    unknown_names: tuple[str, ...] = ()
    """Fields of the record that have no column."""


class _OriginalRecord(msgspec.Struct):
    record: dict[str, msgspec.Raw] | None = None


_seen = msgspec.json.Decoder(RejectionSeen)
_original = msgspec.json.Decoder(_OriginalRecord)


class RejectionKind(msgspec.Struct, frozen=True, order=True):
    """The key of a count in a summary. `field` has no list indexes."""

    entity: str
    code: str
    field: str


class Counted(msgspec.Struct):
    """Number of rejections of a kind, with the times of the earliest and the latest."""

    records: int
    first: datetime
    last: datetime


class RejectionTally:
    """Counts rejections by kind. The order in which they are added does not matter."""

    def __init__(self) -> None:
        self.total = 0
        self.unknown = UnknownNames()
        self._kinds: dict[RejectionKind, Counted] = {}

    def add(self, seen: RejectionSeen) -> None:
        """Count one rejection: once for each kind of violation that it has."""
        self.total += 1
        self.unknown.note(seen.entity, seen.unknown_names)
        at = seen.rejected_at
        for kind in {
            RejectionKind(seen.entity, v.code.value, _no_index(v.field)) for v in seen.violations
        }:
            counted = self._kinds.setdefault(kind, Counted(0, at, at))
            counted.records += 1
            counted.first = min(counted.first, at)
            counted.last = max(counted.last, at)

    def kinds(self) -> list[tuple[RejectionKind, Counted]]:
        """All kinds, the most frequent first; kinds with equal counts sort by name."""
        return sorted(self._kinds.items(), key=lambda item: (-item[1].records, item[0]))


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
        async for seen in _rejections(context, entity, follow=True, from_start=from_start):
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


@rejections_command.command("summary")
@_ENTITY
@_CODE
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def summary(context: Context, entity: str | None, code: str | None, as_json: bool) -> int:
    """Count the existing rejections by entity, code and field."""

    async def run() -> RejectionTally:
        tally = RejectionTally()
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
        names = tally.unknown.by_entity
        print_json({"rejections": tally.total, "violations": found, "unknown_names": names})
    else:
        columns = (*RejectionKind.__struct_fields__, *Counted.__struct_fields__)
        now = datetime.now(UTC)
        rows = [
            [short_time(cell, now) if isinstance(cell, datetime) else cell for cell in row.values()]
            for row in found
        ]
        title = count_of(tally.total, "rejection")
        print_table(title, columns, rows, "times in UTC", whole=("entity", "code"))
        print_unknown(tally.unknown)
    return 0


async def _rejections(
    context: Context, entity: str | None, *, follow: bool, from_start: bool
) -> AsyncIterator[RejectionSeen]:
    names = context.names
    chosen = [names.rejected(e) for e in ([entity] if entity else ENTITIES)]
    async with context.broker(read_only=True) as broker:
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
            while follow or any(
                reader.position(p) < s.end for p, s in spans.items() if p not in damaged
            ):
                for message in await reader.read(5_000, 0.5, in_time.full()):
                    partition = Partition(message.topic, message.partition)
                    if not follow and message.offset >= spans[partition].end:
                        continue  # newer than this command: how many are read would vary
                    if (seen := _read(message)) is not None:
                        in_time.add(partition, seen.rejected_at, seen)
                damaged, reported = reader.damaged(), damaged
                if follow:  # otherwise the command ends with DamagedLog
                    for _, line in sorted(damaged.items() - reported.items()):
                        complain(f"{line}; nothing behind it is shown until then")
                in_time.ended(p for p, s in spans.items() if reader.position(p) >= s.end)
                in_time.ended(damaged)
                for seen in in_time.due():
                    yield seen
            if damaged:
                raise DamagedLog(next(iter(damaged.values())))
        finally:
            await reader.close()


def _read(message: Message) -> RejectionSeen | None:
    value = message.value or b""
    try:
        seen = _seen.decode(value)
        fields = _original.decode(value).record or {}
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        complain(f"{message.topic}/{message.partition}/{message.offset} is no rejection: skipped")
        return None
    seen.unknown_names = unknown_names(fields, _COLUMNS.get(seen.entity, fields))
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


def _no_index(field: str) -> str:
    return field.split("[", maxsplit=1)[0]
