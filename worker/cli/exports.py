"""`buddy exports list` and `latest`: the finished exports, and the location of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import click

from worker import log
from worker.cli.connect_place import place_of
from worker.cli.console import (
    Context,
    OneOf,
    complain,
    notices,
    print_json,
    print_table,
    say,
)
from worker.errors import BuddyError
from worker.exports.layout import FORMATS, Format
from worker.exports.order import order_of
from worker.exports.places.place import ExportPlace
from worker.sink.listing import Listed, age, chosen, is_whole, listed, newest

Command = TypeVar("Command", bound=Callable[..., Any])

_PATIENCE: Final = 60.0
"""Seconds to wait for an unavailable bucket."""
_SHORT: Final = 8
"""Characters of an id in the table: enough to tell ids apart."""


class NoSuchExportError(BuddyError):
    """No finished export matches the options."""


def _options(command: Command) -> Command:
    for option in (
        click.option("--json", "as_json", is_flag=True, help="Print as JSON, with every file."),
        click.option("--format", "formats", type=OneOf("a format", FORMATS), multiple=True,
                     help="Only exports with this format. Repeatable."),
        click.option("--bookmark", metavar="NAME",
                     help="Only this feed; a schedule's feed is schedule:NAME."),
    ):  # fmt: skip
        command = option(command)
    return command


@click.group("exports")
def exports_command() -> None:
    """Find finished exports, in a directory or a bucket."""


@exports_command.command("list")
@_options
@click.pass_obj
def list_command(
    context: Context, bookmark: str | None, formats: tuple[Format, ...], as_json: bool
) -> int:
    """List finished exports, the newest first.

    An export is full or an increment. An increment holds only the rows that are new or changed
    since another export, its base.
    """
    there = _place(context).finished(notices())
    found = [listed(e) for e in sorted(chosen(there, bookmark, formats), key=age, reverse=True)]
    if as_json:
        print_json({"exports": found})
    elif not found:
        say(f"No finished export{_of(bookmark, formats)} in {context.settings.exports}.")
    else:
        _print(context.settings.exports, found)
    return 0


@exports_command.command("latest")
@_options
@click.pass_obj
def latest_command(
    context: Context, bookmark: str | None, formats: tuple[Format, ...], as_json: bool
) -> int:
    """Print the path or URL of the latest export, and nothing else.

    Without --bookmark, only exports that hold all rows count: no increments, no ranges of days. The
    exit code is 1 if there is no such export.
    """
    there = chosen(_place(context).finished(notices()), bookmark, formats)
    found = newest(e for e in there if bookmark is not None or is_whole(e.manifest))
    if found is None:
        kind = "" if bookmark is not None else " that holds all rows"
        raise NoSuchExportError(
            f"no finished export{_of(bookmark, formats)}{kind} in {context.settings.exports}: "
            "'buddy exports list' shows what is there"
        )
    if not found.manifest.complete:
        complain(f"{found.name} is not complete: not everything had been judged in time")
    if found.order > order_of(f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}"):
        complain(f"{found.name} has a time that is still to come: a clock is, or was, wrong")
    if as_json:
        print_json(listed(found))
    else:
        say(found.location)
    return 0


def _place(context: Context) -> ExportPlace:
    settings = context.settings
    log.configure("error")  # one notice line, not the log, reports an unavailable place
    notice = notices()
    place = place_of(settings, context.environment, _PATIENCE)
    place.tell(lambda away: None if away is None else notice(f"{away} Trying again ..."))
    return place


def _of(bookmark: str | None, formats: Iterable[Format]) -> str:
    under = "" if bookmark is None else f" under bookmark {bookmark}"
    return under + "".join(f" with {name}" for name in formats)


def _print(place: str, found: list[Listed]) -> None:
    rows = [
        (
            export.export_date.replace("T", " ").removesuffix("Z"),
            export.id[:_SHORT],
            export.bookmark or "-",
            _contents(export),
            " ".join(export.options.formats),
            sum(export.counts.values()),
        )
        for export in found
    ]
    print_table(
        f"Exports in {place}",
        ("exported", "id", "bookmark", "contents", "formats", "rows"),
        rows,
        "times in UTC; ids begin so: --json has the rest, and where each export lies",
    )


def _contents(export: Listed) -> str:
    options = export.options
    what = "full" if export.base is None else f"increment of {export.base[:_SHORT]}"
    if options.start is not None or options.end is not None:
        what += f", {options.start or '…'} to {options.end or '…'}"
    return what if export.complete else f"{what}, not complete"
