"""When what is on disk can no longer be trusted: docs/contract.md, "State on disk". Pure.

What a compacted topic has been read into can go on from its positions only while no deletion can
have been missed. After a rebuild it is what the topics say, whatever had happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from worker.index.tails import Beside, Tail
from worker.stream import OffsetRange, Partition, Topic


class Saved(NamedTuple):
    """What a store of state says of itself."""

    version: int | None
    """Version of its format; None where it cannot be read."""
    last_current: int | None
    """When it had last read everything there was, in milliseconds since 1970.

    A store that is empty counts as current: it holds nothing whose deletion it could miss. So
    one that is being filled for the first time was last current when that began.
    """
    positions: Mapping[Partition, int]
    """The offset to read next, of every partition of its topics; empty in an empty store."""
    identities: Mapping[str, str] = {}
    """Of each topic the identity that the positions belong to."""
    tails: Mapping[Partition, Tail] = {}
    """Of each partition the messages read last, for `resuming.another_log`."""
    beside: Mapping[Partition, Beside] = {}
    """The same of partitions that were read beside those: they have no positions."""

    def now(self, spans: Mapping[Partition, OffsetRange], identities: Mapping[str, str]) -> Saved:
        """Without what is `beside` of topics that are gone, or others now: that is known."""
        same = {
            partition: one
            for partition, one in self.beside.items()
            if partition in spans and not is_another(one.identity, identities.get(partition.topic))
        }
        return self._replace(beside=same)


def reason_to_rebuild(
    saved: Saved,
    topics: Mapping[str, Topic],
    spans: Mapping[Partition, OffsetRange],
    now_ms: int,
    *,
    version: int,
    identities: Mapping[str, str] | None = None,
) -> str | None:
    """Why the store must be emptied and filled anew, for the log; None if it can go on.

    `topics` are those that the store is made of, as they are now, with their `identities`, and
    `spans` has each of their partitions; `version` is the format that this program writes.
    """
    if saved.version != version:
        return f"its format has version {saved.version or 'unknown'}, this program's {version}"
    if not saved.positions:
        return None
    return (
        other_topics(saved, topics)
        or created_anew(saved.identities, identities or {})
        or _too_old(saved, topics, now_ms)
        or outside_the_log(saved, spans)
    )


def other_topics(saved: Saved, topics: Mapping[str, Topic]) -> str | None:
    """Which topic is gone or has another number of partitions, for the log; None if none has."""
    numbers: dict[str, set[int]] = {}
    for partition in saved.positions:
        numbers.setdefault(partition.topic, set()).add(partition.number)
    for name, known in sorted(numbers.items()):
        topic = topics.get(name)
        if topic is None:
            return f"it was made of topic {name}, which is not there or no longer used"
        # With another number of partitions keys lie elsewhere: the order of a key's messages
        # is then only known from a reading of the whole.
        if known != set(range(topic.partitions)):
            return f"topic {name} had {len(known)} partitions and has {topic.partitions} now"
    return None


def created_anew(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Which topic has another identity than before, for the log; None if none has.

    Offsets in the topic of before mean nothing in the one of now.
    """
    for name in sorted(before):
        if is_another(before[name], now.get(name)):
            return f"topic {name} was created anew"
    return None


def is_another(before: str | None, now: str | None) -> bool:
    """Whether these are identities of two topics. An old broker cannot tell: it gives none."""
    return bool(before and now) and before != now


def _too_old(saved: Saved, topics: Mapping[str, Topic], now_ms: int) -> str | None:
    if saved.last_current is None:
        return "it does not say when it was last current"
    # Half, so that the other half is left for catching up and for clocks that differ: that is
    # also why a time in the future is believed within the same bound only.
    limit = min(topic.delete_retention_ms for topic in topics.values()) // 2
    age = now_ms - saved.last_current
    if age > limit:
        return f"it was last current {_hours(age)} ago; after {_hours(limit)} deletions may be gone"
    if age < -limit:
        return f"it was last current {_hours(-age)} in the future: a clock was wrong"
    return None


def outside_the_log(saved: Saved, spans: Mapping[Partition, OffsetRange]) -> str | None:
    """Which partition ends before its position, or begins after it, for the log; None if none."""
    for partition, position in sorted(saved.positions.items()):
        start, end = spans[partition]
        where = f"partition {partition.number} of topic {partition.topic}"
        if position > end:
            return (
                f"{where} ends at {end}, before position {position}: it was created anew or "
                "restored from an older copy"
            )
        if position < start:
            return f"{where} begins at {start}, after position {position}: messages are missing"
    return None


def _hours(milliseconds: int) -> str:
    return f"{milliseconds / 3_600_000:.1f} h"
