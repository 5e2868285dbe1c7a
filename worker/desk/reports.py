"""The metrics, health and logs of the desk. Nothing that the desk does depends on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import structlog

from worker.brokers.transactions import OpenTransactions
from worker.clock import Clock
from worker.desk.incidents import IncidentReport
from worker.desk.still_open import OpenCount
from worker.desk.webhook import WebhookFailed, details, headline
from worker.log import Sparing
from worker.ops.desk_metrics import OpenIncident
from worker.ops.health import ServiceHealth
from worker.ops.metrics import Metrics
from worker.ops.steady_health import STEADY_MS, SteadyHealth
from worker.stream import Partition

_TRANSACTIONS, _WEBHOOK, _LOG = "transactions", "webhook", "log"
"""Parts of its work in which the desk can be hindered."""
_SKEW_MS: Final = 60_000

_log = structlog.get_logger(__name__)


class DeskReports:
    """Turns events of the desk into metrics, health and logs."""

    def __init__(
        self, metrics: Metrics, health: ServiceHealth, clock: Clock, *, tells_steps: bool = True
    ) -> None:
        """Without `tells_steps`, another service of the process tells that the clock was set."""
        self.health = health
        self._tells_steps = tells_steps
        self._metrics = metrics
        self._clock = clock
        self._hindrances = SteadyHealth(health, clock.steady)
        self._transactions = OpenTransactions(clock.steady)
        self._unreadable = Sparing(_unreadable_rejection)
        self._rebuilt = self._replayed = 0
        self._identity = ""
        """That of the store in the last pass."""
        self._is_off = self._is_beside = False

    def alive(self) -> None:
        """The desk has read something, found nothing to read, or tries again."""
        self.health.alive(self._clock.steady())

    def waits(self, what: str, error: Exception, seconds: float) -> None:
        """A part of the work failed and is tried again after so many seconds."""
        _log.warning("desk_waits", error=str(error), retry_in=round(seconds, 1))
        self._hindrances.hindered(what, str(error))
        self.alive()  # a restart does not cure it

    def free(self, what: str, after: int = STEADY_MS) -> None:
        """That part of the work goes on; effective once it has gone well for `after` ms."""
        self._hindrances.free(what, after)

    def damage(self, damage: Sequence[str]) -> None:
        """The damage known in the broker's log, whoever found it; one line each."""
        self._metrics.anomalies.log_damaged(len(damage))
        if damage:
            self.health.hindered(_LOG, damage[0], self._clock.steady())
        else:
            self.health.free(_LOG)

    def unreadable(self, partition: Partition, offset: int) -> None:
        """A message is no rejection, or no audit of a replay; it was skipped."""
        self._metrics.anomalies.unreadable_internal(1)
        where = {"topic": partition.topic, "partition": partition.number, "offset": offset}
        self._unreadable.warn([where])

    def missed(self, line: str) -> None:
        """Something was gone before it was read."""
        _log.error("desk_missed", what=line)
        self.health.report(line, self._clock.steady())

    def expired(self, partition: Partition, count: int) -> None:
        """Offsets of rejections were removed before they were read."""
        self._metrics.anomalies.rejections_expired(count)
        _log.warning(
            "rejections_expired", topic=partition.topic, partition=partition.number, count=count
        )
        self.health.report(
            f"{partition.topic}/{partition.number} has lost {count} messages that were not read:"
            " see rejections_expired in docs/operations/troubleshooting.md",
            self._clock.steady(),
        )

    def read(self, done: int, total: int) -> None:
        """A pass has read so many offsets of so many."""
        self.health.lag(total - done)
        self.alive()

    def opened(self) -> None:
        """The store was opened: what it counts begins anew."""
        _log.info("desk_started")
        self._is_beside = False
        self._rebuilt = self._replayed = 0

    def beside(self) -> None:
        """Another process keeps the store: there is nothing to do here."""
        if not self._is_beside:
            _log.info("desk_beside")
        self._is_beside = True
        self.health.restored()
        self.health.lag(0)
        self.alive()

    def clock_stepped(self, milliseconds: int) -> None:
        """The wall clock was set."""
        if self._tells_steps:
            self._metrics.anomalies.clock_stepped()
            _log.warning("clock_stepped", by_ms=milliseconds)

    def skew(self, milliseconds: int) -> None:
        """By how much the broker's clock is ahead of this one, as far as can be told."""
        is_off = abs(milliseconds) >= _SKEW_MS
        if is_off and not self._is_off:
            _log.warning("desk_clock_differs", by_ms=milliseconds)
        self._is_off = is_off

    def nothing_to_send(self) -> None:
        """There is no message for the webhook: whether it is away does not matter."""
        self.health.free(_WEBHOOK)

    def still_open(self, found: Mapping[str, OpenCount]) -> None:
        """What is open, by entity."""
        self._metrics.desk.still_open(
            {entity: count.records for entity, count in found.items()},
            {entity: (count.oldest or 0) / 1000 for entity, count in found.items()},
        )

    def caught_up(self, replayed: int, rebuilt: int, identity: str) -> None:
        """A pass has ended. The numbers are totals since the store was opened.

        They are audits of replays read, and replacements of the store with an empty one. Another
        process may replace it between two openings: then only its identity is another one.
        """
        self._metrics.desk.replayed(replayed - self._replayed)
        times = rebuilt - self._rebuilt
        if not times and self._identity not in ("", identity):
            _log.warning("desk_rebuilt", reason="another process found it to be unusable")
            times = 1
        self._metrics.anomalies.state_rebuilt("desk", times)
        self._replayed, self._rebuilt, self._identity = replayed, rebuilt, identity
        self.health.restored()
        self.health.lag(0)
        self._unreadable.flush()
        self.alive()

    def incidents(
        self, changed: Sequence[IncidentReport], still_open: Sequence[IncidentReport]
    ) -> None:
        """Incidents that opened or closed, and all that are open."""
        for one in changed:
            what = headline(one)
            fields = {"entity": one.entity, "about": one.what, "what": what, "found": details(one)}
            if one.closed is None:
                _log.warning("incident_opened", **fields)
            else:
                _log.warning("incident_closed", **fields)
        self._metrics.desk.incidents(
            {
                (one.entity, one.what): OpenIncident(
                    one.since / 1000,
                    [
                        (code, field, producer)
                        for code, field in one.violations
                        or [("", name) for name in one.names]
                        or [("", "")]
                        for producer in one.producers or [""]
                    ],
                )
                for one in still_open
            }
        )

    def webhook(self, error: WebhookFailed | None, retry_in: float = 0.0) -> None:
        """A message to the webhook was taken, or not."""
        self._metrics.desk.webhook(sent=error is None)
        if error is None:
            self.health.free(_WEBHOOK)
        else:
            line = f"the webhook of incidents {error}"
            _log.warning("webhook_failed", error=line, retry_in=round(retry_in, 1))
            self.health.hindered(_WEBHOOK, line, self._clock.steady())

    def open_transactions(self, ends: Mapping[Partition, tuple[int, int]]) -> None:
        """Report partitions that are blocked by a transaction that stays open.

        `ends`: for each partition, how far it can be read, and its real end.
        """
        blocked = self._transactions.update(ends)
        if blocked is None:
            self.health.free(_TRANSACTIONS)
            return
        _log.warning("rejections_blocked", **blocked.log_fields())
        self.health.hindered(_TRANSACTIONS, str(blocked), self._clock.steady())


def _unreadable_rejection(**fields: object) -> None:
    _log.error("unreadable_rejection", **fields)
