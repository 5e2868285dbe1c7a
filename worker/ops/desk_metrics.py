"""Metrics of the desk. See `worker.ops.metrics`."""

from __future__ import annotations

from collections.abc import Mapping

from schemas import ENTITIES
from worker.ops.instruments import Instruments


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
            "buddy_desk_replayed_records", "Records that somebody has sent again."
        )

    def still_open(self, records: Mapping[str, int], oldest: Mapping[str, float]) -> None:
        """Set the open rejections by entity, and the times of the oldest in seconds since 1970."""
        for entity, gauge in self._open.items():
            gauge.set(records.get(entity, 0))
        for entity, gauge in self._oldest.items():
            gauge.set(oldest.get(entity, 0))

    def replayed(self, records: int) -> None:
        """Count audits of records sent again that the desk has read."""
        self._replayed.inc(records)
