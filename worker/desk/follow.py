"""Keeps the desk's store up to date with rejections, accepted rows and the audit of replays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from schemas import ENTITIES
from worker.brokers.contract import Broker
from worker.brokers.sound import sound_spans, spans_and_damage
from worker.core.topics import Names
from worker.desk.expiry import expire
from worker.desk.lacking import lacking
from worker.desk.reading import (
    Advance,
    CatchUp,
    Readers,
    ReadOptions,
    RejectionsLateError,
    Removed,
    Unreadable,
)
from worker.desk.store import RejectionStore
from worker.errors import DamagedLog, MissingTopic
from worker.index.freshness import (
    SavedIndex,
    created_anew,
    lost_ends,
    missed_deletions,
    other_topics,
    outside_the_log,
    removed_unread,
    tombstones_of,
    topics_anew,
)
from worker.index.resuming import another_log
from worker.stream import OffsetRange, Partition, Topic

_MOMENT_SECONDS: Final = 1.0


def followed(names: Names) -> list[str]:
    """The topics that the desk reads."""
    return [*map(names.rejected, ENTITIES), *map(names.accepted, ENTITIES), names.replays]


async def found_topics(broker: Broker, names: Names) -> dict[str, Topic]:
    """The topics that the desk reads. Raises MissingTopic, BrokerUnavailable."""
    topics = followed(names)
    found = await broker.topics(topics)
    for name in topics:
        if name not in found:
            raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
    return found


def partitions_of(topics: Mapping[str, Topic]) -> list[Partition]:
    """Every partition of these topics."""
    return [Partition(topic.name, n) for topic in topics.values() for n in range(topic.partitions)]


def _unseen(_done: int, _total: int) -> None:
    """Progress that nobody watches."""


def _unheard(_partition: Partition, _count: int) -> None:
    """A loss that nobody is told."""


class DeskUpdater:
    """Brings a store up to date, from call to call. Call `close` at the end."""

    def __init__(
        self,
        broker: Broker,
        store: RejectionStore,
        unreadable: Unreadable,
        missed: Callable[[str], None] = lambda _line: None,
        expired: Removed = _unheard,
        *,
        share: float = 1.0,
        stop: asyncio.Event | None = None,
    ) -> None:
        """`missed` gets a line about each partition of which something could not be read.

        `expired` is told how many offsets of rejections were removed before they were read.
        `share` is the part of the time in which it reads; `stop` ends a reading with `Stopped`.
        """
        self._broker = broker
        self.store = store
        self._unreadable = unreadable
        self._missed = missed
        self._expired = expired
        self._share = share
        self._stop = stop
        self._readers = Readers(broker)
        self._is_first = True
        self._is_verified = False
        """Whether the log is known to be the one that the store was filled from."""

    async def close(self) -> None:
        """Close the readers."""
        await self._readers.close()

    async def catch_up(self, advance: Advance = _unseen, *, whole: bool = False) -> bool:
        """Read what the topics hold at the start of the call into the store.

        Returns whether anything has changed.
        Rejections that their topics no longer have leave the store. With `whole`, open
        transactions are waited for: a newer row may be in one. What is behind damage is not read:
        see `RejectionStore.damage`.

        Raises MissingTopic, BrokerUnavailable, DamagedLog for damage that hides a topic, Stopped,
        and StateError, also if the store's file was removed. What was read until then stays in the
        store.
        """
        verified, self._is_verified = self._is_verified, False
        names = self.store.names
        found = await found_topics(self._broker, names)
        identities = await self._broker.identities(found)
        partitions = partitions_of(found)
        spans, damaged = await spans_and_damage(self._broker, partitions, uncommitted=whole)
        self.store.database.check_in_place()
        saved = await asyncio.to_thread(self.store.saved)
        reason = other_topics(saved, found) or created_anew(saved.identities, identities)
        if reason is None:
            there = _still_there(saved, spans)
            reason = outside_the_log(there, spans) or missed_deletions(there, spans)
            if reason is None and not verified:
                reason = await another_log(self._broker, there, spans)
        if reason is not None:
            self._tell_topics_anew(topics_anew(saved.identities, identities))
            self._tell_lost_ends(saved, identities, spans)
            removed_before = removed_unread(saved, identities, spans)
            await asyncio.to_thread(self.store.wipe, reason)
            for partition, count in removed_before.items():
                self._removed(partition, count)
            saved = await asyncio.to_thread(self.store.saved)
        if (tombstones := tombstones_of(spans)) != saved.tombstones:
            await asyncio.to_thread(self.store.note_tombstones, tombstones)
        noted = await asyncio.to_thread(self.store.damage)
        if not damaged.keys() <= noted.keys():
            noted = {**noted, **damaged}
            await asyncio.to_thread(self.store.note_damage, noted)
        behind = any(saved.positions.get(p) != span.end for p, span in spans.items())
        if behind:
            options = ReadOptions(
                self._unreadable, self._removed, advance, whole, self._share, self._stop
            )
            reading = CatchUp(self._readers, self.store, identities, saved, spans, options)
            try:
                await reading.run()
            except RejectionsLateError as late:
                await asyncio.to_thread(self.store.wipe, str(late))
                return await self.catch_up(advance, whole=whole)
            damaged |= reading.damaged
        if damaged != noted:
            await asyncio.to_thread(self.store.note_damage, damaged)
        rejected = set(map(names.rejected, ENTITIES))
        starts = {p: span.start for p, span in spans.items() if p.topic in rejected}
        removed = await asyncio.to_thread(expire, self.store.database, starts)
        if not saved.positions:
            await self._tell_missing_audits(spans)
        first, self._is_first = self._is_first, False
        self._is_verified = True
        return behind or removed > 0 or first

    async def readable_ends(self) -> dict[Partition, tuple[int, int]]:
        """How far each partition can be read, and its end with open transactions."""
        return await _readable_ends(self._broker, self.store.names)

    def _tell_topics_anew(self, topics: Sequence[str]) -> None:
        """Tell which topics were created anew. The sink tells of all of them, and counts them."""
        names = self.store.names
        for topic in topics:
            if topic in map(names.rejected, ENTITIES):
                self._missed(
                    f"topic {topic} was created anew: its rejections are gone; have the records"
                    " judged again with 'buddy reprocess'"
                )
            elif topic == names.replays:
                self._missed(
                    f"topic {topic} was created anew: what earlier replays named counts as not"
                    " sent again"
                )

    def _tell_lost_ends(
        self,
        saved: SavedIndex,
        identities: Mapping[str, str],
        spans: Mapping[Partition, OffsetRange],
    ) -> None:
        for (topic, number), count in lost_ends(saved, identities, spans).items():
            self._missed(
                f"{topic}/{number} has lost its last {count} messages, which had been read: see"
                " accepted_truncated in docs/operations/troubleshooting.md"
            )

    def _removed(self, partition: Partition, count: int) -> None:
        """Tell of offsets that were removed unread. Index and sink tell of accepted rows."""
        names = self.store.names
        if partition.topic == names.replays:
            self._missed(
                f"{count} audits of {names.replays} were removed before they were read: what they"
                " name counts as not sent again"
            )
        elif partition.topic in map(names.rejected, ENTITIES):
            self._expired(partition, count)

    async def _tell_missing_audits(self, spans: Mapping[Partition, OffsetRange]) -> None:
        """Tell, of a store that was just filled, if audits may be missing that matter.

        Audits are kept for longer than the rejections they name. So those that are gone matter
        only if there are rejections from before the first that is left.
        """
        oldest = await asyncio.to_thread(self.store.oldest)
        for partition, span in spans.items():
            if partition.topic != self.store.names.replays or not span.start or oldest is None:
                continue
            reader = self._broker.reader()
            try:
                reader.assign({partition: span.start})
                first = await reader.read(1, 1.0) if span.end > span.start else []
            finally:
                await reader.close()
            if not first or first[0].timestamp > oldest:
                self._missed(
                    f"{span.start} audits of {partition.topic} are gone: unless they had expired,"
                    " what they name counts as not sent again"
                )


async def bring_up_to_date(
    broker: Broker,
    store: RejectionStore,
    unreadable: Unreadable,
    advance: Advance,
    missed: Callable[[str], None] = lambda _line: None,
    *,
    whole: bool = False,
) -> None:
    """Bring a store up to date once: `DeskUpdater.catch_up`, whose errors it raises.

    Unless `whole`, `missed` also gets a line about messages behind open transactions, and about
    each damaged partition. With `whole`, raises DamagedLog if there is one.
    """

    def expired(partition: Partition, count: int) -> None:
        missed(
            f"{count} messages of {partition.topic}/{partition.number} were removed before they"
            " were read: see rejections_expired in docs/operations/troubleshooting.md"
        )

    updater = DeskUpdater(broker, store, unreadable, missed, expired)
    try:
        await updater.catch_up(advance, whole=whole)
    finally:
        await updater.close()
    lines = await asyncio.to_thread(lacking, store)
    if not whole:
        for line in lines:
            missed(line)
        await tell_open_transactions(broker, store.names, missed)
    elif lines:
        raise DamagedLog(lines[0])


async def tell_open_transactions(
    broker: Broker, names: Names, missed: Callable[[str], None]
) -> None:
    """Report messages behind transactions that stay open; those of services end within a moment."""
    ends = await _readable_ends(broker, names)
    if all(readable >= end for readable, end in ends.values()):
        return
    await asyncio.sleep(_MOMENT_SECONDS)
    readable_now = await sound_spans(broker, ends)
    for partition, (_, end) in ends.items():
        if partition in readable_now and (count := end - readable_now[partition].end) > 0:
            missed(
                f"{count} messages of {partition.topic}/{partition.number} are behind an open"
                " transaction and not counted: see input_blocked in"
                " docs/operations/troubleshooting.md"
            )


async def _readable_ends(broker: Broker, names: Names) -> dict[Partition, tuple[int, int]]:
    partitions = partitions_of(await found_topics(broker, names))
    ends = await sound_spans(broker, partitions, uncommitted=True)
    readable = await sound_spans(broker, partitions)
    return {p: (readable[p].end, span.end) for p, span in ends.items() if p in readable}


def _still_there(saved: SavedIndex, spans: Mapping[Partition, OffsetRange]) -> SavedIndex:
    """Positions and tails without what has expired or is damaged: no reason to rebuild."""
    positions = {
        p: max(position, spans[p].start) for p, position in saved.positions.items() if p in spans
    }
    tails = {
        p: tail
        for p, tail in saved.tails.items()
        if p in spans and spans[p].start < saved.positions[p]
    }
    return saved._replace(positions=positions, tails=tails)
