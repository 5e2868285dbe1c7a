"""The broker contract: the protocols that the `embedded` and `kafka` brokers implement.

One contract suite (`tests/contract/`) runs against every broker. Every broker promises:

* A topic consists of numbered partitions. A partition is an ordered log; its offsets grow and are
  never reused. Offsets may have gaps (compaction, transaction markers).
* Writes are durable once `publish` or `commit` returns: they survive kill -9.
* A reader returns committed messages only, unless it is `uncommitted`, in offset order per
  partition.
* The exceptions of `worker.errors` distinguish unreachable, refused and fenced. Every call has a
  time limit.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Protocol

from worker.stream import GroupMember, Message, OffsetRange, Partition, ProducerRecord, Topic


class Reader(Protocol):
    """Reads the partitions that the caller assigns, from positions that the caller keeps."""

    def assign(self, positions: Mapping[Partition, int]) -> None:
        """Replace the assignment: read exactly these partitions, each from its given offset."""

    async def read(
        self,
        limit: int,
        timeout: float,
        paused: Collection[Partition] = (),
    ) -> list[Message]:
        """Return up to `limit` messages; wait up to `timeout` seconds for the first.

        Messages of one partition arrive in offset order, each once. `paused` partitions return no
        messages in this call and lose none. Raises `BrokerUnavailable`.
        """

    def position(self, partition: Partition) -> int:
        """The next offset to read. It moves past gaps, so it reaches the partition's end."""

    def lag(self, partition: Partition) -> int:
        """The number of unread offsets as of the broker's last response; 0 before the first."""

    def expired(self) -> dict[Partition, int]:
        """Per partition, the number of offsets that expired unread, since the last call."""

    def truncated(self) -> dict[Partition, int]:
        """Per partition that ended before its position, the number of offsets in between.

        Since the last call. The log has lost its last messages, or the topic is another one.
        Reading has gone on at the start: messages that were read before may be read again.
        """

    def skipped(self) -> dict[Partition, int]:
        """Per partition, the number of damaged offsets skipped by command, since the last call."""

    def damaged(self) -> dict[Partition, str]:
        """Partitions blocked now because their next messages are damaged, with one line each."""

    async def close(self) -> None:
        """Stop reading."""


class Member(Protocol):
    """Membership of a group; the members share the partition numbers of one topic."""

    async def assignment(self) -> frozenset[int]:
        """The partition numbers that this member owns now; call this at least once a second.

        Each number belongs to one live member. An earlier owner may notice its loss a moment
        late; the fence of `Committer` makes this overlap harmless.
        """

    async def close(self) -> None:
        """Leave at once, so that others take over without waiting for the session timeout."""


class Committer(Protocol):
    """The only writer of its name. Starting another committer of that name fences this one."""

    async def commit(
        self, messages: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
    ) -> list[tuple[int, int]]:
        """Write the messages and the group's offsets atomically; return (partition, offset) each.

        Raises `Fenced` if another committer has taken over, and `MessageRefused` if the broker
        will never accept one of the messages. Raises `BrokerUnavailable` if the outcome of the
        transaction is unknown: then start a new committer and read the log.
        """

    async def close(self) -> None:
        """Release the writer; committed transactions stay."""


class Broker(Protocol):
    """A connection to a broker; `open` before use, `close` after."""

    async def open(self) -> None:
        """Connect. Raises `BrokerUnavailable`; its one-line message says what to do."""

    async def close(self) -> None:
        """Release everything that this object opened."""

    async def create(self, topics: Iterable[Topic]) -> list[str]:
        """Create the missing topics and return their names; leave existing topics unchanged."""

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        """The named topics with their settings; topics that do not exist are left out."""

    async def identities(self, names: Iterable[str]) -> dict[str, str]:
        """The identity of each named topic that exists: a short ASCII string, never reused.

        A topic that is deleted and created again gets a new identity under the same name. Costs
        one cheap request. Raises `BrokerUnavailable`.
        """

    async def damage(self) -> list[str]:
        """Known damage that is not skipped, one line each. Does not scan the log."""

    def hindrance(self) -> str | None:
        """Why nothing can be written, or retention and compaction have been blocked for a minute.

        None if all is well. The reason is one line and dates from the last round of upkeep. Calling
        this every few seconds also starts rounds while nobody writes, so that the end of a
        hindrance is noticed.
        """

    async def skipped(self) -> dict[Partition, int]:
        """Per partition, the number of damaged offsets that are skipped by command.

        Offsets that retention has removed since are not counted.
        """

    async def spans(
        self, partitions: Iterable[Partition], *, uncommitted: bool = False
    ) -> dict[Partition, OffsetRange]:
        """The offset range of each partition; `uncommitted` ends include open transactions.

        Raises `MissingTopic`.
        """

    async def committed(self, group: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        """The offsets that committers have committed for the group; others are absent.

        They may lag the last commit by a moment: a caller that resumes from them may read
        messages again.
        """

    async def publish(self, messages: Sequence[ProducerRecord]) -> list[tuple[int, int]]:
        """Write messages at least once, in order per partition; return (partition, offset) each.

        Raises `MissingTopic`, `MessageRefused` (too large), `BrokerUnavailable`. Without a message
        it writes nothing, and raises what is known to keep this object from writing any.
        """

    def reader(self, *, uncommitted: bool = False) -> Reader:
        """A reader of committed messages; it reads nothing until partitions are assigned.

        With `uncommitted`, it also returns messages of open and aborted transactions.
        """

    async def join(self, group: str, topic: str) -> Member:
        """Join the group whose members share the partition numbers of `topic`."""

    async def members(self, group: str) -> list[GroupMember]:
        """The current members of the group, without joining it.

        A dead member may be listed until its session times out. A group that nobody ever joined
        has no members. Raises `BrokerUnavailable`, and `ConfigurationError` if they cannot be seen.
        """

    async def committer(self, name: str, group: str) -> Committer:
        """Become the only writer called `name`, and fence every earlier writer of that name.

        When this returns, no earlier writer has an open transaction, so later reads are complete.
        The committer commits offsets for `group`.
        """
