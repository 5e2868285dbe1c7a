"""The metrics and health of a sink. Nothing that the sink does depends on them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Final

import structlog

from worker.brokers.transactions import OpenTransactions
from worker.clock import StepWatch
from worker.core.incidents import REJECTIONS_GONE, ROWS_GONE
from worker.log import Sparing
from worker.ops.health import Health, ServiceHealth
from worker.ops.metrics import Metrics
from worker.ops.skips import Skips
from worker.ops.steady_health import STEADY_MS, SteadyHealth
from worker.sink.store.row_store import Applied
from worker.stream import Partition

_log = structlog.get_logger(__name__)

_GONE: Final = {
    "export-requests": "requests that had not been answered are gone, ask again",
    "exports": "earlier announcements are gone; 'buddy exports list' names what is finished",
    "internal.schedules": "slots that were due before may have been left out",
    "replays": "what earlier replays named counts as not sent again",
    "accepted": ROWS_GONE,
    "rejected": REJECTIONS_GONE,
}
"""What is lost if a topic, or offsets of it, are gone; by topic name without prefix and entity."""

_PLACE, _TRANSACTIONS = "exports", "transactions"
"""Parts of its work in which a sink can be hindered."""
_MOST_GARBAGE: Final = 10_000
"""How many garbage messages are remembered, so that each is counted once."""


class SinkReports:
    """Turns events of the sink into metrics, health and logs.

    `clock` is steady, in milliseconds. `steps` watches the wall clock; None if a worker of this
    process does.
    """

    def __init__(
        self,
        metrics: Metrics,
        health: ServiceHealth,
        clock: Callable[[], int],
        steps: StepWatch | None = None,
    ) -> None:
        self.health = health
        self._metrics = metrics
        self._clock = clock
        self._steps = steps
        self._place_away = False
        self._away: str | None = None
        self._hangs: str | None = None
        self._hung_since = 0
        self._was_active = False
        """This sink has led and no longer does: the export place is now another sink's concern."""
        self._hindrances = SteadyHealth(health, clock)
        self._skips = Skips(metrics, health, ".exports")
        self._transactions = OpenTransactions(clock)
        self._foreign_rows = Sparing(_foreign_row)
        self._hidden_rows = Sparing(_row_hidden)
        self._split_keys = Sparing(_key_in_two_partitions)
        self._garbage = Sparing(_unreadable_internal)
        self._wiped = 0
        self._known_garbage: set[tuple[Partition, int]] = set()

    def alive(self) -> None:
        """The sink is alive: it read, found nothing to read, or retries an unreachable broker."""
        self.health.alive(self._clock())

    def hindered(self, what: str, reason: str) -> None:
        """A part of the sink's work is blocked until `free`; the sink is not ready meanwhile."""
        self._hindrances.hindered(what, reason)

    def free(self, what: str, after: int = STEADY_MS) -> None:
        """That part of the work goes on; effective once it has gone well for `after` ms.

        With 0, at once: what hindered it is seen to be over, or it is no longer this sink's work.
        """
        self._hindrances.free(what, after)

    def applied(self, applied: Applied) -> None:
        """A batch is in the store."""
        self._metrics.sink.applied(
            changed=applied.changed,
            deleted=applied.deleted,
            repeats=applied.repeats,
        )
        self._metrics.anomalies.foreign_rows("sink", len(applied.refused))
        self._metrics.anomalies.split_keys(len(applied.split))
        self._split_keys.warn([split.log_fields() for split in applied.split])
        self._foreign_rows.warn([refused.log_fields("sink") for refused in applied.refused])
        self._metrics.anomalies.hidden_rows(len(applied.hiding))
        self._hidden_rows.warn([hiding.log_fields("sink") for hiding in applied.hiding])
        for topic, partition in {(m.topic, m.partition) for m, _ in applied.hiding}:
            self.health.report(
                f"{topic}/{partition} has foreign messages behind rows of the same key, which the"
                " log will drop: send those records again (row_hidden in the log has the places)",
                self._clock(),
            )

    def unreadable(self, partition: Partition, offset: int) -> None:
        """A garbage message in one of the project's own topics was skipped; repeats are ignored."""
        if (partition, offset) in self._known_garbage:
            return
        if len(self._known_garbage) >= _MOST_GARBAGE:
            self._known_garbage.clear()
        self._known_garbage.add((partition, offset))
        self._metrics.anomalies.unreadable_internal(1)
        where = {"topic": partition.topic, "partition": partition.number, "offset": offset}
        self._garbage.warn([where])

    def flush(self) -> None:
        """Log the events that were counted but not logged yet."""
        self._foreign_rows.flush()
        self._hidden_rows.flush()
        self._split_keys.flush()
        self._garbage.flush()

    def rebuilt(self, times: int) -> None:
        """The store was wiped this many times since the start."""
        self._metrics.anomalies.state_rebuilt("store", times - self._wiped)
        self._wiped = times

    def expired(self, messages: int) -> None:
        """This many messages expired before they were read."""
        self._metrics.sink.expired(messages)
        self.health.expired(messages, self._clock())

    def truncated(self, partition: Partition, count: int) -> None:
        """These offsets, which had been read, are gone from the end of an accepted topic."""
        self._metrics.anomalies.accepted_truncated(count)
        self.health.report(
            f"{partition.topic}/{partition.number} has lost its last {count} offsets: rows are"
            " missing; have them judged again with 'buddy reprocess'",
            self._clock(),
        )
        _log.error(
            "accepted_truncated", topic=partition.topic, partition=partition.number, count=count
        )

    def damage(self, damage: Sequence[str]) -> None:
        """The damage known in the broker's log, whoever found it; one line each."""
        self._metrics.anomalies.log_damaged(len(damage))
        if damage:
            self.health.hindered("log", damage[0], self._clock())
        else:
            self.health.free("log")

    def log_upkeep(self, hindrance: str | None) -> None:
        """What keeps the broker from expiring and compacting; None if nothing does."""
        if hindrance is not None:
            self.health.hindered("log upkeep", hindrance, self._clock())
        else:
            self.health.free("log upkeep")

    def skips(self, skipped: Mapping[Partition, int]) -> None:
        """The damaged offsets skipped in the broker's log, whoever skipped them."""
        self._skips.update(skipped, self._clock())

    def lag(self, ends: Mapping[Partition, int], positions: Mapping[Partition, int]) -> None:
        """How far the store is behind."""
        lag = {partition: max(0, end - positions[partition]) for partition, end in ends.items()}
        self._metrics.sink.lag(lag)
        self.health.lag(sum(lag.values()))

    def open_transactions(self, ends: Mapping[Partition, tuple[int, int]]) -> None:
        """Report partitions that are blocked by a transaction that stays open.

        `ends`: for each partition, how far it can be read, and its real end.
        """
        blocked = self._transactions.update(ends)
        if blocked is None:
            self.health.free(_TRANSACTIONS)
            return
        _log.warning("accepted_blocked", **blocked.log_fields())
        self.health.hindered(_TRANSACTIONS, str(blocked), self._clock())

    def export(self, seconds: float, *, finished: bool) -> None:
        """An export finished or failed."""
        self._metrics.sink.export(seconds, finished=finished)

    def place(self, away: str | None) -> None:
        """Why the export place cannot be used, in one line; None if it can be used.

        A call that outlives this sink's leadership session counts for nothing: the next leader
        reports.
        """
        self._away = None if self._was_active else away
        self._tell_place()

    def place_hangs(self, hangs: str | None) -> None:
        """The call to the place that hangs, in one line; None if none does. Call this regularly."""
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
        self._metrics.sink.place(away=self._place_away, outages=outages)
        if away is None:
            self.free(_PLACE, after=0)
        else:
            self.alive()  # it retries, even during start-up: a restart does not cure an outage
            self.hindered(_PLACE, away)

    def active(self, *, is_active: bool) -> None:
        """This sink became active, or stopped being active."""
        self._metrics.sink.active(is_active=is_active)
        self._was_active = not is_active
        if not is_active:
            self.place(None)

    def watch_clock(self) -> None:
        """Report a step of the wall clock."""
        if self._steps is not None and (step := self._steps.step()):
            self._metrics.anomalies.clock_stepped()
            _log.warning("clock_stepped", by_ms=step)

    def skipped(self, partition: Partition, count: int) -> None:
        """Offsets of a topic other than the accepted ones were removed, or skipped as damaged."""
        self._metrics.anomalies.unreadable_internal(count)
        self.health.report(
            f"{count} offsets of {partition.topic}/{partition.number} were removed, or damaged and"
            f" skipped: {_lost(partition.topic)}",
            self._clock(),
        )
        _log.error(
            "internal_skipped", topic=partition.topic, partition=partition.number, count=count
        )

    def lost_end(self, partition: Partition) -> None:
        """A topic other than the accepted ones has lost its last messages."""
        self._metrics.anomalies.internal_truncated()
        self.health.report(
            f"{partition.topic}/{partition.number} has lost its last messages:"
            f" {_lost(partition.topic)}",
            self._clock(),
        )
        _log.error("internal_truncated", topic=partition.topic, partition=partition.number)

    def recreated(self, topic: str) -> None:
        """A topic was recreated. A worker tells of some, too, unless its own state is lost."""
        kind = _kind(topic)
        self.health.report(f"topic {topic} was created anew: {_lost(topic)}", self._clock())
        if kind == "accepted":
            self._metrics.anomalies.accepted_recreated()
            _log.error("accepted_recreated", topic=topic)
        elif kind == "rejected":
            self._metrics.anomalies.rejected_recreated()
            _log.error("rejected_recreated", topic=topic)
        else:
            self._metrics.anomalies.internal_recreated()
            _log.error("internal_recreated", topic=topic, partition=0)

    def schedules(self, following: Mapping[str, datetime]) -> None:
        """By schedule: its first slot that is not done. Only the leader calls this."""
        self._metrics.sink.schedules({name: at.timestamp() for name, at in following.items()})


def _lost(topic: str) -> str:
    return _GONE[_kind(topic)]


def _kind(topic: str) -> str:
    """The topic's name without prefix and entity, by which `_GONE` knows it."""
    name = topic.partition(".")[2]
    return name if name in _GONE else name.partition(".")[0]


def _foreign_row(**fields: object) -> None:
    _log.error("foreign_row", **fields)


def _row_hidden(**fields: object) -> None:
    _log.error("row_hidden", **fields)


def _key_in_two_partitions(**fields: object) -> None:
    _log.warning("key_in_two_partitions", **fields)


def _unreadable_internal(**fields: object) -> None:
    _log.error("unreadable_internal", **fields)


def unheard(clock: Callable[[], int]) -> SinkReports:
    """Reports whose metrics nobody serves."""
    metrics = Metrics()
    return SinkReports(metrics, Health(metrics, clock).part("sink"), clock)
