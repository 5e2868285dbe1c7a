"""The sink's store: the latest row of each key, and the positions in the accepted topics.

It uses RocksDB, whose measured cost stays flat as the store grows (docs/performance.md). Promises:

* Rows, positions and the last messages read (`Tail`) change together in one atomic batch. After a
  kill -9 the store is as it was after some batch. Reading on from there gives the same rows.
* A message counts once, in the order of its partition. Messages below the stored position are
  skipped.
* An identical repeat changes nothing: the row keeps the coordinates of its first acceptance.
* A foreign message (`worker.accepted`) is set aside under its coordinates and counted.
* One process at a time; a second one gets `StateError`.

Batches are not flushed to disk individually: the sink reads again what a power cut takes. The
topics can rebuild everything here. So a store that is damaged or has another format is wiped, with
one log line (`sink_store_rebuilt`).
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import msgspec
from rocksdict import Rdict, WriteBatch

from schemas import ENTITIES
from worker.accepted import ForeignMessage, Split, count_partitions, source_partition
from worker.brokers.partitioner import partitions_for
from worker.core.keys import id_bytes
from worker.core.topics import Names
from worker.errors import StateError, StateLost
from worker.index.freshness import SavedIndex
from worker.index.tails import extended
from worker.sink.store import positions as saved_positions
from worker.sink.store import rocks
from worker.sink.store.batch import RowChanges, SetAside
from worker.sink.store.opening import (
    FORMAT,
    STATE_KEY,
    TOMBSTONES_KEY,
    TOPICS_KEY,
    Lost,
    StoreState,
    made_for_names,
    open_database,
    replace_database,
)
from worker.sink.store.rows import Referring
from worker.sink.store.snapshot import ID, ROW, ROW_HEADER, SNAPSHOTS, Snapshot
from worker.stream import Message, Partition

_ASIDE: Final = b"xp"


class Applied(msgspec.Struct, frozen=True):
    """The effect of a batch. `repeats` changed nothing; `skipped` had been applied before."""

    changed: int = 0
    deleted: int = 0
    repeats: int = 0
    skipped: int = 0
    refused: tuple[ForeignMessage, ...] = ()
    """The foreign messages, which were set aside."""
    split: tuple[Split, ...] = ()
    """The versions of a key from another input partition than the version before."""
    hiding: tuple[ForeignMessage, ...] = ()
    """The foreign messages that follow a row of their key: compaction will remove the row."""


class RowStore:
    """The rows of all entities in one directory. Thread-safe; its calls block."""

    def __init__(self, directory: Path, names: Names) -> None:
        """Open or create the store. Raises `StateError`."""
        self.directory = directory
        self.damaged: str | None = None
        """One line about damage that was found; the store must then be wiped."""
        self._referring = {names.accepted(e.name): Referring(e) for e in ENTITIES.values()}
        self._tags = {names.accepted(name): i.to_bytes() for i, name in enumerate(ENTITIES)}
        self._made_for = made_for_names(names)
        self._lock = threading.RLock()
        self._snapshots: weakref.WeakSet[Snapshot] = weakref.WeakSet()
        opened = open_database(directory, self._made_for)
        self._db: Rdict | None = opened.db
        self.rebuilt = opened.rebuilt
        """Why this process last rebuilt the store; None if it never did."""
        self.times_wiped = int(opened.rebuilt is not None)
        """How often the store was wiped since the opening, the opening itself included."""
        self._content = opened.content

    # --- What it holds ------------------------------------------------------------------------

    @property
    def topics(self) -> Mapping[str, str]:
        """The last seen identities of the sink's topics other than the accepted ones."""
        return self._content.topics

    @property
    def lost(self) -> Lost | None:
        """The bookmarks that rebuilds took away, in this process or before."""
        return self._content.lost

    @property
    def last_current(self) -> int | None:
        """Until when (ms) the store is known to hold all accepted rows; None if never."""
        return self._content.state.last_current

    def saved(self) -> SavedIndex:
        """The saved state that `freshness.reason_to_rebuild` judges."""
        with self._lock:
            held = {p: o for p, o in self._content.positions.items() if p.topic in self._referring}
            tails = {
                partition: tail
                for partition, tail in self._content.tails.items()
                if partition in held
            }
            return SavedIndex(
                FORMAT,
                self._content.state.last_current,
                held,
                self._content.state.identities,
                tails,
                tombstones=self._content.tombstones,
            )

    def positions(self) -> dict[Partition, int]:
        """The next offset of each partition."""
        with self._lock:
            return dict(self._content.positions)

    def counts(self) -> dict[str, int]:
        """The number of rows of each entity."""
        with self._lock:
            return {name: self._content.state.rows.get(name, 0) for name in ENTITIES}

    def foreign(self) -> dict[str, int]:
        """The number of messages set aside, by entity; entities without any are omitted."""
        with self._lock:
            return dict(self._content.state.foreign)

    def set_aside(self, limit: int = 100) -> list[SetAside]:
        """The first `limit` messages set aside, in order of topic, partition and offset."""
        found: list[SetAside] = []
        with self._lock, self._guard():
            for value in self._opened().values(
                from_key=_ASIDE, read_opt=rocks.until(rocks.after(_ASIDE))
            ):
                if len(found) == limit:
                    break
                found.append(msgspec.msgpack.decode(value, type=SetAside))
        return found

    def snapshot(self) -> Snapshot:
        """The store as it is between two batches, without later ones; close it after use."""
        directory = self.directory / SNAPSHOTS / uuid4().hex
        rocks.make_room(directory.parent)
        with self._lock, self._guard():
            positions = {
                p: o for p, o in self._content.positions.items() if p.topic in self._referring
            }
            frozen = rocks.freeze(self._opened(), directory)
            counts = self.counts()
            taken = Snapshot(
                self.directory, frozen, directory, positions, counts, self._note_damage
            )
            self._snapshots.add(taken)
            return taken

    @contextmanager
    def database(self) -> Iterator[Rdict]:
        """The database itself, for the other data in it (`bookmarks`); locked within the block.

        Raises `StateError`, also for any RocksDB error within the block.
        """
        with self._lock, self._guard():
            yield self._opened()

    # --- What changes it ----------------------------------------------------------------------

    def apply(
        self,
        messages: Sequence[Message],
        positions: Mapping[Partition, int],
        identities: Mapping[str, str] | None = None,
    ) -> Applied:
        """Apply accepted messages and advance to `positions`, all or nothing.

        `positions` are the reader's, of all partitions, past gaps; no partition ever moves back.
        `identities` are those of their topics. Raises `StateError`, and has then changed nothing.
        """
        with self._lock:
            changes = RowChanges(self._referring, self._tags, self._content.positions)
            changes.read(messages, count_partitions(positions))
            for partition, offset in positions.items():
                changes.next[partition] = max(offset, changes.next.get(partition, 0))
            batch = WriteBatch(raw_mode=True)
            rows = self._add_changes(batch, changes)
            changes.tails = extended(
                self._content.tails, self._content.positions, messages, positions
            )
            applied = self._write(
                batch, changes, rows, dict(identities or self._content.state.identities)
            )
            if not applied.refused:
                return applied
            hiding = self._hiding(applied.refused, count_partitions(positions))
            return msgspec.structs.replace(applied, hiding=hiding)

    def mark_current(self, moment: int) -> None:
        """Record that the store holds every row that was accepted by `moment` (ms)."""
        with self._lock:
            state = msgspec.structs.replace(self._content.state, last_current=moment)
            with self._guard():
                self._opened()[STATE_KEY] = msgspec.msgpack.encode(state)
            self._content = self._content._replace(state=state)

    def note_topics(self, identities: Mapping[str, str]) -> None:
        """Save the identities of the sink's other topics. Raises `StateError`."""
        with self._lock:
            topics = {**self.topics, **identities}
            if topics != self.topics:
                with self._guard():
                    self._opened()[TOPICS_KEY] = msgspec.msgpack.encode(topics)
                self._content = self._content._replace(topics=topics)

    def note_tombstones(self, tombstones: Mapping[Partition, int]) -> None:
        """Save `SavedIndex.tombstones`, once the store is found to be complete, or is empty.

        Raises `StateError`.
        """
        with self._lock:
            if tombstones != self._content.tombstones:
                with self._guard():
                    self._opened()[TOMBSTONES_KEY] = msgspec.msgpack.encode(
                        [(*partition, to) for partition, to in tombstones.items()]
                    )
                self._content = self._content._replace(tombstones=tombstones)

    def wipe(self, reason: str) -> None:
        """Empty the store, to be filled again from the topics. Open snapshots stay valid."""
        with self._lock:
            db, self._db = self._opened(), None
            opened = replace_database(self.directory, self._made_for, db, reason, self._content)
            self._db = opened.db
            self.rebuilt = reason
            self.times_wiped += 1
            self._content = opened.content
            self.damaged = None

    def close(self) -> None:
        """Release the directory and close open snapshots; closing twice is harmless."""
        with self._lock:
            self._close_snapshots()
            if self._db is not None:
                db, self._db = self._db, None
                rocks.close(db)

    # --- How ----------------------------------------------------------------------------------

    def _close_snapshots(self) -> None:
        for snapshot in list(self._snapshots):
            snapshot.close()

    def _opened(self) -> Rdict:
        if self._db is None:
            raise StateError(f"the store in {self.directory} is closed")
        return self._db

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            with rocks.guard(self.directory):
                yield
        except StateLost as error:
            self._note_damage(str(error))
            raise

    def _note_damage(self, what: str) -> None:
        self.damaged = what

    def _add_changes(self, batch: WriteBatch, changes: RowChanges) -> dict[str, int]:
        """Add the real changes to the batch; return by entity the change in the number of rows."""
        added: dict[str, int] = {}
        if not changes.latest:
            return added
        with self._guard():
            stored = self._opened().get(list(changes.latest)) or []
        for (key, (message, users, kind)), before in zip(
            changes.latest.items(), stored, strict=True
        ):
            value, name = message.value, kind.entity.name
            if value == (None if before is None else before[ROW_HEADER.size :]):
                changes.repeats += 1
                continue
            if before is not None:
                changes.compare(ROW_HEADER.unpack_from(before)[0], message)
            id_key = ID + key[1:2] + id_bytes(key[2:].decode()) if kind.referred else None
            if value is None:
                del batch[key]
                if id_key is not None:
                    del batch[id_key]
                changes.deleted += 1
                added[name] = added.get(name, 0) - 1
                continue
            at = ROW_HEADER.pack(source_partition(message), message.offset, message.timestamp)
            batch[key] = at + value
            if id_key is not None and (before is None or users):
                batch[id_key] = users
            changes.changed += 1
            if before is None:
                added[name] = added.get(name, 0) + 1
        return added

    def _hiding(
        self, refused: Sequence[ForeignMessage], partitions: Mapping[str, int]
    ) -> tuple[ForeignMessage, ...]:
        """Those messages that lie behind a row of their key, in its partition."""
        keys = [one.message.key or b"" for one in refused]
        topics = [one.message.topic for one in refused]
        tagged: list[Any] = [
            ROW + self._tags[topic] + key for topic, key in zip(topics, keys, strict=True)
        ]
        with self._guard():
            rows = self._opened().get(tagged) or []
        found = []
        for one, key, row in zip(refused, keys, rows, strict=True):
            behind = row and ROW_HEADER.unpack_from(row)[1] < one.message.offset
            home = partitions_for([key], max(1, partitions.get(one.message.topic, 1)))
            if behind and home == [one.message.partition]:
                found.append(one)
        return tuple(found)

    def _write(
        self,
        batch: WriteBatch,
        changes: RowChanges,
        rows: dict[str, int],
        identities: dict[str, str],
    ) -> Applied:
        moved = {p: o for p, o in changes.next.items() if o > self._content.positions.get(p, -1)}
        if moved or changes.tails or not batch.is_empty():
            saved_positions.stage(batch, moved, changes.tails)
            foreign = dict(self._content.state.foreign)
            for aside in changes.aside():
                partition = saved_positions.partition_key(Partition(aside.topic, aside.partition))
                key = _ASIDE + partition + saved_positions.OFFSET.pack(aside.offset)
                batch[key] = msgspec.msgpack.encode(aside)
                name = self._referring[aside.topic].entity.name
                foreign[name] = foreign.get(name, 0) + 1
            counts = dict(self._content.state.rows)
            for name, change in rows.items():
                counts[name] = counts.get(name, 0) + change
            state = StoreState(counts, foreign, self._content.state.last_current, identities)
            batch[STATE_KEY] = msgspec.msgpack.encode(state)
            with self._guard():
                self._opened().write(batch)
            self._content.positions.update(moved)
            self._content.tails.update(changes.tails)
            self._content = self._content._replace(state=state)
        refused = tuple(changes.refused)
        done = (changes.changed, changes.deleted, changes.repeats, changes.skipped)
        return Applied(*done, refused, tuple(changes.split.values()))
