"""Metrics of the desk. See `worker.ops.metrics`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple

from prometheus_client import Gauge

from schemas import ENTITIES
from worker.ops.instruments import Instruments

_WHAT: Final = ("rejections", "unknown_fields")


class OpenIncident(NamedTuple):
    """When an incident began, in seconds since 1970, and what stands out in it.

    That is code, field and producer; each may be empty.
    """

    since: float
    values: Sequence[tuple[str, str, str]]


class DeskMetrics:
    """What is open, and what was sent again."""

    def __init__(self, make: Instruments) -> None:
        self._open = make.gauges(
            "buddy_desk_open_rejections", "Rejections that are open.", "entity", ENTITIES
        )
        self._oldest = make.gauges(
            "buddy_desk_oldest_open_timestamp_seconds",
            "When the oldest open rejection was written, by the minute (0: none is open).",
            "entity",
            ENTITIES,
        )
        self._replayed = make.counter(
            "buddy_desk_replayed_records",
            "Audits of replays that the desk has read: records that somebody has sent again.",
        )
        self._incident = Gauge(
            "buddy_incident_open",
            "Whether far more of an entity is rejected, or has unknown fields, than usual.",
            ("entity", "what"),
            registry=make.registry,
        )
        self._stands_out = Gauge(
            "buddy_incident_since_timestamp_seconds",
            "When an open incident began, by what stands out in it.",
            ("entity", "what", "code", "field", "producer"),
            registry=make.registry,
        )
        self._shown: set[tuple[str, ...]] = set()
        self.incidents({})
        self._webhook = make.counters(
            "buddy_incident_webhook_messages",
            "Messages to the webhook of incidents.",
            "outcome",
            ("sent", "failed"),
        )

    def still_open(self, records: Mapping[str, int], oldest: Mapping[str, float]) -> None:
        """Set the open rejections by entity, and the times of the oldest in seconds since 1970."""
        for entity, gauge in self._open.items():
            gauge.set(records.get(entity, 0))
        for entity, gauge in self._oldest.items():
            gauge.set(oldest.get(entity, 0))

    def incidents(self, found: Mapping[tuple[str, str], OpenIncident]) -> None:
        """Set the open incidents, by entity and what they are about."""
        for entity in ENTITIES:
            for what in _WHAT:
                self._incident.labels(entity, what).set((entity, what) in found)
        series = {
            (entity, what, *values): incident.since
            for (entity, what), incident in found.items()
            for values in incident.values
        }
        for labels in self._shown - series.keys():
            self._stands_out.remove(*labels)
        for labels, since in series.items():
            self._stands_out.labels(*labels).set(since)
        self._shown = set(series)

    def webhook(self, *, sent: bool) -> None:
        """Count a message to the webhook."""
        self._webhook["sent" if sent else "failed"].inc()

    def replayed(self, records: int) -> None:
        """Count audits of records sent again that the desk has read."""
        self._replayed.inc(records)
