"""What a broker is to the rest of the program; `embedded` and `kafka` fulfil it alike.

One contract suite (`tests/contract/`) runs over every broker. Promises that hold for all:

* A topic is a number of partitions; a partition is an ordered log whose offsets grow and are
  never used twice. Offsets may have gaps (compaction, transaction markers).
* What `publish` or `commit` returned from is durable: it survives a kill -9.
* A reader sees committed messages only, those of one partition in their order.
* Unreachable, refused and fenced are told apart by the exceptions of `worker.errors`; a call
  never waits for ever.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

from worker.stream import Message, OffsetRange, Partition, ProducerRecord, Topic


class Reader(Protocol):
    """Reads partitions that the caller names, from positions that the caller keeps."""

    def assign(self, positions: Mapping[Partition, int]) -> None:
        """Read exactly these partitions from now on, each from its offset."""

    async def read(
        self,
        limit: int,
        timeout: float,
        paused: Collection[Partition] = (),
    ) -> list[Message]:
        """Up to `limit` messages, at once if there are any, after `timeout` seconds if none.

        Messages of one partition come in order, each once. `paused` partitions give none this
        time and lose nothing. Raises `BrokerUnavailable`.
        """

    def position(self, partition: Partition) -> int:
        """The offset that is read next; past gaps, so it reaches the end of the partition."""

    def lag(self, partition: Partition) -> int:
        """How many offsets are known to lie ahead, by the broker's last answer; 0 before one."""

    def expired(self) -> dict[Partition, int]:
        """Offsets skipped since the last call because they had expired before they were read."""

    def skipped(self) -> dict[Partition, int]:
        """Damaged offsets passed over since the last call, because somebody said to skip them."""

    def damaged(self) -> dict[Partition, str]:
        """Partitions that give nothing now because their next messages are damaged: a line each."""

    async def close(self) -> None:
        """Stop reading."""


class Member(Protocol):
    """Membership of a group whose members share the partition numbers of a topic."""

    async def assignment(self) -> frozenset[int]:
        """The partition numbers that are this member's now; call it at least once a second.

        Each number belongs to one live member, save for moments in which an earlier owner does
        not know yet: the fence of `Committer` makes that harmless.
        """

    async def close(self) -> None:
        """Leave at once, so that others take over without waiting."""


class GroupMember(NamedTuple):
    """A live member of a group, as others see it."""

    name: str
    """What the broker calls it; another one after it has joined anew."""
    numbers: frozenset[int]
    """The partition numbers that are its own; none in a rebalance, or where it stands by."""


class Committer(Protocol):
    """The one writer of a task. Starting another of the same name fences this one."""

    async def commit(
        self, messages: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
    ) -> list[tuple[int, int]]:
        """Write all messages and the group's offsets, all or nothing; (partition, offset) each.

        Raises `Fenced` when another has taken over, `MessageRefused` when the broker will never
        take one of the messages, `BrokerUnavailable` when it is not known whether the
        transaction took place: then start a new committer and read what stands in the log.
        """

    async def close(self) -> None:
        """Give up the writer; what was committed stays."""


class Broker(Protocol):
    """A connection to a broker; `open` before use, `close` after."""

    async def open(self) -> None:
        """Connect. Raises `BrokerUnavailable`, with one line that says what to do."""

    async def close(self) -> None:
        """Release everything that this object opened."""

    async def create(self, topics: Iterable[Topic]) -> list[str]:
        """Create those that are missing; the names of the created ones. Others stay as they are."""

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """Those of the named topics that exist, with their settings."""

    async def identities(self, names: Iterable[str]) -> dict[str, str]:
        """The identity of each named topic that exists: short ASCII text, never used twice.

        A topic deleted and created anew has another one though the name is the same. One cheap
        question. Raises `BrokerUnavailable`.
        """

    async def damage(self) -> list[str]:
        """What is known to be damaged and not skipped, a line each. Nothing is looked through."""

    def hindrance(self) -> str | None:
        """What has kept the broker from expiring and compacting for a minute, in one line.

        It is as the last round of that left it. Whoever asks every few seconds also starts such
        rounds while nobody writes, so that what is over is known to be.
        """

    async def skipped(self) -> dict[Partition, int]:
        """How many damaged offsets of each partition were skipped, as somebody had said.

        Those that retention has removed meanwhile are no longer among them.
        """

    async def spans(
        self, partitions: Iterable[Partition], *, uncommitted: bool = False
    ) -> dict[Partition, OffsetRange]:
        """Start and end of each partition; the end includes open transactions if `uncommitted`.

        Raises `MissingTopic`.
        """

    async def committed(self, group: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The group's committed offsets; absent where none.

        They may be a moment behind the last commit: whoever goes on from them may read again.
        """

    async def publish(self, messages: Sequence[ProducerRecord]) -> list[tuple[int, int]]:
        """Write the messages, at least once and in order per partition; (partition, offset) each.

        Raises `MissingTopic`, `MessageRefused` (too large), `BrokerUnavailable`.
        """

    def reader(self, *, uncommitted: bool = False) -> Reader:
        """A reader of committed messages; it reads nothing until partitions are assigned.

        With `uncommitted` of all messages, those of open and of aborted transactions among them.
        """

    async def join(self, group: str, topic: str) -> Member:
        """Join the group whose members share the partition numbers of `topic`."""

    async def members(self, group: str) -> list[GroupMember]:
        """Who is in the group now; one that died until its session is over. Joins nothing.

        A group that nobody ever joined has none. Raises `BrokerUnavailable`.
        """

    async def committer(self, name: str, group: str) -> Committer:
        """Become the only writer called `name`: whoever was it before is fenced from now on.

        When this returns, nothing of the earlier writer is still open: what is read from now on
        is complete. Offsets are committed for `group`.
        """
