"""Which inputs an export still has to wait for. Pure.

An offset counts as judged once every record before it has a verdict. Each task saves the judged
offsets of its inputs in its checkpoint, in one commit with its work. An input without a saved
offset counts as judged up to its start. So an export never waits for an empty partition, or for one
whose messages have all expired. Offsets in a topic that was recreated since do not apply to the new
topic.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from schemas import ENTITIES
from worker.core.topics import Names
from worker.index.freshness import is_another
from worker.stream import Message, OffsetRange, Partition

_LARGEST: Final = 2**63 - 1  # the largest possible offset


class SavedPosition(msgspec.Struct, frozen=True):
    """The part of a task's checkpoint that an export needs; other fields are ignored.

    `judged` is -1 while records of the input's earlier topic are parked. The input then counts as
    not judged even if it is empty.
    """

    next: dict[str, Annotated[int, Meta(ge=0, le=_LARGEST)]]
    judged: dict[str, Annotated[int, Meta(ge=-1, le=_LARGEST)]]
    topics: dict[str, str] = {}
    """The identities of the inputs; checkpoints of earlier releases lack them."""


_decode: Final = msgspec.json.Decoder(SavedPosition).decode


def read_saved_position(message: Message) -> SavedPosition | None:
    """The task's checkpoint in a message of `internal.progress`; None for garbage or tombstone."""
    if message.key != b"%d" % message.partition or message.value is None:
        return None
    try:
        return _decode(message.value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class Awaited:
    """The ends that an export waits for, and how far the inputs are judged."""

    def __init__(
        self, spans: Mapping[Partition, OffsetRange], names: Names, identities: Mapping[str, str]
    ) -> None:
        """`spans` and `identities` are those of all inputs at the moment of the request."""
        self._identities = identities
        self._ends = {partition: span.end for partition, span in spans.items()}
        self._starts = {partition: span.start for partition, span in spans.items()}
        self._names = names
        self._judged = dict(self._starts)
        self._read = dict(self._starts)

    def note(self, task: int, saved: SavedPosition) -> None:
        """Take in a task's checkpoint; note a task's checkpoints in the order they were saved."""
        for entity in ENTITIES:
            partition = Partition(self._names.input(entity), task)
            if partition not in self._ends:
                continue
            if self._is_of_another(partition.topic, entity, saved):
                continue
            start = self._starts[partition]
            read = saved.next.get(entity, 0)
            judged = saved.judged.get(entity, 0)
            # Expired records need no verdict if unread. Parked ones still do: the log has a
            # copy of them, or else the task's next owner finds out.
            self._judged[partition] = judged if judged < read else max(judged, start)
            self._read[partition] = max(read, start)

    def is_beyond(self, task: int, saved: SavedPosition, ends: Mapping[Partition, int]) -> bool:
        """Whether a checkpoint says that more was read than an input holds: its end is gone.

        What was judged does not cover the records that get these offsets now. The owner of the
        task goes on at the end, and its next checkpoint counts again.
        """
        partitions = {e: Partition(self._names.input(e), task) for e in saved.next}
        return any(
            saved.next[entity] > ends.get(partition, _LARGEST)
            and not self._is_of_another(partition.topic, entity, saved)
            for entity, partition in partitions.items()
        )

    def _is_of_another(self, topic: str, entity: str, saved: SavedPosition) -> bool:
        return is_another(saved.topics.get(entity), self._identities.get(topic))

    def judged(self) -> dict[Partition, int]:
        """For each input, the offset up to which all records are judged."""
        return {partition: max(0, judged) for partition, judged in self._judged.items()}

    def pending(self) -> dict[Partition, int]:
        """For each input that is not judged to its noted end, the number of offsets left."""
        return {
            partition: end - self._judged[partition]
            for partition, end in self._ends.items()
            if self._judged[partition] < end
        }

    def steps(self) -> tuple[int, int]:
        """Steps done, and steps in total: for each offset, reading is one and judging another.

        While the first number grows, somebody makes progress on the awaited records.
        """
        done = sum(
            min(self._judged[partition], end) + min(self._read[partition], end)
            for partition, end in self._ends.items()
        )
        first = 2 * sum(min(self._starts[p], end) for p, end in self._ends.items())
        return max(0, done - first), 2 * sum(self._ends.values()) - first
