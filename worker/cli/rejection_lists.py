"""`buddy rejections summary` and `list`, from a store that follows the topics."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click
import msgspec

from schemas import ENTITIES
from worker.cli.console import (
    Context,
    OneOf,
    count_of,
    now_ms,
    print_json,
    print_table,
    say,
    short_time,
)
from worker.cli.desk_store import open_desk
from worker.cli.unknown_fields import print_unknown
from worker.core.unknown import UnknownNames
from worker.core.violations import Code
from worker.desk.answers import listed_answer, moment, summary_answer
from worker.desk.choosing import UNITS_MS, moment_named

if TYPE_CHECKING:
    from worker.desk.queries import Filter, Summary

_BARS: Final = "▁▂▃▄▅▆▇█"
_PARTS: Final = 40
_DAY_MS: Final = 86_400_000
_PATIENCE: Final = 30.0
"""How long to wait for another command that uses the store."""

_Command = TypeVar("_Command", bound=Callable[..., Any])


def filters(command: _Command) -> _Command:
    """The options that choose rejections."""
    options = [
        click.option("--entity", type=OneOf("an entity", ENTITIES), help="Only this entity."),
        click.option(
            "--code",
            type=OneOf("a violation code", [code.value for code in Code]),
            metavar="CODE",
            help="Only this violation code.",
        ),
        click.option("--field", metavar="FIELD", help="Only violations of this field."),
        click.option("--key", metavar="KEY", help="Only records of this key; needs --entity."),
        click.option("--producer", metavar="NAME", help="Only senders that name themselves so."),
        click.option("--partition", type=click.IntRange(0), help="Only this input partition."),
        click.option(
            "--since",
            metavar="TIME",
            help="Only the last 30m, 2h, 7d …, or since 2026-11-29T11:53Z; by whole minutes.",
        ),
    ]
    for option in reversed(options):
        command = option(command)
    return command


ALL: Final = click.option("--all", "everything", is_flag=True, help="Settled rejections as well.")


def chosen(options: dict[str, Any], now: int) -> Filter:
    """The filter of these options.

    Raises click.UsageError for a key without an entity, and for a time that is none or lies ahead.
    """
    if options["key"] is not None and options["entity"] is None:
        raise click.UsageError("a key alone names no record: say --entity as well")
    from worker.desk.queries import Filter

    since = options.pop("since")
    for name, value in options.items():
        if isinstance(value, str) and not value.isprintable():
            raise click.BadParameter("a byte or character in it cannot be", param_hint=f"--{name}")
    return Filter(**options, since=None if since is None else _since(since, now))


def _since(text: str, now: int) -> int:
    found = moment_named(text, now)
    if found is None:
        raise click.BadParameter(
            f"{text!r} is no time: say 30m, 2h or 7d back from now, or a moment in UTC such as "
            "2026-11-29T11:53Z",
            param_hint="--since",
        )
    if found > now:
        raise click.BadParameter(f"{text} lies ahead of this machine's clock", param_hint="--since")
    return found


@click.command("summary")
@filters
@ALL
@click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
@click.pass_obj
def summary_command(context: Context, /, everything: bool, as_json: bool, **options: Any) -> int:
    """Count rejections by entity, code and field: the open ones, or all.

    A rejection is open until its key has been accepted or deleted since, or its record was sent
    again. The orphans that a rejected user or match has caused are counted beside it.
    """
    from worker.desk import queries

    now = now_ms()
    chosen_ = chosen(options, now)

    async def run() -> None:
        async with open_desk(context, quiet=as_json) as (_, store):
            found = queries.summary(store, chosen_)
            unknown = queries.unknown_fields(store, chosen_.entity)
            if as_json:
                print_json(summary_answer(found, unknown))
            else:
                since = now - _DAY_MS if chosen_.since is None else chosen_.since
                span = chosen_._replace(since=since, until=now)
                bars = queries.over_time(store, span, _PARTS)
                _print_summary(found, unknown, bars, now - since, everything=everything)

    asyncio.run(run())
    return 0


def _print_summary(
    found: Summary,
    unknown: dict[str, dict[str, int]],
    bars: list[int],
    span_ms: int,
    *,
    everything: bool,
) -> None:
    now = datetime.now(UTC)
    rows = [
        (
            *msgspec.structs.astuple(kind),
            counted.open,
            counted.records,
            counted.consequences,
            short_time(moment(counted.first), now),
            short_time(moment(counted.last), now),
        )
        for kind, counted in found.kinds
        if everything or counted.open
    ]
    columns = ("entity", "code", "field", "open", "in all", "orphans of these", "first", "last")
    title = f"{count_of(found.records, 'rejection')}, {found.open:,} open"
    footer = "times in UTC" if everything else "times in UTC; --all shows the settled ones, too"
    print_table(title, columns, rows, footer, whole=("entity", "code"))
    say(f"The last {_span(span_ms)}: {sparkline(bars)}")
    names = UnknownNames()
    names.by_entity = {entity: Counter(counts) for entity, counts in unknown.items()}
    print_unknown(names)


@click.command("list")
@filters
@ALL
@click.option("--limit", type=click.IntRange(1, 10_000), default=20, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="One JSON document a line.")
@click.pass_obj
def list_command(
    context: Context, /, everything: bool, limit: int, as_json: bool, **options: Any
) -> int:
    """List rejections, the newest first: the open ones, or all.

    An orphan names the rejection of the user or match that it refers to, if there is one.
    """
    from worker.desk import queries

    chosen_ = chosen(options, now_ms())

    async def run() -> list[queries.RejectionListed]:
        async with open_desk(context, quiet=as_json) as (_, store):
            return queries.listed(store, chosen_, limit, everything=everything)

    found = asyncio.run(run())
    if as_json:
        for one in found:
            print_json(listed_answer(one))
        return 0
    shown_at = datetime.now(UTC)
    rows = [
        (
            short_time(moment(one.at), shown_at),
            one.source,
            ", ".join(f"{field}: {code}" if field else code for code, field in one.violations),
            one.producer,
            one.state,
            one.cause or "",
        )
        for one in found
    ]
    columns = ("time", "record", "violations", "producer", "state", "caused by the rejection of")
    print_table("Rejections, the newest first", columns, rows, "times in UTC", whole=("time",))
    return 0


def sparkline(counts: Sequence[int]) -> str:
    """Counts as bars of eight heights; a blank stands for none."""
    highest = max(counts, default=0)
    return "".join(_BARS[(count * len(_BARS) - 1) // highest] if count else " " for count in counts)


def _span(milliseconds: int) -> str:
    for unit in ("d", "h", "m"):
        if milliseconds % UNITS_MS[unit] == 0 and (unit != "d" or milliseconds > _DAY_MS):
            return f"{milliseconds // UNITS_MS[unit]} {unit}"
    unit = "h" if milliseconds > 2 * _DAY_MS else "m"
    return f"{milliseconds // UNITS_MS[unit]} {unit}"
