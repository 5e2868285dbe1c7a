"""Decides when state on disk must be rebuilt: docs/contract.md, "State on disk". Pure.

A store that follows compacted topics may resume from its positions only while it cannot have
missed a deletion. A rebuild restores agreement with the topics, whatever had happened.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from worker.index.tails import Beside, Tail
from worker.stream import OffsetRange, Partition, Topic


class SavedIndex(NamedTuple):
    """The saved metadata of a store."""

    version: int | None
    """The version of its format; None if unreadable."""
    last_current: int | None
    """When the store had last read all messages, in milliseconds since 1970.

    An empty store counts as current: it has no row whose deletion it could miss. So during the
    first fill, the store was last current when the fill began.
    """
    positions: Mapping[Partition, int]
    """The next offset to read of every partition of its topics; empty in an empty store."""
    identities: Mapping[str, str] = {}
    """By topic: the identity that the positions belong to."""
    tails: Mapping[Partition, Tail] = {}
    """By partition: the last messages read, for `resuming.another_log`."""
    beside: Mapping[Partition, Beside] = {}
    """As `tails`, for partitions that do not feed the store and have no positions."""
    tombstones: Mapping[Partition, int] = {}
    """By partition: `OffsetRange.tombstones_from` when the store was last found to be complete.

    Or when it began to read from the start: tombstones that were gone by then deleted nothing that
    it has.
    """

    def now(
        self, spans: Mapping[Partition, OffsetRange], identities: Mapping[str, str]
    ) -> SavedIndex:
        """Without the `beside` tails of topics that were deleted or re-created."""
        same = {
            partition: one
            for partition, one in self.beside.items()
            if partition in spans and not is_another(one.identity, identities.get(partition.topic))
        }
        return self._replace(beside=same)


def reason_to_rebuild(
    saved: SavedIndex,
    topics: Mapping[str, Topic],
    spans: Mapping[Partition, OffsetRange],
    now_ms: int,
    *,
    version: int,
    identities: Mapping[str, str] | None = None,
) -> str | None:
    """Why the store must be rebuilt, for the log; None if it can resume.

    `topics`, `identities` and `spans` describe the topics that feed the store as they are now;
    `spans` has every partition. `version` is the format that this program writes.
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
        or missed_deletions(saved, spans)
    )


def other_topics(saved: SavedIndex, topics: Mapping[str, Topic]) -> str | None:
    """Which topic is missing or has a new partition count, for the log; None if none."""
    numbers: dict[str, set[int]] = {}
    for partition in saved.positions:
        numbers.setdefault(partition.topic, set()).add(partition.number)
    for name, known in sorted(numbers.items()):
        topic = topics.get(name)
        if topic is None:
            return f"it was made of topic {name}, which is not there or no longer used"
        # A new partition count moves keys between partitions. Only a complete read then gives the
        # order of a key's messages.
        if known != set(range(topic.partitions)):
            return f"topic {name} had {len(known)} partitions and has {topic.partitions} now"
    return None


def created_anew(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """Which topic has a new identity, for the log; None if none has.

    Offsets of the old topic mean nothing in the new topic.
    """
    anew = topics_anew(before, now)
    return f"topic {anew[0]} was created anew" if anew else None


def topics_anew(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """The topics that have a new identity, in order of their names."""
    return [name for name in sorted(before) if is_another(before[name], now.get(name))]


def is_another(before: str | None, now: str | None) -> bool:
    """Whether the identities differ; False if one is missing, as from an old broker."""
    return bool(before and now) and before != now


def _too_old(saved: SavedIndex, topics: Mapping[str, Topic], now_ms: int) -> str | None:
    if saved.last_current is None:
        return "it does not say when it was last current"
    # The other half is a reserve for catching up and for clock differences. For the same reason a
    # time in the future is accepted only within this limit.
    limit = min(topic.delete_retention_ms for topic in topics.values()) // 2
    age = now_ms - saved.last_current
    if age > limit:
        return f"it was last current {_hours(age)} ago; after {_hours(limit)} deletions may be gone"
    if age < -limit:
        return f"it was last current {_hours(-age)} in the future: a clock was wrong"
    return None


def lost_ends(
    saved: SavedIndex, identities: Mapping[str, str], spans: Mapping[Partition, OffsetRange]
) -> dict[Partition, int]:
    """How many offsets behind its end the store has read, by partition of the same topic."""
    return {
        partition: position - spans[partition].end
        for partition, position in saved.positions.items()
        if partition in spans
        and position > spans[partition].end
        and not is_another(saved.identities.get(partition.topic), identities.get(partition.topic))
    }


def removed_unread(
    saved: SavedIndex, identities: Mapping[str, str], spans: Mapping[Partition, OffsetRange]
) -> dict[Partition, int]:
    """How many offsets were removed before the store read them, by partition of the same topic."""
    return {
        partition: spans[partition].start - position
        for partition, position in saved.positions.items()
        if partition in spans
        and position < spans[partition].start
        and not is_another(saved.identities.get(partition.topic), identities.get(partition.topic))
    }


def outside_the_log(saved: SavedIndex, spans: Mapping[Partition, OffsetRange]) -> str | None:
    """Which position lies outside its partition, for the log; None if none."""
    for partition, position in sorted(saved.positions.items()):
        start, end, _ = spans[partition]
        where = f"partition {partition.number} of topic {partition.topic}"
        if position > end:
            return (
                f"{where} ends at {end}, before position {position}: it was created anew or "
                "restored from an older copy"
            )
        if position < start:
            return f"{where} begins at {start}, after position {position}: messages are missing"
    return None


def missed_deletions(saved: SavedIndex, spans: Mapping[Partition, OffsetRange]) -> str | None:
    """Which partition has lost tombstones that the store had not read, for the log; None if none.

    Holds whatever the clocks say, or said.
    """
    for partition, position in sorted(saved.positions.items()):
        gone_to = spans[partition].tombstones_from
        if position < gone_to and gone_to > saved.tombstones.get(partition, 0):
            return (
                f"partition {partition.number} of topic {partition.topic} has lost deletions "
                f"before offset {gone_to} to compaction, after position {position}: they were not "
                "read"
            )
    return None


def tombstones_of(spans: Mapping[Partition, OffsetRange]) -> dict[Partition, int]:
    """What `SavedIndex.tombstones` becomes when the store is complete, or begins."""
    return {p: span.tombstones_from for p, span in spans.items() if span.tombstones_from}


def _hours(milliseconds: int) -> str:
    return f"{milliseconds / 3_600_000:.1f} h"
