"""What the checks know of internal topics: the one place that changes where their formats do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

import msgspec

from tests.proofs.simulation.broker.cluster import Cluster
from tests.proofs.simulation.broker.log import Transaction
from tests.proofs.simulation.records import named
from worker.core.addresses import Release, ReservationReply, ReservationRequest
from worker.core.checkpoint import Checkpoint
from worker.core.parked import Envelope
from worker.core.topics import Names
from worker.stream import Message

ASKED: Final = ("claims", "grants")
"""Internal topics that a task reads like an input: they may be created anew."""

_read_envelope = msgspec.msgpack.Decoder(Envelope).decode
_read_progress = msgspec.json.Decoder(Checkpoint).decode
_read_claim = msgspec.msgpack.Decoder(ReservationRequest | Release).decode
_read_grant = msgspec.msgpack.Decoder(ReservationReply).decode


class Copy(NamedTuple):
    """A copy of a parked record."""

    coordinate: str
    key: str
    value: bytes | None


class Internals:
    """Reads what workers tell themselves and each other."""

    def __init__(self, names: Names, tasks: int) -> None:
        self._names = names
        self._tasks = tasks
        self._generations: dict[str, int] = {}
        """By identity of a topic."""

    def note_topics(self, cluster: Cluster) -> None:
        """Learn which identity is of which generation."""
        self._generations |= {
            identity: cluster.generations[name] for name, identity in cluster.identities.items()
        }

    def copies(self, transaction: Transaction) -> Iterator[Copy]:
        """The parked records of which this writes a copy."""
        for message in transaction.messages:
            if message.topic == self._names.parked and message.value is not None:
                found = _read_envelope(message.value)
                coordinate = f"{found.topic}/{found.partition}/{found.offset}"
                yield Copy(coordinate, (found.key or b"").decode(), found.value)

    def held(self, transaction: Transaction) -> Iterator[str]:
        """The sources of the records that this says are parked without a copy."""
        for message in transaction.messages:
            if message.topic == self._names.progress and message.value is not None:
                progress = _read_progress(message.value)
                for entity, held in progress.in_memory.items():
                    generation = self._generations[progress.topics[entity]]
                    start = f"{self._names.input(entity)}/{message.partition}"
                    for offsets in held.values():
                        yield from (named(f"{start}/{offset}", generation) for offset in offsets)

    def left(self, cluster: Cluster) -> str | None:
        """What a task still keeps that it should not when all is done; None if there is nothing."""
        names = self._names
        for number in range(self._tasks):
            for topic in (names.parked, names.granted):
                if table := cluster.logs[topic, number].table():
                    return f"{topic}/{number} keeps {list(table)}"
            for value in cluster.logs[names.progress, number].table().values():
                if held := {e: h for e, h in _read_progress(value).in_memory.items() if h}:
                    return f"task {number} holds {held}"
        return None

    def disagreement(self, cluster: Cluster) -> str | None:
        """A question without an answer or a grant that is not settled, each time; None if none."""
        if any(cluster.generations[self._names.input(name)] for name in ASKED):
            return None  # not all can be seen
        asked: Counter[tuple[int, int]] = Counter()
        answered: Counter[tuple[int, int]] = Counter()
        granted: Counter[tuple[int, int]] = Counter()
        settled: Counter[tuple[int, int]] = Counter()
        for q in range(self._tasks):
            for value in _values(cluster.logs[self._names.claims, q].committed()):
                claim = _read_claim(value)
                counts = asked if isinstance(claim, ReservationRequest) else settled
                counts[claim.task, claim.ordinal] += 1
            for value in _values(cluster.logs[self._names.grants, q].committed()):
                grant = _read_grant(value)
                answered[q, grant.ordinal] += 1
                granted[q, grant.ordinal] += grant.granted
        if asked != answered:
            return f"claims {asked - answered} unanswered, answers {answered - asked} unasked"
        if +granted != settled:
            return f"grants {granted - settled} unsettled, {settled - granted} ungranted"
        return None


def _values(messages: list[Message]) -> Iterator[bytes]:
    return (message.value for message in messages if message.value is not None)
