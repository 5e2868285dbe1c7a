"""Brings the desk's store up to date with rejections, accepted rows and the audit of replays.

Three orders make the store exact, whichever process wrote what:

* *Cause before consequence.* Rejections are read in stages: users, matches, the rest. The ends of
  the later stages are noted first. So whatever a read rejection refers to has been read before it.
* *Rejection before settling.* The ends of the rejections are noted after a batch of accepted rows
  has been read, and the rejections up to them are applied first. So a row settles every earlier
  rejection of its key.
* *Rejection before replay.* The end of the audit is noted before those of the rejections, and the
  audit is read last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final

from schemas import ENTITIES
from worker.brokers.contract import Broker, Reader
from worker.desk.audit import read_audit
from worker.desk.seen import STAGES, Settling, key_digest, read_rejection, read_settling
from worker.desk.store import Numbered, RejectionStore, Replayed
from worker.errors import BrokerUnavailable, DamagedLog, MissingTopic
from worker.index.freshness import SavedIndex, created_anew, other_topics, outside_the_log
from worker.index.resuming import another_log
from worker.index.tails import Tail, extended
from worker.stream import Message, OffsetRange, Partition

Advance = Callable[[int, int], None]
"""Called with progress: offsets read, offsets in all."""
Unreadable = Callable[[Partition, int], None]
"""Called for each message that is no rejection, or no audit of a replay; it is skipped."""

_BATCH: Final = 5_000
_STEP_SECONDS: Final = 0.25
_MOMENT_SECONDS: Final = 1.0
_PATIENCE: Final = 40.0
"""Longer than a broker keeps the transaction of a replay that was killed."""


async def bring_up_to_date(
    broker: Broker,
    store: RejectionStore,
    unreadable: Unreadable,
    advance: Advance,
    missed: Callable[[str], None] = lambda _line: None,
    *,
    whole: bool = False,
) -> None:
    """Read what the topics hold at the start of the call into the store.

    Rejections that their topics no longer have leave the store. `missed` gets a line about each
    partition of which something could not be read. With `whole`, open transactions are waited for:
    a newer row may be in one.

    Raises MissingTopic, BrokerUnavailable, DamagedLog and StateError. What was read until then
    stays in the store.
    """
    names = store.names
    rejected = [*map(names.rejected, ENTITIES)]
    topics = [*rejected, *map(names.accepted, ENTITIES), names.replays]
    found = await broker.topics(topics)
    for name in topics:
        if name not in found:
            raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
    identities = await broker.identities(topics)
    partitions = [Partition(t.name, n) for t in found.values() for n in range(t.partitions)]
    spans = await broker.spans(partitions, uncommitted=whole)
    saved = await asyncio.to_thread(store.saved)
    for partition, span in spans.items():
        gone = span.start - saved.positions.get(partition, 0)
        if partition.topic == names.replays and gone > 0:
            missed(
                f"{gone} audits of {names.replays} were removed before they were read: what they"
                " name counts as not sent again"
            )
    reason = (
        other_topics(saved, found)
        or created_anew(saved.identities, identities)
        or outside_the_log(_still_there(saved, spans), spans)
        or await another_log(broker, _still_there(saved, spans), spans)
    )
    if reason is not None:
        await asyncio.to_thread(store.wipe, reason)
        saved = await asyncio.to_thread(store.saved)
    follower = _CatchUp(broker, store, identities, saved, spans, unreadable, advance)
    follower.whole = whole
    try:
        await follower.run()
    finally:
        await follower.close()
    if not whole:
        await _tell_open_transactions(broker, partitions, missed)
    starts = {p: span.start for p, span in spans.items() if p.topic in rejected}
    await asyncio.to_thread(store.expire, starts)


async def _tell_open_transactions(
    broker: Broker, partitions: Sequence[Partition], missed: Callable[[str], None]
) -> None:
    """Report messages behind transactions that stay open; those of services end within a moment."""
    ends = await broker.spans(partitions, uncommitted=True)
    stable = await broker.spans(partitions)
    if all(stable[p].end >= end.end for p, end in ends.items()):
        return
    await asyncio.sleep(_MOMENT_SECONDS)
    stable = await broker.spans(partitions)
    for partition, span in ends.items():
        if (count := span.end - stable[partition].end) > 0:
            missed(
                f"{count} messages of {partition.topic}/{partition.number} are behind an open"
                " transaction and not counted: see input_blocked in"
                " docs/operations/troubleshooting.md"
            )


def _still_there(saved: SavedIndex, spans: Mapping[Partition, OffsetRange]) -> SavedIndex:
    """Positions and tails without what has expired: that is no reason to rebuild."""
    positions = {p: max(position, spans[p].start) for p, position in saved.positions.items()}
    tails = {p: tail for p, tail in saved.tails.items() if spans[p].start < saved.positions[p]}
    return saved._replace(positions=positions, tails=tails)


class _CatchUp:
    """Reads all three kinds of topics once, up to their ends."""

    def __init__(
        self,
        broker: Broker,
        store: RejectionStore,
        identities: Mapping[str, str],
        saved: SavedIndex,
        spans: Mapping[Partition, OffsetRange],
        unreadable: Unreadable,
        advance: Advance,
    ) -> None:
        self.whole = False
        """Whether open transactions are waited for."""
        self._broker = broker
        self._store = store
        self._identities = identities
        self._unreadable = unreadable
        self._advance = advance
        self._positions = {
            p: max(span.start, saved.positions.get(p, span.start)) for p, span in spans.items()
        }
        self._is_new = self._positions != saved.positions or saved.identities != identities
        self._tails: dict[Partition, Tail] = dict(saved.tails)
        self._total = sum(spans[p].end - at for p, at in self._positions.items())
        self._done = 0
        self._stages = [
            [p for p in spans if p.topic in set(map(store.names.rejected, stage))]
            for stage in STAGES
        ]
        accepted = set(map(store.names.accepted, ENTITIES))
        self._accepted_ends = {p: span.end for p, span in spans.items() if p.topic in accepted}
        self._audit_ends = {p: s.end for p, s in spans.items() if p.topic == store.names.replays}
        self._rejections = broker.reader()
        self._accepted = broker.reader()
        self._audit = broker.reader()
        self._assigned = {
            self._rejections: [p for stage in self._stages for p in stage],
            self._accepted: list(self._accepted_ends),
            self._audit: list(self._audit_ends),
        }
        for reader, assigned in self._assigned.items():
            reader.assign({p: self._positions[p] for p in assigned})

    async def run(self) -> None:
        if self._is_new:
            # Every partition has a position from here on, whether it holds messages or not.
            await self._apply([], self._positions)
        await self._read_rejections()
        while self._left(self._accepted_ends):
            rows, moved = await self._read(self._accepted, self._accepted_ends)
            await self._read_rejections()
            settlings = [s for s in map(read_settling, rows) if s is not None]
            await self._apply(rows, moved, settlings=settlings)
        while self._left(self._audit_ends):
            messages, moved = await self._read(self._audit, self._audit_ends)
            await self._apply(messages, moved, replayed=self._replayed(messages))

    async def close(self) -> None:
        for reader in self._assigned:
            await reader.close()

    async def _read_rejections(self) -> None:
        ends = [
            await self._broker.spans(stage, uncommitted=self.whole)
            for stage in reversed(self._stages)
        ]
        for spans in reversed(ends):
            stage = {p: span.end for p, span in spans.items()}
            while self._left(stage):
                messages, moved = await self._read(self._rejections, stage)
                await self._apply(messages, moved, rejections=self._numbered(messages))

    def _left(self, ends: Mapping[Partition, int]) -> list[Partition]:
        return [p for p, end in ends.items() if self._positions[p] < end]

    def _numbered(self, messages: Iterable[Message]) -> list[Numbered]:
        found = []
        for message in messages:
            partition = Partition(message.topic, message.partition)
            seen = read_rejection(message)
            if seen is None:
                self._unreadable(partition, message.offset)
            else:
                found.append(Numbered(partition, message.offset, seen))
        return found

    def _replayed(self, messages: Iterable[Message]) -> list[Replayed]:
        found = []
        for message in messages:
            audit = read_audit(message)
            if audit is None:
                self._unreadable(Partition(message.topic, message.partition), message.offset)
            else:
                topic, number, offset = audit.rejection.rsplit("/", 2)
                key = None if audit.key is None else key_digest(audit.entity, audit.key)
                where = Partition(topic, int(number))
                found.append(Replayed(key, where, int(offset), message.timestamp))
        return found

    async def _read(
        self, reader: Reader, ends: Mapping[Partition, int]
    ) -> tuple[list[Message], dict[Partition, int]]:
        """The next messages before these ends, and the positions behind them.

        Raises DamagedLog, and BrokerUnavailable after 40 s without any.
        """
        clock = asyncio.get_running_loop().time
        began = clock()
        open_ = {p: ends[p] for p in self._left(ends)}
        rest = [p for p in self._positions if p not in open_]
        while True:
            messages = await reader.read(_BATCH, _STEP_SECONDS, rest)
            moved = {p: min(reader.position(p), end) for p, end in open_.items()}
            if any(at > self._positions[p] for p, at in moved.items()):
                break
            for partition, line in reader.damaged().items():
                if partition in open_:
                    raise DamagedLog(line)
            if clock() - began >= _PATIENCE:
                topic, number = next(iter(open_))
                raise BrokerUnavailable(
                    f"reading {topic}/{number} makes no progress: nothing has come for"
                    f" {_PATIENCE:.0f} s; a transaction may be open there, see input_blocked in"
                    " docs/operations/troubleshooting.md"
                )
        if any(reader.position(p) > end for p, end in open_.items()):
            # What lies behind the ends belongs to a later stage: read it again then.
            reader.assign({p: moved.get(p, self._positions[p]) for p in self._assigned[reader]})
            messages = [m for m in messages if m.offset < moved[Partition(m.topic, m.partition)]]
        return messages, moved

    async def _apply(
        self,
        messages: Sequence[Message],
        moved: Mapping[Partition, int],
        *,
        rejections: Sequence[Numbered] = (),
        settlings: Sequence[Settling] = (),
        replayed: Sequence[Replayed] = (),
    ) -> None:
        tails = extended(self._tails, self._positions, messages, moved)
        await asyncio.to_thread(
            self._store.apply, rejections, settlings, moved, self._identities, tails, replayed
        )
        self._done += sum(at - self._positions[p] for p, at in moved.items())
        self._positions |= moved
        self._tails |= tails
        self._advance(min(self._done, self._total), self._total)
