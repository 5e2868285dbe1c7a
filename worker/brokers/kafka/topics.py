"""A topic's settings as Kafka has them, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiokafka.admin import NewTopic

from worker.stream import Topic

COMPACTED_SEGMENT_BYTES = 128 * 1024 * 1024
"""The newest segment is never compacted. Kafka's default of 1 GiB would have to be read at each
restore of a changelog whose live content is a few kilobytes."""

COMPACTED_DIRTY_RATIO = "0.2"
"""Compact when a fifth is stale (Kafka's default: half)."""


def new_topic(topic: Topic) -> Any:
    """The topic as aiokafka wants it, to be created."""
    policy = "delete"
    if topic.compacted:
        policy = "compact" if topic.retention_ms is None else "compact,delete"
    settings = {
        "cleanup.policy": policy,
        "message.timestamp.type": "LogAppendTime" if topic.append_time else "CreateTime",
        "retention.ms": str(-1 if topic.retention_ms is None else topic.retention_ms),
        "delete.retention.ms": str(topic.delete_retention_ms),
        "max.message.bytes": str(topic.max_message_bytes),
    }
    if topic.compacted:
        settings["segment.bytes"] = str(COMPACTED_SEGMENT_BYTES)
        settings["min.cleanable.dirty.ratio"] = COMPACTED_DIRTY_RATIO
    # -1: as many replicas as the broker makes by default; the empty assignments let it pass.
    return NewTopic(
        topic.name, topic.partitions, -1, replica_assignments={}, topic_configs=settings
    )


def topic_from(name: str, partitions: int, settings: Mapping[str, str]) -> Topic:
    """The topic that has these settings of Kafka's."""
    policy = settings["cleanup.policy"].split(",")
    retention = int(settings["retention.ms"])
    return Topic(
        name=name,
        partitions=partitions,
        compacted="compact" in policy,
        append_time=settings["message.timestamp.type"] == "LogAppendTime",
        retention_ms=None if retention < 0 or "delete" not in policy else retention,
        delete_retention_ms=int(settings["delete.retention.ms"]),
        max_message_bytes=int(settings["max.message.bytes"]),
    )
