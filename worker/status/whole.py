"""All that `buddy status` finds: the report, the schedules, and what is wrong."""

from __future__ import annotations

import msgspec

from worker.status.report import Report


class ScheduleRun(msgspec.Struct, frozen=True):
    """The last and the next slot of a schedule. An export may begin later than its slot."""

    cron: str
    last: str | None
    export: str | None
    next: str


class WholeStatus(msgspec.Struct, frozen=True):
    """The report, the runs by schedule, why a service does not work, and damage of the log.

    `topics` says what is wrong with a topic although the services work: they would not start.
    """

    report: Report
    runs: dict[str, ScheduleRun]
    trouble: str | None
    damage: list[str]
    topics: str | None = None
