"""Reads rejections, accepted rows and audits into the desk's store, once, up to their ends.

Three orders make the store exact, whichever process wrote what:

* *Cause before consequence.* Rejections are read in stages: users, matches, the rest. The ends of
  the later stages are noted first. So whatever a read rejection refers to has been read before it.
* *Rejection before settling.* The ends of the rejections are noted after a batch of accepted rows
  has been read, and the rejections up to them are applied first. So a row settles every earlier
  rejection of its key.
* *Rejection before replay.* The end of the audit is noted before those of the rejections, and the
  audit is read last.

A damaged partition holds up no other one. What it holds may be read late, then: rows and audits
that come late lead to the same store, but rejections do not. So the store notes the damage first,
and is rebuilt (`RejectionsLateError`) once there are rejections behind it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from schemas import ENTITIES
from worker.brokers.contract import Broker, Reader
from worker.brokers.sound import sound_spans
from worker.desk.audit import read_audit
from worker.desk.seen import STAGES, Settling, key_digest, read_rejection, read_settling, time_of
from worker.desk.store import Numbered, RejectionStore, Replayed
from worker.errors import BrokerUnavailable
from worker.index.freshness import SavedIndex, removed_unread
from worker.index.tails import Tail, extended
from worker.stream import Message, OffsetRange, Partition
from worker.waiting import wait

Advance = Callable[[int, int], None]
"""Called with progress: offsets read, offsets in all."""
Unreadable = Callable[[Partition, int], None]
"""Called for each message that is no rejection, or no audit of a replay; it is skipped."""
Removed = Callable[[Partition, int], None]
"""Called with the number of offsets of a partition that were removed before they were read."""

_BATCH: Final = 5_000
_STEP_SECONDS: Final = 0.25
_PATIENCE: Final = 40.0
"""Longer than a broker keeps the transaction of a replay that was killed."""


class Stopped(Exception):
    """The service is to end. What was read until then is in the store."""


class RejectionsLateError(Exception):
    """Rejections can be read behind damage, after what may have settled them: see above."""


class ReadOptions(NamedTuple):
    """How a pass reads."""

    unreadable: Unreadable
    removed: Removed
    advance: Advance
    whole: bool = False
    """Whether open transactions are waited for."""
    share: float = 1.0
    """The part of the time in which it works; else it leaves the processor to others."""
    stop: asyncio.Event | None = None
    """Ends the pass with `Stopped`."""


class Readers:
    """A reader for each kind of topic, used again from pass to pass."""

    def __init__(self, broker: Broker) -> None:
        self.broker = broker
        self.rejections = broker.reader()
        self.accepted = broker.reader()
        self.audits = broker.reader()

    async def close(self) -> None:
        """Close all of them."""
        for reader in (self.rejections, self.accepted, self.audits):
            await reader.close()


class CatchUp:
    """One reading of all three kinds of topics, up to their ends."""

    def __init__(
        self,
        readers: Readers,
        store: RejectionStore,
        identities: Mapping[str, str],
        saved: SavedIndex,
        spans: Mapping[Partition, OffsetRange],
        options: ReadOptions,
    ) -> None:
        self.damaged: dict[Partition, str] = {}
        """The partitions that damage holds up, with a line about each."""
        self._noted: dict[Partition, str] = {}
        """Damage of now and of before that the store knows of."""
        self._options = options
        self._stop = options.stop or asyncio.Event()
        self._began = asyncio.get_running_loop().time()
        self._broker = readers.broker
        self._store = store
        self._identities = identities
        self._positions = {
            p: max(span.start, saved.positions.get(p, span.start)) for p, span in spans.items()
        }
        self._removed = removed_unread(saved, identities, spans)
        self._began_empty = not saved.positions
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
        self._readers = readers
        self._assigned = {
            readers.rejections: [p for stage in self._stages for p in stage],
            readers.accepted: list(self._accepted_ends),
            readers.audits: list(self._audit_ends),
        }
        for reader, assigned in self._assigned.items():
            reader.assign({p: self._positions[p] for p in assigned})

    async def run(self) -> None:
        """Read everything, but for what is behind damage.

        Raises BrokerUnavailable, StateError, Stopped, RejectionsLateError.
        """
        self._noted = await asyncio.to_thread(self._store.damage)
        if self._is_new:
            # Every partition has a position from here on, whether it holds messages or not.
            await self._apply([], self._positions)
        for partition, count in self._removed.items():
            self._options.removed(partition, count)
        await self._read_rejections()
        while self._more(self._accepted_ends):
            rows, moved = await self._read(self._readers.accepted, self._accepted_ends)
            await self._read_rejections()
            settlings = [s for s in map(read_settling, rows) if s is not None]
            await self._apply(rows, moved, settlings=settlings)
        while self._more(self._audit_ends):
            messages, moved = await self._read(self._readers.audits, self._audit_ends)
            await self._apply(messages, moved, replayed=self._replayed(messages))

    async def _read_rejections(self) -> None:
        ends = [
            await sound_spans(self._broker, stage, uncommitted=self._options.whole)
            for stage in reversed(self._stages)
        ]
        for spans in reversed(ends):
            stage = {p: span.end for p, span in spans.items()}
            while self._more(stage):
                messages, moved = await self._read(self._readers.rejections, stage)
                await self._apply(messages, moved, rejections=self._numbered(messages))

    def _left(self, ends: Mapping[Partition, int]) -> list[Partition]:
        return [p for p, end in ends.items() if self._positions[p] < end]

    def _more(self, ends: Mapping[Partition, int]) -> bool:
        return any(p not in self.damaged for p in self._left(ends))

    def _numbered(self, messages: Iterable[Message]) -> list[Numbered]:
        found = []
        for message in messages:
            partition = Partition(message.topic, message.partition)
            seen = read_rejection(message)
            if seen is None:
                self._options.unreadable(partition, message.offset)
            else:
                found.append(Numbered(partition, message.offset, seen))
        return found

    def _replayed(self, messages: Iterable[Message]) -> list[Replayed]:
        found = []
        for message in messages:
            audit = read_audit(message)
            if audit is None:
                self._options.unreadable(
                    Partition(message.topic, message.partition), message.offset
                )
            else:
                topic, number, offset = audit.rejection.rsplit("/", 2)
                key = None if audit.key is None else key_digest(audit.entity, audit.key)
                where = Partition(topic, int(number))
                found.append(Replayed(key, where, int(offset), time_of(message)))
        return found

    async def _read(
        self, reader: Reader, ends: Mapping[Partition, int]
    ) -> tuple[list[Message], dict[Partition, int]]:
        """The next messages before these ends, and the positions behind them.

        None if damage hides them. Raises Stopped, RejectionsLateError, and BrokerUnavailable after
        40 s without any.
        """
        clock = asyncio.get_running_loop().time
        await self._leave_time(clock() - self._began)
        self._began = began = clock()
        open_ = {p: ends[p] for p in self._left(ends)}
        rest = [p for p in self._positions if p not in open_]
        while True:
            if self._stop.is_set():
                raise Stopped
            messages = await reader.read(_BATCH, _STEP_SECONDS, rest)
            moved = {p: min(reader.position(p), end) for p, end in open_.items()}
            came = [p for p, at in moved.items() if at > self._positions[p]]
            for p, count in reader.expired().items():
                # A new store has lost nothing. What lies behind the end counts later.
                if p in came and not self._began_empty:
                    self._options.removed(p, min(count, moved[p] - self._positions[p]))
            await self._look_for_damage(reader, open_, came)
            if came or not self._more(open_):
                break
            if clock() - began >= _PATIENCE:
                topic, number = next(p for p in open_ if p not in self.damaged)
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

    async def _look_for_damage(
        self, reader: Reader, open_: Mapping[Partition, int], came: Sequence[Partition]
    ) -> None:
        """Note new damage of the open partitions, and its end. Raises RejectionsLateError."""
        for topic, number in self._noted.keys() & set(came):
            if reader is self._readers.rejections:
                raise RejectionsLateError(
                    f"partition {number} of topic {topic} is no longer held up by damage: what"
                    " settled its later rejections may have been read before them"
                )
            self._store.is_live = False
        found = {p: line for p, line in reader.damaged().items() if p in open_}
        self.damaged = {p: line for p, line in self.damaged.items() if p not in open_} | found
        if not found.keys() <= self._noted.keys():
            self._noted = {**self._noted, **found}
            await asyncio.to_thread(self._store.note_damage, self._noted)

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
        self._options.advance(min(self._done, self._total), self._total)

    async def _leave_time(self, worked: float) -> None:
        if self._options.share < 1.0:
            await wait(self._stop, worked * (1 / self._options.share - 1))
