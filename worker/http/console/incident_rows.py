"""Incidents of rejections as the pages show them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NamedTuple, TypeVar

import msgspec

from worker.desk.buckets import WIDTHS_MS
from worker.desk.incidents import IncidentBook, IncidentReport
from worker.desk.store import RejectionStore
from worker.desk.webhook import details, headline
from worker.errors import BuddyError
from worker.http.console.texts import as_time, iso
from worker.http.desk_reader import DeskReader
from worker.http.problems import Problem

_DAY_MS: Final = WIDTHS_MS[-1]
_MOST_ENDED: Final = 20

Found = TypeVar("Found")


class IncidentRow(NamedTuple):
    """An incident. `query` chooses its rejections in the list."""

    id: int
    began: int
    ended: int | None
    headline: str
    details: str
    query: dict[str, str]


class Incidents(NamedTuple):
    """The open incidents, and those that ended within a day; the newest first."""

    open: list[IncidentRow]
    ended: list[IncidentRow]


async def told(
    desk: DeskReader, question: Callable[[RejectionStore], Found]
) -> tuple[Found | None, str | None]:
    """What the desk says; or None, and why it says nothing."""
    try:
        return await desk.ask(question), None
    except Problem as problem:
        return None, problem.detail
    except BuddyError as error:
        return None, str(error)


def incidents_of(store: RejectionStore, now: int) -> Incidents:
    """What the pages show of the incidents. Blocking."""
    found = [one for one in IncidentBook(store).reports() if (one.closed or now) >= now - _DAY_MS]
    rows = [incident_row(one, store.skew) for one in found]
    ended = [row for row in rows if row.ended is not None]
    return Incidents([row for row in rows if row.ended is None], ended[:_MOST_ENDED])


def incident_row(found: IncidentReport, skew: int) -> IncidentRow:
    """An incident without what the pages show elsewhere. Pure.

    `skew` leads from its times to those of rejections, in milliseconds. Its query has the code and
    the field that all violations share that stand out.
    """
    shown = msgspec.structs.replace(found, examples=[], closed=None)
    _, *lines = details(shown)  # the first has its beginning
    query = {"entity": found.entity}
    for name, values in zip(("code", "field"), zip(*found.violations, strict=True), strict=False):
        if len(set(values)) == 1 and values[0]:
            query[name] = values[0]
    query["since"] = iso(as_time(found.since + skew))
    if found.closed is not None:
        query["all"] = "true"
    return IncidentRow(
        found.id, found.since, found.closed, headline(found), "; ".join(lines), query
    )
