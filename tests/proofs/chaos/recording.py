"""What stands in the topics, read as anybody outside can and kept on disk for the checker.

On Kafka it is read with aiokafka under read_committed. The embedded broker compacts whenever it
likes, so there (and on Kafka with compaction on) the recorder follows from the start.
"""

from __future__ import annotations

import asyncio
import marshal
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple, Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from worker.brokers.contract import Broker, Reader
from worker.errors import BrokerUnavailable
from worker.stream import Partition

_AT_ONCE: Final = 5_000


class Entry(NamedTuple):
    """One message of a topic; `timestamp` is the append time in milliseconds."""

    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()

    def header(self, name: str) -> str:
        """The header's text, empty if it is not there."""
        return dict(self.headers).get(name, b"").decode()


class Log(Protocol):
    """What the checker reads."""

    def read(self, topic: str) -> Iterable[Entry]:
        """Every message of the topic; those of one partition in their order."""


class Recording:
    """A log on disk: a file a topic, of compressed frames."""

    def __init__(self, directory: Path) -> None:
        self.counts: Counter[str] = Counter()
        self._directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def append(self, topic: str, entries: Sequence[Entry]) -> None:
        """Keep these."""
        frame = zlib.compress(marshal.dumps([tuple(entry) for entry in entries]), 1)
        with (self._directory / topic).open("ab") as file:
            file.write(len(frame).to_bytes(4, "big") + frame)
        self.counts[topic] += len(entries)

    def read(self, topic: str) -> Iterator[Entry]:
        """See `Log.read`."""
        path = self._directory / topic
        if not path.exists():
            return
        with path.open("rb") as file:
            while head := file.read(4):
                frame = file.read(int.from_bytes(head, "big"))
                for parts in marshal.loads(zlib.decompress(frame)):  # noqa: S302 -- our own file
                    yield Entry(*parts)


class Source(Protocol):
    """Reads topics from their start to wherever they end."""

    async def open(self, topics: Iterable[str]) -> None:
        """Begin at the start of every partition."""

    async def read(self, timeout: float) -> dict[str, list[Entry]]:
        """What comes next, empty after so many seconds."""

    async def missing(self, topics: Iterable[str]) -> int:
        """How many offsets stand between what was read and the present ends."""

    async def close(self) -> None:
        """Stop reading."""


class KafkaSource:
    """By aiokafka alone, under read_committed."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._consumer: Any = None
        self._all: Any = None

    async def open(self, topics: Iterable[str]) -> None:
        """See `Source`."""
        self._consumer = await self._start("read_committed")
        self._all = await self._start("read_uncommitted")
        # A cluster of its own is returned: the consumer's has nothing before topics are assigned.
        cluster = await self._consumer._client.fetch_all_metadata()
        places = [
            TopicPartition(topic, number)
            for topic in topics
            for number in cluster.partitions_for_topic(topic)
        ]
        self._consumer.assign(places)
        for place in places:
            self._consumer.seek(place, 0)

    async def read(self, timeout: float) -> dict[str, list[Entry]]:
        """See `Source`. In an outage nothing comes."""
        try:
            found = await self._consumer.getmany(
                timeout_ms=int(timeout * 1000), max_records=_AT_ONCE
            )
        except KafkaError:
            await asyncio.sleep(timeout)
            return {}
        read: dict[str, list[Entry]] = {}
        for place, records in found.items():
            read.setdefault(place.topic, []).extend(
                Entry(r.partition, r.offset, r.timestamp, r.key, r.value, tuple(r.headers))
                for r in records
            )
        return read

    async def missing(self, topics: Iterable[str]) -> int:
        """See `Source`; to the high watermark, so that no open transaction is overlooked."""
        names = set(topics)
        places = [place for place in self._consumer.assignment() if place.topic in names]
        ends = await self._all.end_offsets(places)
        return sum([max(0, ends[p] - await self._consumer.position(p)) for p in places])

    async def close(self) -> None:
        """See `Source`."""
        for consumer in (self._consumer, self._all):
            if consumer is not None:
                async with asyncio.timeout(10):
                    await consumer.stop()

    async def _start(self, isolation: str) -> Any:
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self._address,
            enable_auto_commit=False,
            isolation_level=isolation,
            request_timeout_ms=10_000,
            # A fetch that waits at the end of one partition holds up those of all others.
            fetch_max_wait_ms=50,
        )
        await consumer.start()
        return consumer


class EmbeddedSource:
    """By the broker's reader, as nothing but transport."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._reader: Reader | None = None
        self._places: list[Partition] = []

    async def open(self, topics: Iterable[str]) -> None:
        """See `Source`."""
        there = await self._broker.topics(topics)
        self._places = [Partition(t.name, n) for t in there.values() for n in range(t.partitions)]
        self._reader = self._broker.reader()
        self._reader.assign(dict.fromkeys(self._places, 0))

    async def read(self, timeout: float) -> dict[str, list[Entry]]:
        """See `Source`."""
        assert self._reader is not None
        try:
            messages = await self._reader.read(_AT_ONCE, timeout)
        except BrokerUnavailable:  # the disk is too busy; nothing was handed out
            return {}
        read: dict[str, list[Entry]] = {}
        for m in messages:
            read.setdefault(m.topic, []).append(
                Entry(m.partition, m.offset, m.timestamp, m.key, m.value, m.headers)
            )
        return read

    async def missing(self, topics: Iterable[str]) -> int:
        """See `Source`."""
        assert self._reader is not None
        names = set(topics)
        spans = await self._broker.spans([p for p in self._places if p.topic in names])
        return sum(max(0, s.end - self._reader.position(p)) for p, s in spans.items())

    async def close(self) -> None:
        """See `Source`."""
        if self._reader is not None:
            await self._reader.close()


class Recorder:
    """Moves what a source gives into a recording: from the start on, or once at the end."""

    def __init__(self, source: Source, recording: Recording, topics: Sequence[str]) -> None:
        self._source = source
        self._recording = recording
        self._topics = topics
        self._following: asyncio.Task[None] | None = None
        self._stop = False

    async def open(self) -> None:
        """Begin at the start; the topics must exist."""
        await self._source.open(self._topics)

    def follow(self) -> None:
        """Read in the background until `step` is wanted."""
        self._following = asyncio.create_task(self._follow())

    async def step(self, timeout: float) -> int:
        """Read once, in the foreground; how many messages came."""
        if self._following is not None:
            self._stop = True
            await self._following
            self._following = None
        read = await self._source.read(timeout)
        for topic, entries in read.items():
            self._recording.append(topic, entries)
        return sum(map(len, read.values()))

    async def catch_up(self, topics: Iterable[str], patience: float) -> int:
        """Read up to the present ends; the offsets still missing after so long a silence."""
        names = list(topics)
        quiet = 0.0
        while missing := await self._source.missing(names):
            came = await self.step(0.25)
            quiet = 0.0 if came else quiet + 0.25
            if quiet >= patience:
                return missing
        return 0

    async def close(self) -> None:
        """Stop reading."""
        self._stop = True
        if self._following is not None:
            await self._following
        await self._source.close()

    async def _follow(self) -> None:
        while not self._stop:
            read = await self._source.read(0.2)
            for topic, entries in read.items():
                self._recording.append(topic, entries)


class Memory:
    """A log in memory, for made-up ones."""

    def __init__(self, topics: Mapping[str, Sequence[Entry]]) -> None:
        self._topics = topics

    def read(self, topic: str) -> Sequence[Entry]:
        """See `Log.read`."""
        return self._topics.get(topic, ())
