"""What a sink tells of its work: metrics and health. Nothing it does depends on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

import structlog

from worker.clock import StepWatch
from worker.engine.transactions import OpenTransactions
from worker.log import Sparing
from worker.ops.health import Health, Part
from worker.ops.metrics import Metrics
from worker.ops.skips import Skips
from worker.sink.store.row_store import Applied
from worker.stream import Partition

_log = structlog.get_logger(__name__)

_GONE: Final = {
    "export-requests": "requests that had not been answered are gone, ask again",
    "exports": "earlier announcements are gone; 'buddy exports list' names what is finished",
    "internal.schedules": "slots that were due before may have been left out",
}
"""What is gone with a topic, or with offsets of it, by its name without the prefix."""

_LAG_EVERY_MS: Final = 5_000
"""Lag costs a question to the broker."""
_PLACE, _TRANSACTIONS = "exports", "transactions"
"""What a sink can be hindered in."""
_MOST_GARBAGE: Final = 10_000
"""Of so many garbled messages it is known that they have been counted."""


class Reports:
    """Tells what it is told. `clock` is a steady one, in milliseconds.

    `steps` watches the wall clock, where no worker of this process does.
    """

    def __init__(
        self,
        metrics: Metrics,
        health: Part,
        clock: Callable[[], int],
        steps: StepWatch | None = None,
    ) -> None:
        self.health = health
        self._metrics = metrics
        self._clock = clock
        self._steps = steps
        self._measured = -_LAG_EVERY_MS
        self._place_away = False
        self._away: str | None = None
        self._hangs: str | None = None
        self._hung_since = 0
        self._was_active = False
        """It was the active sink, and is not now: the place is another sink's business."""
        self._skips = Skips(metrics, health, ".exports")
        self._transactions = OpenTransactions(clock)
        self._foreign_rows = Sparing(_foreign_row)
        self._split_keys = Sparing(_key_in_two_partitions)
        self._garbage = Sparing(_unreadable_internal)
        self._wiped = 0
        self._known_garbage: set[tuple[Partition, int]] = set()

    def alive(self) -> None:
        """Something was read, or nothing was there; or the broker is away and tried again."""
        self.health.alive(self._clock())

    def hindered(self, what: str, reason: str) -> None:
        """The sink is kept from a part of its work until `free`: not ready meanwhile."""
        self.health.hindered(what, reason, self._clock())

    def free(self, what: str) -> None:
        """That part of its work goes on, or is not its own any more."""
        self.health.free(what)

    def applied(self, applied: Applied) -> None:
        """A batch is in the store."""
        self._metrics.sink_applied(
            changed=applied.changed,
            deleted=applied.deleted,
            repeats=applied.repeats,
            foreign=len(applied.refused),
        )
        self._metrics.split_keys(len(applied.split))
        self._split_keys.tell([split.told() for split in applied.split])
        self._foreign_rows.tell([refused.told("sink") for refused in applied.refused])

    def unreadable(self, place: Partition, offset: int) -> None:
        """A message of a topic of the project's own is garbage; it was skipped, maybe again."""
        if (place, offset) in self._known_garbage:
            return
        if len(self._known_garbage) >= _MOST_GARBAGE:
            self._known_garbage.clear()
        self._known_garbage.add((place, offset))
        self._metrics.unreadable_internal(1)
        where = {"topic": place.topic, "partition": place.number, "offset": offset}
        self._garbage.tell([where])

    def rest(self) -> None:
        """Log what has been counted and not logged yet."""
        self._foreign_rows.rest()
        self._split_keys.rest()
        self._garbage.rest()

    def rebuilt(self, times: int) -> None:
        """The store was thrown away so often since the start."""
        self._metrics.state_rebuilt("store", times - self._wiped)
        self._wiped = times

    def expired(self, messages: int) -> None:
        """Messages were gone before they were read."""
        self._metrics.sink_expired(messages)
        self.health.expired(messages, self._clock())

    def damage(self, damage: Sequence[str]) -> None:
        """What anybody has found damaged in the broker's log."""
        self._metrics.log_damaged(len(damage))
        if damage:
            self.health.hindered("log", damage[0], self._clock())
        else:
            self.health.free("log")

    def log_upkeep(self, hindrance: str | None) -> None:
        """What keeps the broker from expiring and compacting."""
        if hindrance is not None:
            self.health.hindered("log upkeep", hindrance, self._clock())
        else:
            self.health.free("log upkeep")

    def skips(self, skipped: Mapping[Partition, int]) -> None:
        """What anybody has skipped in the broker's log."""
        self._skips.look(skipped, self._clock())

    def lag_is_due(self) -> bool:
        """Whether it is time to measure the lag again."""
        now = self._clock()
        due = now - self._measured >= _LAG_EVERY_MS
        if due:
            self._measured = now
        return due

    def lag(self, ends: Mapping[Partition, int], positions: Mapping[Partition, int]) -> None:
        """How far the store is behind."""
        lag = {place: max(0, end - positions[place]) for place, end in ends.items()}
        self._metrics.sink_lag(lag)
        self.health.lag(sum(lag.values()))

    def open_transactions(self, ends: Mapping[Partition, tuple[int, int]]) -> None:
        """Tell of topics that stand still because a transaction there stays open.

        `ends`: how far each can be read, and where it really ends.
        """
        blocked = self._transactions.look(ends)
        if blocked is None:
            self.free(_TRANSACTIONS)
            return
        _log.warning("accepted_blocked", **blocked.told())
        self.hindered(_TRANSACTIONS, str(blocked))

    def export(self, seconds: float, *, finished: bool) -> None:
        """An export was finished, or has failed."""
        self._metrics.export(seconds, finished=finished)

    def place(self, away: str | None) -> None:
        """The place of exports cannot be used, in one line why; None: it can.

        What a term began and ends behind it is told by whoever has the next one.
        """
        self._away = None if self._was_active else away
        self._tell_place()

    def place_hangs(self, hangs: str | None) -> None:
        """A call to the place hangs, in one line which; None: none does. For every look."""
        if hangs is None and self._hangs is None:
            return
        if self._hangs is None:
            self._hung_since = self._clock()
            _log.warning("export_place_hangs", error=hangs)
        elif hangs is None:
            seconds = (self._clock() - self._hung_since) / 1000
            _log.info("export_place_back", seconds=round(seconds, 1))
        self._hangs = hangs
        self._tell_place()

    def _tell_place(self) -> None:
        away = None if self._was_active else self._hangs or self._away
        was_away, self._place_away = self._place_away, away is not None
        outages = int(self._place_away and not was_away)
        self._metrics.export_place(away=self._place_away, outages=outages)
        if away is None:
            self.free(_PLACE)
        else:
            self.alive()  # it is tried again, also at the start: a restart cures no outage
            self.hindered(_PLACE, away)

    def active(self, *, is_active: bool) -> None:
        """This sink has become the active one, or is it no longer."""
        self._metrics.sink_active(is_active=is_active)
        self._was_active = not is_active
        if not is_active:
            self.place(None)

    def look_at_clock(self) -> None:
        """Tell if the wall clock was set."""
        if self._steps is not None and (step := self._steps.step()):
            self._metrics.clock_stepped()
            _log.warning("clock_stepped", by_ms=step)

    def skipped(self, place: Partition, count: int) -> None:
        """Offsets of another topic than the accepted ones were removed, or damaged and skipped."""
        self._metrics.unreadable_internal(count)
        self.health.told(
            f"{count} offsets of {place.topic}/{place.number} were removed, or damaged and skipped:"
            f" {_lost(place.topic)}",
            self._clock(),
        )
        _log.error("internal_skipped", topic=place.topic, partition=place.number, count=count)

    def recreated(self, topic: str) -> None:
        """Another topic than the accepted ones was created anew."""
        self._metrics.internal_recreated()
        self.health.told(f"topic {topic} was created anew: {_lost(topic)}", self._clock())
        _log.error("internal_recreated", topic=topic, partition=0)

    def schedules(self, following: Mapping[str, datetime]) -> None:
        """By schedule its first slot that is not done; told by the active sink alone."""
        self._metrics.schedules({name: at.timestamp() for name, at in following.items()})


def _lost(topic: str) -> str:
    return next(lost for name, lost in _GONE.items() if topic.endswith(f".{name}"))


def _foreign_row(**fields: object) -> None:
    _log.error("foreign_row", **fields)


def _key_in_two_partitions(**fields: object) -> None:
    _log.warning("key_in_two_partitions", **fields)


def _unreadable_internal(**fields: object) -> None:
    _log.error("unreadable_internal", **fields)


def unheard(clock: Callable[[], int]) -> Reports:
    """Reports that go to metrics that nobody serves."""
    metrics = Metrics()
    return Reports(metrics, Health(metrics, clock).part("sink"), clock)
