"""Partitions: messages and transaction markers, each at an offset of its own.

A transaction is decided first and then marked in each partition by itself, at any later moment:
one partition may show it while another does not. A reader sees a partition up to the first
transaction without a marker there (the last stable offset); its end covers what is open as well.
"""

from __future__ import annotations

from typing import Final, Literal

from worker.stream import Message, OffsetRange, Partition, Topic

_READ_BYTES: Final = 8 * 1024 * 1024


class Transaction:
    """What one committer writes at once. `unmarked` are the partitions that lack its marker."""

    __slots__ = ("epoch", "messages", "name", "origin", "state", "tick", "unmarked")

    def __init__(self, name: str, epoch: int, origin: object) -> None:
        self.name = name
        self.epoch = epoch
        self.origin = origin
        """Whose connection it came by."""
        self.state: Literal["open", "committed", "aborted"] = "open"
        self.unmarked: dict[Log, None] = {}
        self.messages: list[Message] = []
        self.tick = 0
        """When it was decided."""


class Log:
    """One partition of one topic, from the creation of the topic to its deletion."""

    __slots__ = (
        "_decided",
        "_open",
        "_writers",
        "entries",
        "place",
        "stable",
        "start",
        "ticks",
        "topic",
    )

    def __init__(self, place: Partition, topic: Topic) -> None:
        self.place = place
        self.topic = topic
        self.start = 0
        self.entries: list[Message | None] = []
        """By offset; None for markers, and for what compaction removed."""
        self.stable = 0
        """How far readers of committed messages can see."""
        self.ticks: list[int] = []
        """The cluster's tick when each was appended."""
        self._open: dict[Transaction, int] = {}
        """Transactions without a marker here, with their first offsets, in growing order."""
        self._writers: list[Transaction | None] = []
        self._decided: list[Message | None] = []
        """The entries up to where somebody has read; None also for what was aborted."""

    @property
    def end(self) -> int:
        """The end with everything that is still open: the high watermark."""
        return len(self.entries)

    @property
    def is_open(self) -> bool:
        """Whether some transaction has no marker here yet."""
        return bool(self._open)

    def span(self, *, uncommitted: bool) -> OffsetRange:
        """What it holds."""
        return OffsetRange(self.start, self.end if uncommitted else max(self.start, self.stable))

    def append(self, message: Message | None, writer: Transaction | None, tick: int) -> None:
        """Add a message at the end; None is the marker of its writer."""
        if writer is not None:
            if message is None:
                del self._open[writer]
            else:
                self._open.setdefault(writer, len(self.entries))
        self.entries.append(message)
        self.ticks.append(tick)
        self._writers.append(writer)
        self.stable = next(iter(self._open.values())) if self._open else len(self.entries)

    def truncate(self, end: int) -> None:
        """Lose everything from this offset on; no transaction may be open here."""
        assert not self._open
        del self.entries[end:], self.ticks[end:], self._writers[end:], self._decided[end:]
        self.stable = end

    def read(self, position: int, limit: int) -> tuple[list[Message], int]:
        """Up to so many committed messages, and the position after them, past gaps."""
        decided = self._look()
        position = max(position, self.start)
        found: list[Message] = []
        size = 0
        for place in range(position, self.stable):
            message = decided[place]
            if message is not None:
                if len(found) == limit or size > _READ_BYTES:
                    return found, place
                found.append(message)
                size += len(message.value or b"")
        return found, max(position, self.stable)

    def read_uncommitted(self, position: int, limit: int) -> tuple[list[Message], int]:
        """As `read`, but of all messages, those that are open or aborted among them."""
        found: list[Message] = []
        for place in range(max(position, self.start), self.end):
            if len(found) == limit:
                return found, place
            if (message := self.entries[place]) is not None:
                found.append(message)
        return found, max(position, self.end)

    def committed(self) -> list[Message]:
        """All that a reader of committed messages can see."""
        return [message for message in self._look()[self.start :] if message is not None]

    def table(self) -> dict[bytes | None, bytes]:
        """The latest committed value of each key."""
        table: dict[bytes | None, bytes] = {}
        for message in self.committed():
            if message.value is None:
                table.pop(message.key, None)
            else:
                table[message.key] = message.value
        return table

    def compact(self) -> None:
        """Remove what is neither the latest of its key nor open; tombstones stay."""
        decided = self._look()
        latest = {message.key: message.offset for message in decided if message is not None}
        for place, message in enumerate(decided):
            if message is not None and latest[message.key] != place:
                decided[place] = None

    def expire(self) -> None:
        """Remove all that there is."""
        self.start = self.end

    def _look(self) -> list[Message | None]:
        """What readers can see is decided, once and for all."""
        decided = self._decided
        for place in range(len(decided), self.stable):
            writer = self._writers[place]
            counts = writer is None or writer.state == "committed"
            decided.append(self.entries[place] if counts else None)
        return decided
