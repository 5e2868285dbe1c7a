"""Tells of offsets that somebody had skipped in topics that no service reads.

Whoever reads a topic tells of a hole when coming to it. Rejections and announcements are read by
others, who would never learn of one. So the service that writes such a topic tells of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from worker.ops.health import Part
from worker.ops.metrics import Metrics
from worker.stream import Partition

_log = structlog.get_logger(__name__)


class Skips:
    """Tells of the skips of one service's topics, each once. `part` of the name is in theirs."""

    def __init__(self, metrics: Metrics, health: Part, part: str) -> None:
        self._metrics = metrics
        self._health = health
        self._part = part
        self._known: Mapping[Partition, int] | None = None

    def look(self, skipped: Mapping[Partition, int], now: int) -> None:
        """Compare with what was known. A skip from before the start takes no readiness."""
        known = self._known or {}
        for place, count in skipped.items():
            fresh = count - known.get(place, 0)
            if self._part not in place.topic or fresh <= 0:
                continue
            self._metrics.log_skipped(fresh)
            _log.error("log_skipped", topic=place.topic, partition=place.number, count=fresh)
            if self._known is not None:
                self._health.told(
                    f"{fresh} damaged offsets of {place.topic}/{place.number} were skipped: what"
                    " they said is lost to those who read this topic",
                    now,
                )
        self._known = skipped
