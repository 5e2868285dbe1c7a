"""Tells whether a log is still the one that a store of state was made of. Pure.

An offset alone cannot tell: a log that was restored from an older copy, or that lost its last
messages with a broker, grows past it. So a store keeps a `Tail` with each position: offset and
digests of the last messages that it read of the partition. `Comparison` holds the tails against
the log. Why this suffices (docs/exactly-once.md, "A log that was put back"):

* Two such logs agree up to the first offset that holds another message, and nowhere after it: a
  message bears the times of its verdict and of its append. So they agree up to the newest mark
  that is still there.
* A tail has *every* message from its `since` up to the position. Another message between them, or
  another content, proves that the log is another.
* Newer marks may have been compacted away. Behind the newest one that agrees only their keys can
  differ. Each such key must come again at the position or later: then what is read from there
  replaces the key's row, whichever log this is. A mark that is neither there nor replaced so
  cannot be explained.
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
"""How many messages a tail has at most: so many of its keys may have been overtaken."""
_SINCE: Final = struct.Struct(">Q")
_MARK: Final = struct.Struct(">Q8s8s")


class Mark(NamedTuple):
    """A message that was read: its offset, and digests of all of it and of its key."""

    offset: int
    content: bytes
    key: bytes


class Tail(NamedTuple):
    """The last messages read of a partition: all that there were from `since` on."""

    since: int
    marks: tuple[Mark, ...] = ()

    def encode(self) -> bytes:
        """The tail as it is kept."""
        return _SINCE.pack(self.since) + b"".join(_MARK.pack(*mark) for mark in self.marks)

    @staticmethod
    def decode(data: bytes) -> Tail:
        """The tail that was kept. Raises ValueError."""
        head, marks = data[: _SINCE.size], data[_SINCE.size :]
        if len(head) != _SINCE.size or len(marks) % _MARK.size:
            raise ValueError("the length of a tail is wrong")
        (since,) = _SINCE.unpack(head)
        return Tail(since, tuple(map(Mark._make, _MARK.iter_unpack(marks))))


def extended(
    tails: Mapping[Partition, Tail],
    before: Mapping[Partition, int],
    messages: Sequence[Message],
    positions: Mapping[Partition, int],
) -> dict[Partition, Tail]:
    """The tails that change once these messages are read, those of one partition in their order.

    `before` are the positions until now and `positions` the new ones. A partition without a tail
    begins one at its position: what a release without tails has read is not compared.
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


def mark_of(message: Message) -> Mark:
    """What a tail keeps of a message."""
    whole = (message.offset, message.timestamp, message.key, message.value, message.headers)
    content = blake2b(msgspec.msgpack.encode(whole), digest_size=8).digest()
    return Mark(message.offset, content, _digest_of_key(message))


def _digest_of_key(message: Message) -> bytes:
    return blake2b(message.key or b"", digest_size=8).digest()


class Beside(NamedTuple):
    """The tail of a partition that the store is not made of, and the identity of its topic."""

    identity: str
    tail: Tail

    @property
    def position(self) -> int:
        """Behind the last message."""
        return self.tail.marks[-1].offset + 1

    def encode(self) -> bytes:
        """As it is kept."""
        return self.identity.encode() + b"\0" + self.tail.encode()

    @staticmethod
    def decode(data: bytes) -> Beside:
        """What was kept. Raises ValueError."""
        identity, _, tail = data.partition(b"\0")
        beside = Beside(identity.decode(), Tail.decode(tail))
        if not beside.tail.marks:
            raise ValueError("a tail is empty")
        return beside


def extended_beside(
    known: Mapping[Partition, Beside], messages: Sequence[Message], identity: str
) -> dict[Partition, Beside]:
    """Those that change once these messages of a topic are read, in the order of its partitions.

    Those of another topic of the same name are begun anew.
    """
    tails = {p: one.tail for p, one in known.items() if one.identity == identity}
    first = {Partition(m.topic, m.partition): m.offset for m in reversed(messages)}
    return {p: Beside(identity, t) for p, t in extended(tails, first, messages, {}).items()}


class Comparison:
    """The tails of a store held against the log, message by message; `reason` is the outcome.

    Read the partitions `starts` from there, and report what comes (`take`), then how far each has
    been read (`moved`). What is `settled` need not be read on; the rest is `open`.
    """

    def __init__(
        self,
        tails: Mapping[Partition, Tail],
        positions: Mapping[Partition, int],
        spans: Mapping[Partition, OffsetRange],
        beside: Mapping[Partition, Beside] | None = None,
    ) -> None:
        """Tails `beside` prove that a log is another; where they prove nothing, all is well."""
        self.reason: str | None = None
        """Why the log is not the one that was read, or why that cannot be told; for the log."""
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
        """The partitions that have to be read on."""
        return list(self._open)

    def take(self, message: Message) -> None:
        """A message was read; those of one partition in their order."""
        partition = Partition(message.topic, message.partition)
        one = self._open.get(partition)
        if one is not None and not one.agrees(message):
            self._end(
                partition,
                f"holds another message at offset {message.offset} than the one that was read: it "
                "was restored from an older copy, or lost messages with a broker",
            )

    def moved(self, positions: Mapping[Partition, int]) -> None:
        """The partitions have been read up to there."""
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
        """The partition gives nothing, since it is damaged."""
        if partition in self._beside:
            self._open.pop(partition, None)
        if partition in self._open:
            self._end(
                partition,
                "is damaged where it was read last: whether it is the log that was read cannot be "
                "told",
            )

    def _end(self, partition: Partition, what: str) -> None:
        self.reason = self.reason or (
            f"partition {partition.number} of topic {partition.topic} {what}"
        )


class _One:
    """A partition's tail, and what is left of it to be seen."""

    def __init__(self, tail: Tail, position: int) -> None:
        self.position = position
        self.seen = not tail.marks
        """Whether any of its messages is there."""
        self.overtaken = {mark.key for mark in tail.marks}
        """Keys of the marks behind the newest one seen, until a later message has the key."""
        self._marks = {mark.offset: mark for mark in tail.marks}

    def agrees(self, message: Message) -> bool:
        """Whether the message may be there, as far as the tail can say; it is noted."""
        if message.offset >= self.position:
            self.overtaken.discard(_digest_of_key(message))
            return True
        self.seen = True
        self.overtaken = {m.key for m in self._marks.values() if m.offset > message.offset}
        return self._marks.get(message.offset) == mark_of(message)
