"""What counts as a row in the accepted topics: one rule for the index and the sink. Pure.

Only the worker should write there, but nothing is trusted: a message that the worker cannot have
written is *foreign*. Both readers set a foreign message aside and count it. The earlier row of its
key stays in force in both.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import StrEnum
from functools import cache
from itertools import groupby
from operator import attrgetter
from typing import Final, NamedTuple

from schemas import ENTITIES
from schemas.fields import Row
from worker.brokers.partitioner import partitions_for
from worker.core.columns import ColumnDecoder
from worker.core.decode import RecordDecoder
from worker.core.keys import read_key
from worker.core.outbox import SOURCE_HEADER
from worker.stream import Message, Partition

_ANY_SIZE: Final = 1 << 60
"""No limit: the size limit is for records. Lowering it must not refuse rows accepted before."""

_LAST_MS: Final = 253_402_300_000_000
"""In the year 9999: the times of a row are compared with no clock."""

_SOURCE: Final = re.compile(rb"([^/]+)/([0-9]{1,9})/[0-9]{1,19}")
"""Input topic, partition and offset: what a worker writes into the header of each row."""

_topic = attrgetter("topic")


class Foreign(StrEnum):
    """Why a message is not a row. It quotes no content."""

    NO_KEY = "it has no key"
    KEY = "its key is not canonical"
    ROW = "its value is no row in canonical form"
    OTHER_KEY = "its key is not the key of its row"
    PARTITION = "its key belongs into another partition"


Read = Row | Foreign | None
"""A row, the reason why it is not a row, or None: the deletion of the key's row."""


class ForeignMessage(NamedTuple):
    """A foreign message."""

    message: Message
    reason: Foreign

    def log_fields(self, reader: str) -> dict[str, object]:
        """The fields of its log line."""
        message = self.message
        return {
            "reader": reader,
            "topic": message.topic,
            "partition": message.partition,
            "offset": message.offset,
            "reason": self.reason.value,
        }


class Split(NamedTuple):
    """A version of a key from another input partition than the version before."""

    message: Message
    before: int
    now: int

    def log_fields(self) -> dict[str, object]:
        """The fields of its log line."""
        message = self.message
        return {
            "topic": message.topic,
            "partition": message.partition,
            "offset": message.offset,
            "sources": [self.before, self.now],
        }


def source_partition(message: Message) -> int:
    """The input partition of the record behind a row or deletion.

    If the message does not name it: the partition of the message itself.
    """
    named = _named_source(message)
    return message.partition if named is None else named


class RowRule:
    """Classifies the messages of one entity's accepted topic."""

    def __init__(self, entity: str) -> None:
        self.entity = ENTITIES[entity]
        self._decoder = RecordDecoder(self.entity, _ANY_SIZE)
        self._columns = ColumnDecoder(self._decoder)

    def read(self, key: bytes | None, value: bytes | None) -> Read:
        """The row or deletion of exactly that key, both in canonical form; else the reason.

        A row is canonical if judging it again would not change it.
        """
        if key is None:
            return Foreign.NO_KEY
        if value is None:
            return None if read_key(self.entity, key) == key else Foreign.KEY
        row = self._decoder.canonical(value)
        if row is None:
            return Foreign.ROW
        return row if self._decoder.key_of(row) == key else Foreign.OTHER_KEY

    def read_all(self, messages: Sequence[Message]) -> list[Read]:
        """As `read` for each message, decoded column by column."""
        keys = [message.key for message in messages]
        values = [message.value for message in messages]
        good, _ = self._columns.plainly_good(values, keys, [_LAST_MS] * len(messages), 0)
        rows: dict[int, Row] = {
            index: row
            for index, row, key, value in zip(
                good.indices, good.rows, good.keys, good.encoded, strict=True
            )
            if value == values[index] and key == keys[index]
        }
        return [
            rows[index] if index in rows else self.read(keys[index], values[index])
            for index in range(len(messages))
        ]


@cache
def rule_of(entity: str) -> RowRule:
    """The rule for that entity. It keeps no state, so all callers share it."""
    return RowRule(entity)


def read_rows(
    messages: Sequence[Message], partitions: Mapping[str, int]
) -> Iterator[tuple[RowRule, list[tuple[Message, Read]]]]:
    """Classify messages in their order: each run of one topic, with that topic's rule.

    Accepted messages lie where the default partitioner puts their key (docs/contract.md, "Topics").
    So a key's latest row is the last one in its partition. `partitions` gives the number of
    partitions by topic; messages of a topic that it does not name may lie anywhere. So may a
    message that names its source: its topic may have had fewer partitions then.
    """
    for topic, grouped in groupby(messages, _topic):
        run = list(grouped)
        rule = rule_of(topic.rpartition(".")[2])
        found = list(zip(run, rule.read_all(run), strict=True))
        count = partitions.get(topic, 0)
        if count > 1:
            placed = partitions_for([message.key or b"" for message in run], count)
            if placed != [message.partition for message in run]:
                found = [
                    (message, read if message.partition == number else _misplaced(message, read))
                    for (message, read), number in zip(found, placed, strict=True)
                ]
        yield rule, found


def count_partitions(every: Iterable[Partition]) -> dict[str, int]:
    """The number of partitions of each topic, given all partitions."""
    return Counter(partition.topic for partition in every)


def _misplaced(message: Message, read: Read) -> Read:
    """Classify a message that lies outside the partition of its key."""
    if isinstance(read, Foreign) or _named_source(message) is not None:
        return read
    return Foreign.PARTITION


def _named_source(message: Message) -> int | None:
    """The partition in the header with the record's coordinate; None if no worker wrote it."""
    prefix, _, entity = message.topic.rpartition(".accepted.")
    for name, value in message.headers:
        if name == SOURCE_HEADER and (found := _SOURCE.fullmatch(value)):
            topic, partition = found.groups()
            return int(partition) if topic == f"{prefix}.in.{entity}".encode() else None
    return None
