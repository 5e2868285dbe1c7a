"""What a store must have read before a command answers from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from worker.brokers.contract import Broker
from worker.brokers.sound import sound_spans
from worker.core.topics import Names
from worker.desk.follow import found_topics, partitions_of
from worker.desk.lacking import lacking
from worker.desk.store import RejectionStore
from worker.errors import DamagedLog
from worker.stream import Partition


class Goal(NamedTuple):
    """What a store must have read, and of which topics."""

    ends: Mapping[Partition, int]
    identities: Mapping[str, str]
    whole: bool
    """Whether what is in open transactions or behind damage counts."""


async def goal(broker: Broker, names: Names, *, whole: bool) -> Goal:
    """The ends of the topics now; with `whole`, open transactions included.

    Raises MissingTopic, BrokerUnavailable, DamagedLog for damage that hides a topic.
    """
    found = await found_topics(broker, names)
    spans = await sound_spans(broker, partitions_of(found), uncommitted=whole)
    ends = {partition: span.end for partition, span in spans.items()}
    return Goal(ends, await broker.identities(found), whole)


def offsets_left(store: RejectionStore, wanted: Goal) -> int | None:
    """How many offsets the store has not read yet; None if it was made of other topics.

    A new store has read nothing. What is behind damage does not count: if it must, this raises
    DamagedLog. Raises StateError.
    """
    saved = store.saved()
    if saved.identities and saved.identities != wanted.identities:
        return None
    if wanted.whole and (lines := lacking(store)):
        raise DamagedLog(lines[0])
    damaged = store.damage()
    left = {p: end for p, end in wanted.ends.items() if p not in damaged}
    return sum(max(0, end - saved.positions.get(p, -1)) for p, end in left.items())
