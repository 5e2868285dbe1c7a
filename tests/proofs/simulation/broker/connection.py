"""Connections to a cluster: what `worker.brokers.contract` asks of a broker."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from tests.proofs.simulation.broker.cluster import Cluster
from tests.proofs.simulation.broker.group import Group
from tests.proofs.simulation.broker.log import Log, Transaction
from tests.proofs.simulation.broker.network import Network
from worker.errors import BrokerUnavailable, BuddyError, Fenced, MessageRefused, MissingTopic
from worker.stream import GroupMember, Message, OffsetRange, Partition, ProducerRecord, Topic

_SETTLE_SECONDS = 30.0


class MemoryBroker:
    """Fulfils `Broker`. Everything that it opened goes with it."""

    def __init__(self, cluster: Cluster, network: Network | None = None) -> None:
        self.cluster = cluster
        self.network = network or Network()
        self._members: list[MemoryMember] = []

    async def open(self) -> None:
        await self.network.hop()

    async def close(self) -> None:
        for member in self._members:
            await member.close()

    async def create(self, topics: Iterable[Topic]) -> list[str]:
        await self.network.hop()
        return [topic.name for topic in topics if self.cluster.create(topic)]

    async def topics(self, names: Iterable[str]) -> dict[str, Topic]:
        await self.network.hop()
        return self.cluster.known(list(names))

    async def identities(self, names: Iterable[str]) -> dict[str, str]:
        await self.network.hop()
        identities = self.cluster.identities
        found = {name: identities[name] for name in names if name in identities}
        await self.network.hop()
        return found

    async def damage(self) -> list[str]:
        return []

    def hindrance(self) -> None:
        return None

    async def skipped(self) -> dict[Partition, int]:
        return {}

    async def spans(
        self, partitions: Iterable[Partition], *, uncommitted: bool = False
    ) -> dict[Partition, OffsetRange]:
        found = {}
        for place in self.network.order(list(partitions)):
            await self.network.hop()
            found[place] = self.cluster.log(place).span(uncommitted=uncommitted)
        return found

    async def committed(self, group: str, partitions: Iterable[Partition]) -> dict[Partition, int]:
        await self.network.hop()
        return self.cluster.committed(group, partitions)

    async def publish(self, messages: Sequence[ProducerRecord]) -> list[tuple[int, int]]:
        await self.network.hop()
        written = []
        for message, log in zip(messages, self.cluster.place(messages), strict=True):
            found = self.cluster.append(log, message.key, message.value, message.headers)
            written.append((found.partition, found.offset))
        return written

    def reader(self, *, uncommitted: bool = False) -> MemoryReader:
        return MemoryReader(self.cluster, self.network, uncommitted=uncommitted)

    async def join(self, group: str, topic: str) -> MemoryMember:
        await self.network.hop()
        member = MemoryMember(self.cluster.group(group, topic), self.network)
        self._members.append(member)
        return member

    async def members(self, group: str) -> list[GroupMember]:
        await self.network.hop()
        found = self.cluster.groups.get(group)
        return [] if found is None else found.described()

    async def committer(self, name: str, group: str) -> MemoryCommitter:
        await self.network.hop()
        epoch = self.cluster.fence(name)
        await _settled(self.cluster, self.network, name)
        return MemoryCommitter(self.cluster, self.network, name, epoch, group)


async def _settled(cluster: Cluster, network: Network, name: str) -> None:
    """Wait until nothing of the name's earlier transactions is without its marker."""
    loop = asyncio.get_running_loop()
    end = loop.time() + _SETTLE_SECONDS
    while not cluster.settled(name):
        if loop.time() >= end:
            raise BrokerUnavailable(f"the last transaction of {name} does not end")
        await asyncio.sleep(0.01)
        network.check()
    await network.hop()


class MemoryReader:
    """Fulfils `Reader`."""

    def __init__(self, cluster: Cluster, network: Network, *, uncommitted: bool) -> None:
        self._cluster = cluster
        self._network = network
        self._uncommitted = uncommitted
        self._ends: dict[Partition, int] = {}
        self._positions: dict[Partition, int] = {}
        self._expired: dict[Partition, int] = {}
        self._truncated: dict[Partition, int] = {}

    def assign(self, positions: Mapping[Partition, int]) -> None:
        self._positions = dict(positions)

    async def read(
        self, limit: int, timeout: float, paused: Collection[Partition] = ()
    ) -> list[Message]:
        self._network.check()
        loop = asyncio.get_running_loop()
        end = loop.time() + self._network.patience(timeout)
        listened = [place for place in self._positions if place not in paused]
        while True:
            found = await self._fetch(listened, limit)
            if found or loop.time() >= end:
                return found
            await self._wait(listened, end)
            self._network.check()

    async def _fetch(self, listened: Sequence[Partition], limit: int) -> list[Message]:
        """What the cluster gives now; on its way back it grows old."""
        positions: dict[Partition, int] = {}
        ends: dict[Partition, int] = {}
        messages: list[Message] = []
        moved = [place for place in listened if self._has_more(place)]
        if not moved:
            return messages
        for place in self._network.some(moved):
            if len(messages) >= limit:
                break
            log = self._cluster.logs[place]
            portion = self._network.portion(limit - len(messages))
            read = log.read_uncommitted if self._uncommitted else log.read
            some, positions[place] = read(self._positions[place], portion)
            ends[place] = self._end_of(log)
            messages += some
            self._note_expired(place, log)
        await self._network.hop()
        self._positions |= positions
        self._ends |= ends
        self._cluster.on_read(messages)
        return messages

    def _has_more(self, place: Partition) -> bool:
        log = self._cluster.logs.get(place)
        if log is None:
            return False
        if self._positions[place] > log.end:  # the topic was made anew, or has lost its tail
            self._truncated[place] = (
                self._truncated.get(place, 0) + self._positions[place] - log.end
            )
            self._positions[place] = 0
        return self._positions[place] < self._end_of(log)

    def _end_of(self, log: Log) -> int:
        return log.end if self._uncommitted else max(log.stable, log.start)

    def _note_expired(self, place: Partition, log: Log) -> None:
        if gone := max(0, log.start - self._positions[place]):
            self._expired[place] = self._expired.get(place, 0) + gone

    async def _wait(self, listened: Collection[Partition], end: float) -> None:
        loop = asyncio.get_running_loop()
        news = _News(listened, loop.create_future())
        timer = loop.call_at(end, news.tell)
        self._cluster.waiting[news] = None
        try:
            await news.future
        finally:
            del self._cluster.waiting[news]
            timer.cancel()

    def position(self, partition: Partition) -> int:
        return self._positions[partition]

    def lag(self, partition: Partition) -> int:
        return max(0, self._ends.get(partition, 0) - self._positions[partition])

    def expired(self) -> dict[Partition, int]:
        found, self._expired = self._expired, {}
        return found

    def truncated(self) -> dict[Partition, int]:
        found, self._truncated = self._truncated, {}
        return found

    def skipped(self) -> dict[Partition, int]:
        return {}

    def damaged(self) -> dict[Partition, str]:
        return {}

    async def close(self) -> None:
        self._positions = {}


class _News:
    """Waits until one of these partitions shows more, or until its time is over."""

    def __init__(self, listened: Collection[Partition], future: asyncio.Future[None]) -> None:
        self.future = future
        self._listened = listened

    def shown(self, log: Log) -> None:
        if log.place in self._listened:
            self.tell()

    def tell(self) -> None:
        if not self.future.done():
            self.future.set_result(None)


class MemoryMember:
    """Fulfils `Member`. One that was left for dead joins again when it asks."""

    def __init__(self, group: Group, network: Network) -> None:
        self._group = group
        self._network = network
        self._view: frozenset[int] = frozenset()
        self._closed = False
        group.join(self)

    async def assignment(self) -> frozenset[int]:
        if not self._closed and self._network.hears():
            if self not in self._group.members:
                self._group.join(self)
            self._view = self._group.numbers(self)
        return self._view

    def lapse(self) -> None:
        """Nothing was heard of it for too long."""
        self._group.leave(self)

    async def close(self) -> None:
        self._closed = True
        self._network.leave(self.lapse)


class MemoryCommitter:
    """Fulfils `Committer`. After a failure it is of no more use."""

    def __init__(
        self, cluster: Cluster, network: Network, name: str, epoch: int, group: str
    ) -> None:
        self._cluster = cluster
        self._network = network
        self._name = name
        self._epoch = epoch
        self._group = group
        self._end: BuddyError | None = None

    async def commit(
        self, messages: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
    ) -> list[tuple[int, int]]:
        if self._end is not None:
            raise type(self._end)(str(self._end))
        if not messages and not offsets:
            return []
        try:
            return await self._commit(messages, offsets)
        except (Fenced, BrokerUnavailable) as error:
            self._end = error
            raise
        except (MessageRefused, MissingTopic):
            self._end = BrokerUnavailable(f"the writer {self._name} is lost; start a new one")
            raise
        except BaseException:
            self._end = BrokerUnavailable(f"the writer {self._name} was interrupted")
            raise

    async def close(self) -> None:
        self._end = self._end or BrokerUnavailable(f"the writer {self._name} is closed")

    async def _commit(
        self, messages: Sequence[ProducerRecord], offsets: Mapping[Partition, int]
    ) -> list[tuple[int, int]]:
        cluster, network = self._cluster, self._network
        logs = cluster.place(messages)
        by_log: dict[Log, list[int]] = {}
        for index, log in enumerate(logs):
            by_log.setdefault(log, []).append(index)
        cluster.check(self._name, self._epoch)
        await _settled(cluster, network, self._name)
        transaction = cluster.begin(self._name, self._epoch, network)
        written = [(0, 0)] * len(messages)
        for log in network.order(list(by_log)):
            await network.hop()
            for index in by_log[log]:
                offset = cluster.write(transaction, log, messages[index])
                written[index] = log.place.number, offset
        await network.hop()
        await self._end_transaction(transaction, offsets)
        return written

    async def _end_transaction(
        self, transaction: Transaction, offsets: Mapping[Partition, int]
    ) -> None:
        fate = self._network.fate()
        if fate == "late":
            self._network.later(self._decision(transaction, offsets, late=True))
        elif fate != "never":
            self._decision(transaction, offsets, late=False)()
        await self._network.hop()
        if fate != "done":
            raise BrokerUnavailable("nobody knows whether the last commit took place")

    def _decision(
        self, transaction: Transaction, offsets: Mapping[Partition, int], *, late: bool
    ) -> Callable[[], None]:
        def decide() -> None:
            if late and transaction.state != "open":
                return  # fenced, or given up
            self._cluster.commit(transaction)
            moved = {(self._group, place): offset for place, offset in offsets.items()}
            self._cluster.offsets.update(moved)

        return decide
