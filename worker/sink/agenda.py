"""What the active sink has to do by its schedules: which slots are settled, and which is due.

Pure: the clock's time is handed in. What is settled stands in a compacted topic, one message a
schedule, so it survives a rebuilt store and a lost sink; the messages are made here and written by
the caller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from worker.brokers.contract import Outgoing
from worker.sink.requests import ExportRequest, fill_in
from worker.sink.schedule import Schedule, following, latest, request_of
from worker.topics import Names

RETRY_MS: Final = 600_000
"""A slot whose export failed is tried again after so long, until it is done or the next is due."""


class Standing(msgspec.Struct, frozen=True):
    """How far a schedule is: all its slots up to `until` are settled.

    `export` is the id of the last slot's export, None as long as there is none.
    """

    until: Annotated[datetime, Meta(tz=True)]
    export: str | None = None


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
        self._until = {name: standing.until for name, standing in read_standings(table).items()}
        self._not_before: dict[str, int] = {}

    def begin(self, now: int) -> list[Outgoing]:
        """What to write down before the first slot: new schedules count from `now` (ms) on."""
        moment = _moment(now)
        new = [schedule.name for schedule in self._schedules if schedule.name not in self._until]
        self._until |= dict.fromkeys(new, moment)
        return [self._message(name, Standing(moment)) for name in new]

    def due(self, now: int) -> Due | None:
        """The slot to export at `now` (ms), the one that has waited longest; None if none is due.

        Of several that were missed the latest stands for all.
        """
        moment = _moment(now)
        overdue = sorted(
            (first, schedule.name, schedule)
            for schedule in self._schedules
            if (first := following(schedule, self._until[schedule.name])) <= moment
            and self._not_before.get(schedule.name, 0) <= now
        )
        for _, name, schedule in overdue[:1]:
            slot = latest(schedule, self._until[name], moment)
            assert slot is not None
            return Due(schedule, slot, fill_in(request_of(schedule, slot)))
        return None

    def settled(self, due: Due, export: str) -> Outgoing:
        """The message that says so; `settle` once it is written."""
        return self._message(due.schedule.name, Standing(due.slot, export))

    def settle(self, due: Due) -> None:
        """The slot is done, and all before it."""
        self._until[due.schedule.name] = due.slot
        self._not_before.pop(due.schedule.name, None)

    def postpone(self, due: Due, now: int) -> None:
        """The slot's export failed at `now` (ms)."""
        self._not_before[due.schedule.name] = now + RETRY_MS

    def next(self) -> dict[str, datetime]:
        """By schedule the first slot that is not settled; in the past where it is overdue."""
        return {s.name: following(s, self._until[s.name]) for s in self._schedules}

    def _message(self, name: str, standing: Standing) -> Outgoing:
        return Outgoing(self._topic, name.encode(), msgspec.json.encode(standing), partition=0)


def read_standings(table: Mapping[bytes, bytes]) -> dict[str, Standing]:
    """By schedule how far it is; what cannot be read counts as absent."""
    found = {}
    for key, value in table.items():
        try:
            found[key.decode()] = msgspec.json.decode(value, type=Standing)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            continue
    return found


def _moment(milliseconds: int) -> datetime:
    return datetime.fromtimestamp(milliseconds // 1000, UTC)
