"""A batch of accepted messages being read: what it comes to, before anything is written. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from worker.brokers.contract import Message, Partition
from worker.sink.rows import RowReader, Unreadable
from worker.sink.snapshot import ROW


class SetAside(msgspec.Struct, frozen=True):
    """A message that is no canonical row, as it stood in the topic."""

    topic: str
    partition: int
    offset: int
    reason: str
    key: bytes | None
    value: bytes | None


class Batch:
    """Of each key the latest message, of each partition the next offset."""

    def __init__(
        self,
        readers: Mapping[str, RowReader],
        tags: Mapping[str, bytes],
        positions: Mapping[Partition, int],
    ) -> None:
        self.latest: dict[bytes, tuple[Message, bytes, RowReader]] = {}
        self.aside: list[SetAside] = []
        self.next: dict[Partition, int] = {}
        self.changed = self.deleted = self.repeats = self.skipped = 0
        self._readers = readers
        self._keys = {topic: ROW + tag for topic, tag in tags.items()}
        self._positions = positions

    def read(self, messages: Sequence[Message]) -> None:
        """Read the messages, without those that were applied before."""
        place = Partition("", 0)
        following = 0
        for message in messages:
            if message.partition != place.number or message.topic != place.topic:
                place = Partition(message.topic, message.partition)
                following = self.next.get(place) or self._positions.get(place, 0)
                reader = self._readers[message.topic]
                prefix = self._keys[message.topic]
            if message.offset < following:
                self.skipped += 1
                continue
            self.next[place] = following = message.offset + 1
            found = reader.read(message.key, message.value)
            if isinstance(found, Unreadable):
                self._set_aside(message, found.reason)
                continue
            key = prefix + (message.key or b"")
            if self.latest.pop(key, None) is not None:
                self.repeats += 1  # overtaken within the batch: it never shows
            self.latest[key] = (message, found, reader)

    def _set_aside(self, message: Message, reason: str) -> None:
        place = message.topic, message.partition, message.offset
        self.aside.append(SetAside(*place, reason, message.key, message.value))
