"""Values that all packages share: partitions, messages, producer records, topics, offset ranges."""

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
    """True if `timestamp` is the broker's append time, false if the producer's create time."""


class ProducerRecord(msgspec.Struct, frozen=True, gc=False):
    """One message to write.

    If `partition` is None, Kafka's default partitioner places the message by murmur2 of its key.
    Messages without a key are spread over the partitions.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class Topic(msgspec.Struct, frozen=True):
    """A topic and the settings that the program relies on.

    If `retention_ms` is None, messages never expire. A `compacted` topic keeps the latest message
    of each key, and keeps a tombstone for at least `delete_retention_ms`. With `append_time`, the
    broker stamps each message; otherwise the producer does.
    """

    name: str
    partitions: int
    compacted: bool = False
    append_time: bool = True
    retention_ms: int | None = None
    delete_retention_ms: int = 7 * 24 * 3600 * 1000
    max_message_bytes: int = 1024 * 1024


class OffsetRange(NamedTuple):
    """The offsets that a partition holds: `start` is inclusive, `end` is exclusive.

    Compaction never moves `start`; only retention or a manual deletion does. So a compacted
    partition that starts above 0 may lack the latest message of a key.
    """

    start: int
    end: int
    tombstones_from: int = 0
    """Compaction has removed no tombstone at or above this offset because of its age.

    Whoever continues from a lower offset may have missed a deletion. Kafka does not tell: 0.
    """


class GroupMember(NamedTuple):
    """A live member of a group, as others see it."""

    name: str
    """The broker's name for the member; a member that joins again gets a new name."""
    numbers: frozenset[int]
    """The partition numbers that the member owns; empty during a rebalance or on standby."""
    ours: bool = True
    """False for another program: any client may join a Kafka group."""
