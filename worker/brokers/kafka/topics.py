"""Converts a `Topic` to Kafka's topic settings, and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from aiokafka.admin import NewTopic

from worker.stream import Topic

COMPACTED_SEGMENT_BYTES = 128 * 1024 * 1024
"""Kafka never compacts the newest segment. With its default of 1 GiB, each restore of a changelog
with a few kilobytes of live content would read up to 1 GiB."""

COMPACTED_DIRTY_RATIO = "0.2"
"""Compact when a fifth of the log is dirty (Kafka's default: half)."""


def new_topic(topic: Topic) -> Any:
    """The request of aiokafka that creates this topic."""
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
    # -1: the broker's default replication factor. aiokafka accepts -1 only with assignments, which
    # may be empty.
    return NewTopic(
        topic.name, topic.partitions, -1, replica_assignments={}, topic_configs=settings
    )


def topic_from(name: str, partitions: int, settings: Mapping[str, str]) -> Topic:
    """The `Topic` that has these Kafka settings."""
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
