"""Schedules: when scheduled exports are due. Pure: no clock, no I/O; all times are in UTC.

A schedule is a cron expression and the options of an export. Each moment at which it is due is a
slot. Each slot has its own request id, so it gives one export, however often it is requested.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from cronsim import CronSim, CronSimError

from worker.errors import UsageError
from worker.exports.layout import Format
from worker.sink.requests import SCHEDULED, ExportRequest, check_request

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""Ids of slots and names of bookmarks begin with it."""
_FIELDS: Final = 5
"""No field for seconds: nobody needs exports that often."""
_ANY_SLOT: Final = datetime(2000, 1, 1, tzinfo=UTC)
_SECOND: Final = timedelta(seconds=1)
_STAMP: Final = re.compile(r"[0-9]{8}T[0-9]{6}Z")


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A `[[schedules]]` table of the configuration.

    `cron` has the five fields of Debian's cron. An incremental schedule has its own bookmark.
    Empty `entities` means all entities; empty `formats` means all formats. Raises ValueError, in
    one line, if the schedule is invalid.
    """

    name: str
    cron: str
    incremental: bool = False
    entities: tuple[str, ...] = ()
    formats: tuple[Format, ...] = ()
    guard_formulas: bool = False

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"{self.name[:80]!r} is no name of a schedule: use 1 to 64 of A-Z a-z 0-9 . _ -"
            )
        try:
            # The name of its bookmark is none that a request may give.
            check_request(msgspec.structs.replace(request_of(self, _ANY_SLOT), incremental=None))
        except UsageError as error:
            raise ValueError(f"schedule {self.name!r}: {error}") from None
        if problem := _problem(self.cron):
            raise ValueError(f"schedule {self.name!r}: cron {self.cron!r} is wrong: {problem}")


def following(schedule: Schedule, moment: datetime) -> datetime:
    """The first slot after the moment."""
    return next(CronSim(schedule.cron, moment))


def latest(schedule: Schedule, after: datetime, now: datetime) -> datetime | None:
    """The last slot after `after`, up to `now`; None if there was none.

    Only this slot is made up for, however many were missed: its export holds everything there is.
    """
    found = next(CronSim(schedule.cron, now.replace(microsecond=0) + _SECOND, reverse=True))
    return found if found > after else None


def request_of(schedule: Schedule, slot: datetime) -> ExportRequest:
    """The request of a slot."""
    return ExportRequest(
        id=f"{schedule.name}:{slot:%Y%m%dT%H%M%SZ}",
        entities=schedule.entities,
        formats=schedule.formats,
        requested_at=slot,
        incremental=SCHEDULED + schedule.name if schedule.incremental else None,
        guard_formulas=schedule.guard_formulas,
    )


def is_slot_of(schedule: Schedule, request_id: str) -> bool:
    """Whether `request_of` gives such an id to slots of this schedule."""
    name, _, stamp = request_id.partition(":")
    return name == schedule.name and _STAMP.fullmatch(stamp) is not None


def _problem(cron: str) -> str | None:
    if len(cron.split()) != _FIELDS:
        return "write minute, hour, day of the month, month and day of the week, as in '0 2 1 * *'"
    try:
        next(CronSim(cron, datetime(2000, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        return str(error).lower()
    except StopIteration:
        return "there is no such day"
    return None


DEFAULTS: Final = (
    Schedule("monthly", "0 2 1 * *"),
    Schedule("weekly", "0 3 * * 1", incremental=True),
)
"""A full export on the first of each month, an incremental one each Monday; at night in UTC."""
