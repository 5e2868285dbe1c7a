"""What the active sink has to do by its schedules: which slots are settled, and which is due.

Pure: the time is handed in. Slots are moments of the wall clock, waits are measured by the steady
one. What is settled stands in a compacted topic, one message a schedule, so it survives a rebuilt
store and a lost sink; the messages are made here and written by the caller.

A wall clock may be set, both ways. A slot is made once, whatever the clock says afterwards: one
that was made by a clock that ran ahead is passed over when its time comes. And what comes next
follows from the present clock: no slot is skipped because a clock ran ahead for a moment.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Annotated, Final

import msgspec
from msgspec import Meta
from msgspec.structs import replace

from worker.core.moments import Moment
from worker.core.topics import Names
from worker.sink.requests import ExportRequest, fill_in
from worker.sink.schedule import Schedule, following, latest, request_of
from worker.stream import ProducerRecord

RETRY_MS: Final = 600_000
"""A slot whose export failed is tried again after so long, until it is done or the next is due."""
_SECOND: Final = timedelta(seconds=1)

_MOST_RUNS: Final = 4

_FIRST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(5000, 1, 1, tzinfo=UTC)

Time = Annotated[datetime, Meta(tz=True)]


class Standing(msgspec.Struct, frozen=True, omit_defaults=True):
    """How far a schedule is: all its slots up to `until` are settled.

    `export` is the id of the export that was made last, for the slot `made`; None as long as there
    is none. That slot may lie after `until`, where the clock has gone back since.

    `runs` are the last spans of time in which no slot was skipped, each from the slot (or moment)
    that it began with to the last slot in it: those slots stay made where the clock goes back
    behind them.
    """

    until: Time
    export: str | None = None
    runs: tuple[tuple[Time, Time], ...] = ()
    made: Time | None = None

    def run_of(self, moment: datetime) -> tuple[datetime, datetime] | None:
        """The run that the moment lies in; None if it lies in none."""
        return next(((a, b) for a, b in self.runs if a <= moment <= b), None)


class Due(msgspec.Struct, frozen=True):
    """A slot that is to be exported now."""

    schedule: Schedule
    slot: datetime
    request: ExportRequest


class Agenda:
    """The schedules of one sink, and their standings."""

    def __init__(
        self, schedules: Sequence[Schedule], names: Names, table: Mapping[bytes, bytes]
    ) -> None:
        self._schedules = schedules
        self._topic = names.schedules
        self._standings = read_standings(table)
        self._failed: dict[str, tuple[datetime, int]] = {}
        """By schedule the slot that failed last, and from when on it may be tried again."""

    def begin(self, now: Moment) -> list[ProducerRecord]:
        """What to write down before the first slot: new schedules count from now on."""
        moment = _moment(now)
        new = [s.name for s in self._schedules if s.name not in self._standings]
        return [self._stand(name, _standing(moment)) for name in new]

    def correct(self, now: Moment) -> list[ProducerRecord]:
        """What to write down where the clock has gone back behind slots that are settled.

        Those that were skipped are not settled any more.
        """
        moment = _moment(now)
        return [
            self._stand(schedule.name, _gone_back(standing, moment))
            for schedule in self._schedules
            if moment < (standing := self._standings[schedule.name]).until
        ]

    def due(self, now: Moment) -> Due | None:
        """The slot to export now, the one that has waited longest; None if none is due.

        Of several that were missed the latest stands for all.
        """
        moment = _moment(now)
        overdue = sorted(
            (upcoming(schedule, standing), schedule.name, schedule, slot)
            for schedule in self._schedules
            if (slot := _latest(schedule, standing := self._standings[schedule.name], moment))
            and not self._has_to_wait(schedule.name, slot, now.steady)
        )
        for _, _, schedule, slot in overdue[:1]:
            return Due(schedule, slot, fill_in(request_of(schedule, slot)))
        return None

    def settled(self, due: Due, export: str) -> ProducerRecord:
        """The message that says so; `settle` once it is written."""
        return self._message(due.schedule.name, self._after(due, export))

    def settle(self, due: Due, export: str) -> None:
        """The slot is done, and all before it."""
        self._standings[due.schedule.name] = self._after(due, export)
        self._failed.pop(due.schedule.name, None)

    def postpone(self, due: Due, now: Moment) -> None:
        """The slot's export failed now. The next slot of the schedule does not wait for it."""
        self._failed[due.schedule.name] = due.slot, now.steady + RETRY_MS

    def next(self) -> dict[str, datetime]:
        """By schedule the first slot that is not settled; in the past where it is overdue."""
        return {s.name: upcoming(s, self._standings[s.name]) for s in self._schedules}

    def _has_to_wait(self, name: str, slot: datetime, steady: int) -> bool:
        failed, until = self._failed.get(name, (None, 0))
        return failed == slot and steady < until

    def _after(self, due: Due, export: str) -> Standing:
        """Once the slot is made: it goes on with a run, or begins one."""
        slot, runs = due.slot, self._standings[due.schedule.name].runs
        start = next((a for a, b in runs if following(due.schedule, b) == slot), slot)
        others = [run for run in runs if run[0] != start]
        return Standing(slot, export, (*others, (start, slot))[-_MOST_RUNS:], slot)

    def _stand(self, name: str, standing: Standing) -> ProducerRecord:
        self._standings[name] = standing
        return self._message(name, standing)

    def _message(self, name: str, standing: Standing) -> ProducerRecord:
        return ProducerRecord(
            self._topic, name.encode(), msgspec.json.encode(standing), partition=0
        )


def upcoming(schedule: Schedule, standing: Standing) -> datetime:
    """The first slot that is not settled."""
    slot = following(schedule, standing.until)
    while (run := standing.run_of(slot)) is not None:
        slot = following(schedule, run[1])
    return slot


def read_standing(key: bytes, value: bytes) -> Standing | None:
    """How far that schedule is; None where no sink can have written it. Never raises."""
    try:
        standing = msgspec.json.decode(value, type=Standing)
        key.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    # Beyond these years calendars end while slots are looked for, and an offset would move them.
    until = standing.until
    made = standing.made or until
    moments = (until, made, *(moment for run in standing.runs for moment in run))
    if not all(m.tzinfo is UTC and _FIRST <= m <= _LAST for m in moments):
        return None
    # Earlier releases wrote down no runs, and not which slot was made.
    runs = standing.runs or ((until, until),)
    return replace(standing, runs=runs, made=None if standing.export is None else made)


def read_standings(table: Mapping[bytes, bytes]) -> dict[str, Standing]:
    """By schedule how far it is; what cannot be read counts as absent."""
    found = {key: read_standing(key, value) for key, value in table.items()}
    return {key.decode(): standing for key, standing in found.items() if standing is not None}


def _latest(schedule: Schedule, standing: Standing, now: datetime) -> datetime | None:
    """The last slot up to now that is not settled; None if there is none."""
    slot = latest(schedule, standing.until, now)
    while slot is not None and (run := standing.run_of(slot)) is not None:
        slot = latest(schedule, standing.until, run[0] - _SECOND)
    return slot


def _standing(until: datetime) -> Standing:
    return Standing(until, None, ((until, until),))


def _gone_back(standing: Standing, now: datetime) -> Standing:
    """As far as the schedule was before it skipped what lies after `now`."""
    if standing.run_of(now) is not None:
        return replace(standing, until=now)
    before = max((b for _, b in standing.runs if b <= now), default=None)
    if before is not None:
        return replace(standing, until=before)
    return replace(standing, until=now, runs=((now, now), *standing.runs[1 - _MOST_RUNS :]))


def _moment(now: Moment) -> datetime:
    return datetime.fromtimestamp(now.wall // 1000, UTC)
