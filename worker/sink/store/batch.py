"""The effect of a batch of accepted messages, worked out before anything is written. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from worker.accepted import Foreign, ForeignMessage, Split, read_rows, source_partition
from worker.index.tails import Tail
from worker.sink.store.rows import Referring
from worker.sink.store.snapshot import ROW
from worker.stream import Message, Partition


class SetAside(msgspec.Struct, frozen=True):
    """A foreign message (`worker.accepted`), exactly as it stood in the topic."""

    topic: str
    partition: int
    offset: int
    reason: str
    key: bytes | None
    value: bytes | None


class RowChanges:
    """The latest message of each key; the next offset and the tail of each partition."""

    def __init__(
        self,
        kinds: Mapping[str, Referring],
        tags: Mapping[str, bytes],
        positions: Mapping[Partition, int],
    ) -> None:
        self.latest: dict[bytes, tuple[Message, bytes, Referring]] = {}
        self.refused: list[ForeignMessage] = []
        self.split: dict[tuple[str, int, int], Split] = {}
        self.next: dict[Partition, int] = {}
        self.tails: dict[Partition, Tail] = {}
        self.changed = self.deleted = self.repeats = self.skipped = 0
        self._kinds = kinds
        self._keys = {topic: ROW + tag for topic, tag in tags.items()}
        self._positions = positions

    def read(self, messages: Sequence[Message], partitions: Mapping[str, int]) -> None:
        """Read the messages; skip those that were applied before.

        `partitions` is as in `read_rows`.
        """
        for _, found in read_rows(self._new(messages), partitions):
            topic = found[0][0].topic
            kind, prefix = self._kinds[topic], self._keys[topic]
            for message, row in found:
                if isinstance(row, Foreign):
                    self.refused.append(ForeignMessage(message, row))
                    continue
                key = prefix + (message.key or b"")
                overtaken = self.latest.pop(key, None)
                if overtaken is not None:
                    self.repeats += 1  # overwritten within the batch: never visible
                    if overtaken[0].value != message.value:
                        self.compare(source_partition(overtaken[0]), message)
                users = b"" if row is None else kind.users(row)
                self.latest[key] = (message, users, kind)

    def compare(self, before: int, message: Message) -> None:
        """Note a version of a key from another input partition than the version before it."""
        now = source_partition(message)
        if now != before:
            partition = (message.topic, message.partition, message.offset)
            self.split.setdefault(partition, Split(message, before, now))

    def aside(self) -> list[SetAside]:
        """The foreign messages, in the form that the store persists."""
        return [
            SetAside(m.topic, m.partition, m.offset, reason.value, m.key, m.value)
            for m, reason in self.refused
        ]

    def _new(self, messages: Sequence[Message]) -> list[Message]:
        """The messages that were not applied before; advances the next offsets past them."""
        new = []
        partition = Partition("", 0)
        following = 0
        for message in messages:
            if message.partition != partition.number or message.topic != partition.topic:
                partition = Partition(message.topic, message.partition)
                following = self.next.get(partition) or self._positions.get(partition, 0)
            if message.offset < following:
                self.skipped += 1
                continue
            self.next[partition] = following = message.offset + 1
            new.append(message)
        return new
