"""Detects that a log is not the log from which a store was filled. Pure.

An offset alone is no proof. A log that was restored from an older copy, or that lost its last
messages with a broker, can grow past the offset. So a store saves a `Tail` with each position:
offset and digests of the last messages read from the partition. `Comparison` compares the tails
with the log. Why this suffices (docs/exactly-once.md, "A log that was put back"):

* Two such logs agree up to the first offset with a different message, and nowhere after it. The
  reason: each message carries the times of its verdict and its append. So the logs agree up to
  the newest mark that is still in the log.
* A tail contains *every* message from `since` up to the position. An additional message in this
  range, or different content, proves that the log is a different log.
* Compaction may have removed newer marks. After the newest matching mark, the logs can differ
  only in the keys of the removed marks. Each such key must occur again at or after the position:
  reading on then replaces the key's row, whichever log this is. If a mark is neither in the log
  nor replaced, the log cannot be verified.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Final, NamedTuple

import msgspec

from worker.stream import Message, OffsetRange, Partition

LENGTH: Final = 4
"""Maximum number of messages in a tail; later messages may have replaced up to that many."""
_SINCE: Final = struct.Struct(">Q")
_MARK: Final = struct.Struct(">Q8s8s")


class MessageMark(NamedTuple):
    """A message that was read: its offset, and 8-byte digests of the whole and of the key."""

    offset: int
    content: bytes
    key: bytes


class Tail(NamedTuple):
    """The last messages read from a partition: every message from `since` on."""

    since: int
    marks: tuple[MessageMark, ...] = ()

    def encode(self) -> bytes:
        """The tail as stored."""
        return _SINCE.pack(self.since) + b"".join(_MARK.pack(*mark) for mark in self.marks)

    @staticmethod
    def decode(data: bytes) -> Tail:
        """The stored tail. Raises ValueError."""
        head, marks = data[: _SINCE.size], data[_SINCE.size :]
        if len(head) != _SINCE.size or len(marks) % _MARK.size:
            raise ValueError("the length of a tail is wrong")
        (since,) = _SINCE.unpack(head)
        return Tail(since, tuple(map(MessageMark._make, _MARK.iter_unpack(marks))))


def extended(
    tails: Mapping[Partition, Tail],
    before: Mapping[Partition, int],
    messages: Sequence[Message],
    positions: Mapping[Partition, int],
) -> dict[Partition, Tail]:
    """The tails that change when these messages are read; each partition in offset order.

    `before` has the old positions, `positions` the new positions. A partition without a tail gets
    a tail that begins at its old position. Messages that a release without tails has read are
    therefore not compared.
    """
    new = {p: Tail(before.get(p, 0)) for p in positions if p not in tails}
    read: dict[tuple[str, int], list[Message]] = defaultdict(list)
    for message in messages:
        read[message.topic, message.partition].append(message)
    for place, found in read.items():
        partition = Partition(*place)
        tail = tails.get(partition) or new.get(partition) or Tail(before.get(partition, 0))
        known = tail.marks[-1].offset + 1 if tail.marks else tail.since
        last = [mark_of(m) for m in found[-LENGTH:] if m.offset >= known]
        if last:
            marks = (*tail.marks, *last)[-LENGTH:]
            is_whole = len(tail.marks) + len(last) <= LENGTH and len(found) <= LENGTH
            new[partition] = Tail(tail.since if is_whole else marks[0].offset, marks)
    return new


def mark_of(message: Message) -> MessageMark:
    """The mark of a message."""
    whole = (message.offset, message.timestamp, message.key, message.value, message.headers)
    content = blake2b(msgspec.msgpack.encode(whole), digest_size=8).digest()
    return MessageMark(message.offset, content, _digest_of_key(message))


def _digest_of_key(message: Message) -> bytes:
    return blake2b(message.key or b"", digest_size=8).digest()


class Beside(NamedTuple):
    """The tail of a partition that does not feed the store, and the identity of its topic."""

    identity: str
    tail: Tail

    @property
    def position(self) -> int:
        """The offset after the last message."""
        return self.tail.marks[-1].offset + 1

    def encode(self) -> bytes:
        """The tail and identity as stored."""
        return self.identity.encode() + b"\0" + self.tail.encode()

    @staticmethod
    def decode(data: bytes) -> Beside:
        """The stored tail and identity. Raises ValueError, also for an empty tail."""
        identity, _, tail = data.partition(b"\0")
        beside = Beside(identity.decode(), Tail.decode(tail))
        if not beside.tail.marks:
            raise ValueError("a tail is empty")
        return beside


def extended_beside(
    known: Mapping[Partition, Beside], messages: Sequence[Message], identity: str
) -> dict[Partition, Beside]:
    """The tails that change when these messages of one topic are read; each partition in order.

    A known tail with a different identity belongs to an earlier topic, and is replaced.
    """
    tails = {p: one.tail for p, one in known.items() if one.identity == identity}
    first = {Partition(m.topic, m.partition): m.offset for m in reversed(messages)}
    return {p: Beside(identity, t) for p, t in extended(tails, first, messages, {}).items()}


class Comparison:
    """Compares the tails of a store with the log, message by message; sets `reason`.

    Read the partitions in `starts` from these offsets. Report each message (`take`), then the
    positions (`moved`). Partitions in `settled` need no more reading; the others are `open`.
    """

    def __init__(
        self,
        tails: Mapping[Partition, Tail],
        positions: Mapping[Partition, int],
        spans: Mapping[Partition, OffsetRange],
        beside: Mapping[Partition, Beside] | None = None,
    ) -> None:
        """Tails in `beside` can only prove a different log; without proof they are ignored."""
        self.reason: str | None = None
        """For a log line: why the log is different or cannot be verified; None if neither."""
        self.others: set[Partition] = set()
        """The partitions found to be different, or not to be verified."""
        self.settled: set[Partition] = set()
        self.starts: dict[Partition, int] = {}
        self._ends: dict[Partition, int] = {}
        self._open: dict[Partition, _One] = {}
        for partition, tail in sorted(tails.items()):
            position = positions.get(partition, 0)
            start = max(tail.since, spans[partition].start)
            if tail.marks or start < position:
                self.starts[partition] = start
                self._ends[partition] = spans[partition].end
                self._open[partition] = _One(tail, position)
        self._beside = beside or {}
        for partition, one in sorted(self._beside.items()):
            self.starts[partition] = max(one.tail.since, spans[partition].start)
            self._open[partition] = _One(one.tail, one.position)
            if one.position > spans[partition].end:
                self._end(
                    partition,
                    f"ends at {spans[partition].end}, before position {one.position}: it was "
                    "restored from an older copy",
                )

    @property
    def open(self) -> list[Partition]:
        """The partitions that need more reading."""
        return list(self._open)

    def take(self, message: Message) -> None:
        """Compare one message; call in offset order of each partition."""
        partition = Partition(message.topic, message.partition)
        one = self._open.get(partition)
        if one is not None and not one.agrees(message):
            self._end(
                partition,
                f"holds another message at offset {message.offset} than the one that was read: it "
                "was restored from an older copy, or lost messages with a broker",
            )

    def moved(self, positions: Mapping[Partition, int]) -> None:
        """Note the read positions, and settle or fail the partitions that are complete."""
        for partition in self.open:
            one, position = self._open[partition], positions[partition]
            if position < one.position:
                continue
            if partition in self._beside or (one.seen and not one.overtaken):
                self.settled.add(partition)
                del self._open[partition]
            elif not one.seen or position >= self._ends[partition]:
                self._end(
                    partition,
                    f"no longer holds the messages before position {one.position}, nor later ones "
                    "of their keys: whether it is the log that was read cannot be told",
                )

    def unreadable(self, partition: Partition) -> None:
        """Note that a partition cannot be read because it is damaged."""
        if partition in self._beside:
            self._open.pop(partition, None)
        if partition in self._open:
            self._end(
                partition,
                "is damaged where it was read last: whether it is the log that was read cannot be "
                "told",
            )

    def _end(self, partition: Partition, what: str) -> None:
        self.others.add(partition)
        self.reason = self.reason or (
            f"partition {partition.number} of topic {partition.topic} {what}"
        )


class _One:
    """The tail of a partition, and the part of it that is not confirmed yet."""

    def __init__(self, tail: Tail, position: int) -> None:
        self.position = position
        self.seen = not tail.marks
        """Whether a message before the position is in the log; True for an empty tail."""
        self.overtaken = {mark.key for mark in tail.marks}
        """Keys of the marks after the newest message seen, until a later message has the key."""
        self._marks = {mark.offset: mark for mark in tail.marks}

    def agrees(self, message: Message) -> bool:
        """Whether the message is consistent with the tail; records it."""
        if message.offset >= self.position:
            self.overtaken.discard(_digest_of_key(message))
            return True
        self.seen = True
        self.overtaken = {m.key for m in self._marks.values() if m.offset > message.offset}
        return self._marks.get(message.offset) == mark_of(message)
