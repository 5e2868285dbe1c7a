"""The leader's schedules: which slots are done, and which slot is due.

Pure: the caller passes in the time. Slots are moments of the wall clock; waits use the steady
clock. A compacted topic holds the standing of each schedule in one message. So the standing
survives a rebuilt store and a lost sink. This module makes the messages; the caller writes them.

The wall clock can be set, forward and back. A slot is made once, whatever the clock says later. A
slot that was made while the clock ran ahead is passed over when its time comes. The next slot
follows from the current clock, so a clock that runs ahead for a moment skips no slot.
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
"""The interval at which a failed slot is retried, until it is made or the next slot is due."""
_SECOND: Final = timedelta(seconds=1)

_MOST_RUNS: Final = 4

_FIRST: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = datetime(5000, 1, 1, tzinfo=UTC)

Time = Annotated[datetime, Meta(tz=True)]


class Standing(msgspec.Struct, frozen=True, omit_defaults=True):
    """The state of a schedule: all its slots up to `until` are done.

    `export` is the id of the last export, and `made` its slot; both are None before the first
    export. `made` may lie after `until` if the clock has gone back since.

    `runs` are the latest periods in which no slot was skipped. Each reaches from its first slot (or
    moment) to its last slot. Slots in a run stay made if the clock goes back before them.
    """

    until: Time
    export: str | None = None
    runs: tuple[tuple[Time, Time], ...] = ()
    made: Time | None = None

    def run_of(self, moment: datetime) -> tuple[datetime, datetime] | None:
        """The run that contains the moment; None if there is none."""
        return next(((a, b) for a, b in self.runs if a <= moment <= b), None)


class Due(msgspec.Struct, frozen=True):
    """A slot to export now."""

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
        """By schedule: the slot that failed last, and the steady time from which to retry it."""

    def begin(self, now: Moment) -> list[ProducerRecord]:
        """The messages to write before the first slot: new schedules count from now on."""
        moment = _moment(now)
        new = [s.name for s in self._schedules if s.name not in self._standings]
        return [self._stand(name, _standing(moment)) for name in new]

    def correct(self, now: Moment) -> list[ProducerRecord]:
        """The messages to write after the clock went back before slots that are done.

        Slots that were skipped, not made, are then no longer done.
        """
        moment = _moment(now)
        return [
            self._stand(schedule.name, _gone_back(standing, moment))
            for schedule in self._schedules
            if moment < (standing := self._standings[schedule.name]).until
        ]

    def due(self, now: Moment) -> Due | None:
        """The due slot of the schedule that has waited longest; None if no slot is due.

        If a schedule missed several slots, the latest stands for all of them.
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

    def message_of(self, due: Due, export: str) -> ProducerRecord:
        """The message that notes the slot as done; call `note_done` once it is written."""
        return self._message(due.schedule.name, self._after(due, export))

    def note_done(self, due: Due, export: str) -> None:
        """Note that the slot and all earlier slots of the schedule are done."""
        self._standings[due.schedule.name] = self._after(due, export)
        self._failed.pop(due.schedule.name, None)

    def postpone(self, due: Due, now: Moment) -> None:
        """Note that the slot's export failed now. The schedule's next slot does not wait for it."""
        self._failed[due.schedule.name] = due.slot, now.steady + RETRY_MS

    def next(self) -> dict[str, datetime]:
        """By schedule: the first slot that is not done; in the past if overdue."""
        return {s.name: upcoming(s, self._standings[s.name]) for s in self._schedules}

    def _has_to_wait(self, name: str, slot: datetime, steady: int) -> bool:
        failed, until = self._failed.get(name, (None, 0))
        return failed == slot and steady < until

    def _after(self, due: Due, export: str) -> Standing:
        """The standing once the slot is made: the slot extends a run, or begins one."""
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
    """The first slot that is not done."""
    slot = following(schedule, standing.until)
    while (run := standing.run_of(slot)) is not None:
        slot = following(schedule, run[1])
    return slot


def read_standing(key: bytes, value: bytes) -> Standing | None:
    """Decode a schedule's standing; None if no sink can have written it. Never raises."""
    try:
        standing = msgspec.json.decode(value, type=Standing)
        key.decode()
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    # Beyond these years a search for slots leaves the calendar. Other zones would shift slots.
    until = standing.until
    made = standing.made or until
    moments = (until, made, *(moment for run in standing.runs for moment in run))
    if not all(m.tzinfo is UTC and _FIRST <= m <= _LAST for m in moments):
        return None
    # Earlier releases saved neither runs nor the slot that was made.
    runs = standing.runs or ((until, until),)
    return replace(standing, runs=runs, made=None if standing.export is None else made)


def read_standings(table: Mapping[bytes, bytes]) -> dict[str, Standing]:
    """The standing of each schedule, by name; an unreadable one counts as absent."""
    found = {key: read_standing(key, value) for key, value in table.items()}
    return {key.decode(): standing for key, standing in found.items() if standing is not None}


def _latest(schedule: Schedule, standing: Standing, now: datetime) -> datetime | None:
    """The last slot up to `now` that is not done; None if there is none."""
    slot = latest(schedule, standing.until, now)
    while slot is not None and (run := standing.run_of(slot)) is not None:
        slot = latest(schedule, standing.until, run[0] - _SECOND)
    return slot


def _standing(until: datetime) -> Standing:
    return Standing(until, None, ((until, until),))


def _gone_back(standing: Standing, now: datetime) -> Standing:
    """The standing before the schedule skipped slots after `now`."""
    if standing.run_of(now) is not None:
        return replace(standing, until=now)
    before = max((b for _, b in standing.runs if b <= now), default=None)
    if before is not None:
        return replace(standing, until=before)
    return replace(standing, until=now, runs=((now, now), *standing.runs[1 - _MOST_RUNS :]))


def _moment(now: Moment) -> datetime:
    return datetime.fromtimestamp(now.wall // 1000, UTC)
