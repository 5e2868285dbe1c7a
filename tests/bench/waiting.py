"""Which records could have been judged at once, and which of them were parked all the same.

A record can be judged once everything that it needs has been appended: the rows that it refers to,
what these refer to in turn, and the earlier versions of its key. What was appended in the same
millisecond was not there before.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from schemas import ENTITIES
from tests.bench.running import PARTITIONS
from worker.brokers.contract import Broker
from worker.core.checkpoint import Checkpoint
from worker.core.decode import Decoded, decoders
from worker.core.keys import id_bytes
from worker.core.topics import Names
from worker.engine.index_updater import INDEXED
from worker.stream import Message, Partition

_EVER = datetime.max.replace(tzinfo=UTC)
_READ = 5_000
_READ_SECONDS = 1.0


class Needs(NamedTuple):
    """When the last thing that a record needs was appended; whether it refers to anything."""

    since: float
    refers: bool


class Ready:
    """Learns of messages, users before matches before the rest, and says what each one needs.

    `unknown` is the moment of a reference that no message before has made known.
    """

    def __init__(self, unknown: float = math.inf) -> None:
        self._unknown = unknown
        self._decoders = decoders()
        self._ids: dict[bytes, float] = {}
        self._keys: dict[tuple[str, bytes | None], float] = {}

    def note(self, entity: str, message: Message, appended: float) -> Needs:
        """What the record needed that was appended at that moment."""
        since = self._keys.get((entity, message.key), 0.0)
        refers = False
        row = self._decoders[entity].decode(message.value, message.key, _EVER)
        if isinstance(row, Decoded):
            for wanted in filter(None, (*row.users, *row.matches)):
                refers = True
                since = max(since, self._ids.get(wanted, self._unknown))
            if entity in INDEXED:
                self._ids.setdefault(id_bytes(row.key.decode()), max(since, appended))
        if message.key is not None:
            self._keys[entity, message.key] = max(since, appended)
        return Needs(since, refers)


class Waits(NamedTuple):
    """Per cent: of all records those parked, and those with a copy in the log.

    `needless` is the share of parked ones among those whose references were there before them.
    """

    parked: float
    kept: float
    needless: float


async def look(broker: Broker, names: Names, partitions: int = PARTITIONS) -> Waits:
    """Read afterwards what became of every record on the inputs.

    What was held stands in the progress of some commit, as long as compaction leaves it there;
    each copy leaves a tombstone, which compaction keeps. A record that was parked and judged within
    one commit leaves no trace, and has cost nothing in the log.
    """
    parked, kept = await _parked(broker, names, partitions)
    ready = Ready()
    records = there = needless = 0
    for entity in ENTITIES:
        topic = names.input(entity)
        async for message in messages(broker, [Partition(topic, n) for n in range(partitions)]):
            records += 1
            needs = ready.note(entity, message, message.timestamp)
            if needs.refers and needs.since < message.timestamp:
                there += 1
                needless += (entity, message.partition, message.offset) in parked
    return Waits(
        100 * len(parked) / max(1, records),
        100 * kept / max(1, records),
        100 * needless / max(1, there),
    )


async def messages(broker: Broker, places: Sequence[Partition]) -> AsyncIterator[Message]:
    """Everything that these partitions hold now."""
    spans = await broker.spans(places)
    reader = broker.reader()
    reader.assign({place: span.start for place, span in spans.items()})
    try:
        while any(reader.position(place) < span.end for place, span in spans.items()):
            for message in await reader.read(_READ, _READ_SECONDS):
                yield message
    finally:
        await reader.close()


async def _parked(
    broker: Broker, names: Names, partitions: int
) -> tuple[set[tuple[str, int, int]], int]:
    """Entity, partition and offset of each parked record; how many got a copy."""
    parked: set[tuple[str, int, int]] = set()
    kept = 0
    places = [Partition(t, n) for t in (names.parked, names.progress) for n in range(partitions)]
    async for message in messages(broker, places):
        if message.topic == names.parked:
            entity, _, place = (message.key or b"").decode().split("/")
            parked.add((entity, message.partition, int(place)))
            kept += message.value is None
            continue
        held = msgspec.json.decode(message.value or b"{}", type=Checkpoint).in_memory
        for entity, moments in held.items():
            for offsets in moments.values():
                parked.update((entity, message.partition, at) for at in offsets)
    return parked, kept
