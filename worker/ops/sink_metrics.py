"""Metrics of the sink. See `worker.ops.metrics`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from prometheus_client import Gauge

from worker.ops.instruments import Instruments
from worker.stream import Partition

_EXPORT_SECONDS: Final = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 3_600)


class SinkMetrics:
    """What the sink consumes and exports."""

    def __init__(self, make: Instruments) -> None:
        self._applied = make.counters(
            "buddy_sink_rows_applied",
            "Accepted messages taken into the store, by what they were to it.",
            "outcome",
            ("changed", "deleted", "repeat"),
        )
        self._expired = make.counter(
            "buddy_sink_expired_messages", "Accepted messages that were gone before they were read."
        )
        self._lag = make.by_partition(
            "buddy_sink_lag_messages", "Accepted messages to be read, gaps among them."
        )
        self._exports = make.counters(
            "buddy_exports", "Exports carried out.", "outcome", ("finished", "failed")
        )
        self._export_seconds = make.histogram(
            "buddy_export_duration_seconds", "Time to carry out an export.", _EXPORT_SECONDS
        )
        self._place_away = make.gauge(
            "buddy_export_place_away", "Whether the place of exports cannot be used."
        )
        self._place_outages = make.counter(
            "buddy_export_place_outages", "Times that the place of exports could not be used."
        )
        self._active = make.gauge(
            "buddy_sink_active", "Whether this sink is the active one: it answers requests."
        )
        self._schedules = Gauge(
            "buddy_schedule_next_timestamp_seconds",
            "When a schedule runs next; in the past: it is overdue.",
            ("schedule",),
            registry=make.registry,
        )

    def applied(self, *, changed: int, deleted: int, repeats: int) -> None:
        """Count a batch of accepted messages that was applied to the store."""
        self._applied["changed"].inc(changed)
        self._applied["deleted"].inc(deleted)
        self._applied["repeat"].inc(repeats)

    def expired(self, messages: int) -> None:
        """Count accepted messages that were gone before the sink read them."""
        self._expired.inc(messages)

    def lag(self, messages: Mapping[Partition, int]) -> None:
        """Set the lag of each partition of the accepted topics."""
        self._lag.set(messages)

    def export(self, seconds: float, *, finished: bool) -> None:
        """Count an export that finished or failed, and observe its duration."""
        self._exports["finished" if finished else "failed"].inc()
        self._export_seconds.observe(seconds)

    def place(self, *, away: bool, outages: int) -> None:
        """Set whether the place of exports is away, and count further outages."""
        self._place_away.set(away)
        self._place_outages.inc(outages)

    def active(self, *, is_active: bool) -> None:
        """Set whether this sink answers requests; a passive sink shows no schedules."""
        self._active.set(is_active)
        if not is_active:
            self.schedules({})

    def schedules(self, following: Mapping[str, float]) -> None:
        """Set each schedule's first slot that is not done, in seconds since 1970."""
        self._schedules.clear()
        for name, moment in following.items():
            self._schedules.labels(name).set(moment)
