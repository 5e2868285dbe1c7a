"""`buddy exports list` and `latest`: the finished exports, and the location of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from itertools import groupby
from typing import Any, Final, TypeVar

import click
import msgspec

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
from worker.exports.manifest import ExportedFile, Manifest, Options
from worker.exports.order import Order, order_of
from worker.exports.places.place import ExportPlace, Finished
from worker.sink.requests import feed_of

Command = TypeVar("Command", bound=Callable[..., Any])

_PATIENCE: Final = 60.0
"""Seconds to wait for an unavailable bucket."""
_SHORT: Final = 8
"""Characters of an id in the table: enough to tell ids apart."""


class NoSuchExportError(BuddyError):
    """No finished export matches the options."""


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """A finished export, for programs. Fields shared with an announcement have the same names.

    `full` means that the export holds all rows of its options. Otherwise, it holds only the rows
    that are new or changed since `base`, the id of another export.
    """

    id: str
    export_date: str
    directory: str
    location: str
    bookmark: str | None
    full: bool
    base: str | None
    full_because: str | None
    complete: bool
    options: Options
    counts: dict[str, int]
    files: tuple[ExportedFile, ...]
    manifest_sha256: str


def listed(found: Finished) -> Listed:
    """The entry of one export in the list."""
    manifest = found.manifest
    base = _base(manifest)
    return Listed(
        id=manifest.export_id,
        export_date=manifest.export_date,
        directory=found.name,
        location=found.location,
        bookmark=feed_of(manifest),
        full=base is None,
        base=base,
        full_because=None if manifest.incremental is None else manifest.incremental.full_because,
        complete=manifest.complete,
        options=manifest.options,
        counts=manifest.record_counts,
        files=manifest.files,
        manifest_sha256=found.manifest_sha256,
    )


def chosen(
    found: Iterable[Finished], bookmark: str | None, formats: Iterable[Format]
) -> Iterator[Finished]:
    """The exports that hold all of these formats; only those of `bookmark`, unless it is None."""
    wanted = frozenset(formats)
    for export in found:
        manifest = export.manifest
        if bookmark in (None, feed_of(manifest)) and wanted <= set(manifest.options.formats):
            yield export


def is_whole(manifest: Manifest) -> bool:
    """Whether the export holds all rows of its entities: no increment, and no range of days."""
    options = manifest.options
    return _base(manifest) is None and options.start is None and options.end is None


def age(found: Finished) -> tuple[Order, int, bool]:
    """A sort key for exports, the oldest first. `order` alone is exact to the second only.

    Within a second, the later cut holds more offsets. An increment without new rows has the offsets
    of its base, and follows the base.
    """
    manifest = found.manifest
    offsets = (*manifest.cut.accepted.values(), *manifest.cut.judged.values())
    read = sum(sum(partitions.values()) for partitions in offsets)
    return found.order, read, _base(manifest) is not None


def newest(found: Iterable[Finished]) -> Finished | None:
    """The newest export, or None. `found` comes newest first, and is read only as far as needed."""
    for _, same_second in groupby(found, key=lambda export: export.order):
        return max(same_second, key=age)
    return None


def _base(manifest: Manifest) -> str | None:
    incremental = manifest.incremental
    return None if incremental is None or incremental.base is None else incremental.base.export_id


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
