"""The incidents of rejections, as `buddy status` and `buddy rejections incidents` show them."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from worker.cli.console import (
    Context,
    complain,
    print_json,
    print_table,
    say,
    say_more,
    short_time,
)
from worker.cli.desk_store import desk_directory
from worker.core.topics import Names
from worker.desk.answers import incident_answer, moment
from worker.errors import StateError

if TYPE_CHECKING:
    from worker.desk.incidents import IncidentReport

_OLD_MS: Final = 60_000
"""A desk that works judges every five seconds."""


class Glance(NamedTuple):
    """What the desk of this data directory knows."""

    looked: int
    """When it looked last, in ms since 1970."""
    is_late: bool
    """Whether that is long ago: it cannot read its topics, or was killed."""
    open: list[IncidentReport]


def glance(directory: Path, names: Names, now: int) -> Glance | None:
    """The incidents that are open; None if no desk looks for them here. Creates nothing.

    Raises StateError if that cannot be told.
    """
    from worker.desk.database import FILE_NAME
    from worker.desk.incidents import IncidentBook
    from worker.desk.store import RejectionStore

    if not _has(directory, f"{FILE_NAME}-wal"):  # nobody has the store open
        return None
    store = RejectionStore(directory, names, read_only=True)
    try:
        book = IncidentBook(store)
        looked = book.looked()
        if looked is None:
            return None
        return Glance(looked, abs(now - looked) > _OLD_MS, book.reports(only_open=True))
    finally:
        store.close()


def _has(directory: Path, name: str) -> bool:
    """Whether the desk's directory has that file. Raises StateError if that cannot be told."""
    try:
        (directory / name).stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise StateError(
            f"{directory} cannot be read ({error.strerror}): look at its owner and rights"
        ) from error
    return True


def say_glance(found: Glance | None) -> None:
    """Print what is open; or that nobody looks."""
    if found is None:
        say("Rejections: no desk looks for incidents in this data directory (buddy desk)")
        return
    from worker.desk.webhook import details, headline

    if found.is_late:
        when = short_time(moment(found.looked), datetime.now(UTC))
        say(f"Rejections: the desk has not looked since {when}: see its log")
    elif not found.open:
        say("Rejections: no incident")
    for one in found.open:
        say(f"Rejections: incident: {headline(one)}")
        for line in details(one):
            say_more(line)


@click.command("incidents")
@click.option("--json", "json_lines", is_flag=True, help="One JSON document a line.")
@click.pass_obj
def incidents_command(context: Context, json_lines: bool) -> int:
    """List incidents of the last 30 days, the newest first: far more was rejected than usual.

    The desk finds them ('buddy desk', 'buddy run') and keeps them in its data directory.
    """
    from worker.desk.database import FILE_NAME
    from worker.desk.incidents import IncidentBook
    from worker.desk.lacking import lacking
    from worker.desk.opening import opened

    directory = desk_directory(context)
    if not _has(directory, FILE_NAME):
        complain(f"no desk has looked for incidents in {directory} yet: start 'buddy desk'")
        return 0
    store = opened(directory, context.names)
    try:
        found = IncidentBook(store).reports()
        for line in lacking(store):
            complain(line)
    finally:
        store.close()
    if json_lines:
        for one in map(incident_answer, found):
            print_json(one)
        return 0
    now = datetime.now(UTC)
    rows = [
        (
            one.entity,
            one.what.replace("_", " "),
            short_time(moment(one.since), now),
            "open" if one.closed is None else short_time(moment(one.closed), now),
            f"{one.usual:.1%}",
            f"{one.found / max(1, one.seen):.1%}",
            one.found,
            ", ".join(f"{field}: {code}" if field else code for code, field in one.violations)
            or ", ".join(one.names),
            ", ".join(one.producers),
        )
        for one in found
    ]
    columns = (
        "entity",
        "what",
        "since",
        "until",
        "before",
        "share",
        "records",
        "violations or fields that stand out",
        "producers",
    )
    print_table("Incidents, the newest first", columns, rows, "times in UTC", whole=("entity",))
    return 0
