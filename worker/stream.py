"""What goes through a broker: partitions, messages, topics, ranges of offsets. Values alone."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

Headers = tuple[tuple[str, bytes], ...]


class Partition(NamedTuple):
    """One partition of one topic."""

    topic: str
    number: int


class Message(msgspec.Struct, frozen=True, gc=False):
    """One message as read. `value` None is a tombstone; `timestamp` is in milliseconds."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    appended: bool = True
    """Whether `timestamp` is the broker's append time (else the producer's own clock)."""


class ProducerRecord(msgspec.Struct, frozen=True, gc=False):
    """One message to be written.

    Without a `partition` Kafka's default partitioner places it: by murmur2 of the key; messages
    without a key are spread over the partitions.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class Topic(msgspec.Struct, frozen=True):
    """A topic and the settings that the rest relies on.

    `retention_ms` None keeps messages for ever. In a `compacted` topic the latest message of each
    key stays, and a tombstone stays at least `delete_retention_ms`. With `append_time` the broker
    stamps each message; else the producer does.
    """

    name: str
    partitions: int
    compacted: bool = False
    append_time: bool = True
    retention_ms: int | None = None
    delete_retention_ms: int = 7 * 24 * 3600 * 1000
    max_message_bytes: int = 1024 * 1024


class OffsetRange(NamedTuple):
    """The offsets that a partition holds: from `start` up to, not including, `end`.

    Compaction never moves `start`: what lies before it was removed, by retention or by somebody.
    So a compacted partition that starts above 0 may lack the latest message of a key.
    """

    start: int
    end: int
