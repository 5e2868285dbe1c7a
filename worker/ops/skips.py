"""Reports offsets that an operator had skipped in topics that no service reads.

The reader of a topic reports a skipped hole when it gets there. Rejections and announcements have
only outside readers, who would never learn of a hole. So the service that writes such a topic
reports its holes.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from worker.ops.health import ServiceHealth
from worker.ops.metrics import Metrics
from worker.stream import Partition

_log = structlog.get_logger(__name__)


class Skips:
    """Reports the skips of one service's topics, each once: topics with `part` in their names."""

    def __init__(self, metrics: Metrics, health: ServiceHealth, part: str) -> None:
        self._metrics = metrics
        self._health = health
        self._part = part
        self._known: Mapping[Partition, int] | None = None

    def update(self, skipped: Mapping[Partition, int], now: int) -> None:
        """Compare with the last call. Skips from before the start do not affect readiness."""
        known = self._known or {}
        for partition, count in skipped.items():
            topic, number = partition
            fresh = count - known.get(partition, 0)
            if self._part not in topic or fresh <= 0:
                continue
            self._metrics.anomalies.log_skipped(fresh)
            _log.error("log_skipped", topic=topic, partition=number, count=fresh)
            if self._known is not None:
                self._health.report(
                    f"{fresh} damaged offsets of {topic}/{number} were skipped: what they said is"
                    " lost to those who read this topic",
                    now,
                )
        self._known = skipped
