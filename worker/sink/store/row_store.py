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
from typing import Final, cast
from uuid import uuid4

import msgspec
import structlog
from rocksdict import Rdict, WriteBatch

from schemas import ENTITIES
from worker.accepted import Refused, Split, count_partitions, source_partition
from worker.core.keys import id_bytes
from worker.core.topics import Names
from worker.errors import StateError, StateLost
from worker.index.freshness import Saved
from worker.index.tails import Tail, extended
from worker.sink.store import positions as places
from worker.sink.store import rocks
from worker.sink.store.batch import Batch, SetAside
from worker.sink.store.rows import Referring
from worker.sink.store.snapshot import BOOKMARK, ID, SNAPSHOTS, STAMP, Snapshot
from worker.stream import Message, Partition

FORMAT: Final = 2

_STAMP_KEY: Final = b"mformat"
_STATE_KEY: Final = b"mstate"
_LOST_KEY: Final = b"mlost"
_TOPICS_KEY: Final = b"mtopics"
_ASIDE: Final = b"xp"

_log = structlog.get_logger(__name__)


class Applied(msgspec.Struct, frozen=True):
    """The effect of a batch. `repeats` changed nothing; `skipped` had been applied before."""

    changed: int = 0
    deleted: int = 0
    repeats: int = 0
    skipped: int = 0
    refused: tuple[Refused, ...] = ()
    """The foreign messages, which were set aside."""
    split: tuple[Split, ...] = ()
    """The versions of a key from another input partition than the version before."""


class _Stamp(msgspec.Struct, frozen=True):
    """What the store was made for. With other `columns`, rows set aside may be readable now."""

    format: int
    prefix: str
    entities: tuple[str, ...]
    columns: tuple[tuple[str, ...], ...]


class _State(msgspec.Struct, frozen=True):
    """Counts of rows, and the time (ms) until which the store is known to be complete.

    `identities` are those of the topics that the positions belong to.
    """

    rows: dict[str, int]
    foreign: dict[str, int]
    last_current: int | None = None
    identities: dict[str, str] = {}


class Lost(msgspec.Struct, frozen=True):
    """The bookmarks that rebuilds of the store took away, and the reason for the last rebuild.

    `names` is None if they could not be read.
    """

    reason: str
    names: tuple[str, ...] | None


class RowStore:
    """The rows of all entities in one directory. Thread-safe; its calls block."""

    def __init__(self, directory: Path, names: Names) -> None:
        """Open or create the store. Raises `StateError`."""
        self.directory = directory
        self.rebuilt: str | None = None
        """Why this process last rebuilt the store; None if it never did."""
        self.lost: Lost | None = None
        """The bookmarks that rebuilds took away, in this process or before."""
        self.wiped = 0
        """How often the store was wiped since the opening, the opening itself included."""
        self.damaged: str | None = None
        """One line about damage that was found; the store must then be wiped."""
        self._kinds = {names.accepted(e.name): Referring(e) for e in ENTITIES.values()}
        self._tags = {names.accepted(name): i.to_bytes() for i, name in enumerate(ENTITIES)}
        self._stamp = _Stamp(
            FORMAT,
            names.prefix,
            tuple(ENTITIES),
            tuple(tuple(c.name for c in entity.columns) for entity in ENTITIES.values()),
        )
        self._lock = threading.RLock()
        self._snapshots: weakref.WeakSet[Snapshot] = weakref.WeakSet()
        self._positions: dict[Partition, int] = {}
        self._tails: dict[Partition, Tail] = {}
        self._state = _State({}, {})
        self.topics: Mapping[str, str] = {}
        """The last seen identities of the sink's topics other than the accepted ones."""
        self._db: Rdict | None = self._open()

    # --- What it holds ------------------------------------------------------------------------

    @property
    def last_current(self) -> int | None:
        """Until when (ms) the store is known to hold all accepted rows; None if never."""
        return self._state.last_current

    def saved(self) -> Saved:
        """The saved state that `freshness.reason_to_rebuild` judges."""
        with self._lock:
            held = {p: o for p, o in self._positions.items() if p.topic in self._kinds}
            tails = {place: tail for place, tail in self._tails.items() if place in held}
            return Saved(FORMAT, self._state.last_current, held, self._state.identities, tails)

    def positions(self) -> dict[Partition, int]:
        """The next offset of each partition."""
        with self._lock:
            return dict(self._positions)

    def counts(self) -> dict[str, int]:
        """The number of rows of each entity."""
        with self._lock:
            return {name: self._state.rows.get(name, 0) for name in ENTITIES}

    def foreign(self) -> dict[str, int]:
        """The number of messages set aside, by entity; entities without any are omitted."""
        with self._lock:
            return dict(self._state.foreign)

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
        room = self.directory / SNAPSHOTS / uuid4().hex
        rocks.make_directory(room.parent)
        with self._lock, self._guard():
            positions = {p: o for p, o in self._positions.items() if p.topic in self._kinds}
            frozen = rocks.freeze(self._opened(), room)
            counts = self.counts()
            taken = Snapshot(self.directory, frozen, room, positions, counts, self._note_damage)
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
            work = Batch(self._kinds, self._tags, self._positions)
            work.read(messages, count_partitions(positions))
            for place, offset in positions.items():
                work.next[place] = max(offset, work.next.get(place, 0))
            batch = WriteBatch(raw_mode=True)
            rows = self._stage(batch, work)
            work.tails = extended(self._tails, self._positions, messages, positions)
            return self._write(batch, work, rows, dict(identities or self._state.identities))

    def stamp_current(self, moment: int) -> None:
        """Record that the store holds every row that was accepted by `moment` (ms)."""
        with self._lock:
            state = msgspec.structs.replace(self._state, last_current=moment)
            with self._guard():
                self._opened()[_STATE_KEY] = msgspec.msgpack.encode(state)
            self._state = state

    def note_topics(self, identities: Mapping[str, str]) -> None:
        """Save the identities of the sink's other topics. Raises `StateError`."""
        with self._lock:
            topics = {**self.topics, **identities}
            if topics != self.topics:
                with self._guard():
                    self._opened()[_TOPICS_KEY] = msgspec.msgpack.encode(topics)
                self.topics = topics

    def wipe(self, reason: str) -> None:
        """Empty the store, to be filled again from the topics. Open snapshots stay valid."""
        with self._lock:
            db, self._db = self._opened(), None
            self._db = self._open_anew(db, reason)
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

    def _open(self, *, emptied: bool = False) -> Rdict:
        directory = self.directory / "rows"
        rocks.make_directory(self.directory)
        rocks.make_directory(directory)
        is_new = not (directory / "CURRENT").exists()
        db: Rdict | None = None
        try:
            db = rocks.open_database(directory)
            with rocks.guard(self.directory):
                reason = self._restore(db, is_new=is_new)
        except StateLost as error:
            if emptied:
                raise StateError(f"{error}, but that does not help: look at its disk") from None
            return self._open_anew(db, str(error))
        return db if reason is None else self._open_anew(db, reason)

    def _restore(self, db: Rdict, *, is_new: bool) -> str | None:
        """Load the state of the database; return why it cannot be used, or None."""
        if is_new:
            self._begin(db)
            return None
        held, raw = db.get(_STAMP_KEY), db.get(_STATE_KEY)
        replace = msgspec.structs.replace
        try:
            stamp = msgspec.msgpack.decode(held or b"", type=_Stamp)
            if replace(stamp, columns=()) != replace(self._stamp, columns=()):
                return "its format, topic prefix or entities are others"
            self._state = msgspec.msgpack.decode(raw or b"", type=_State)
            self.lost = msgspec.msgpack.decode(db.get(_LOST_KEY) or b"\xc0", type=Lost | None)
            topics = msgspec.msgpack.decode(db.get(_TOPICS_KEY) or b"\x80", type=dict[str, str])
        except msgspec.MsgspecError:
            return "it is damaged (what it says of itself cannot be read)"
        if stamp.columns != self._stamp.columns:
            if self._state.foreign:
                return "columns changed and rows had been set aside"
            db[_STAMP_KEY] = msgspec.msgpack.encode(self._stamp)
        self.topics = topics
        try:
            self._positions, self._tails = places.load(db)
        except ValueError as error:
            return f"it is damaged ({error})"
        return None

    def _begin(self, db: Rdict) -> None:
        """Begin with an empty store."""
        self._state = _State({}, {})
        self._positions, self._tails = {}, {}
        first = WriteBatch(raw_mode=True)
        first[_STAMP_KEY] = msgspec.msgpack.encode(self._stamp)
        first[_STATE_KEY] = msgspec.msgpack.encode(self._state)
        if self.lost is not None:
            first[_LOST_KEY] = msgspec.msgpack.encode(self.lost)
        first[_TOPICS_KEY] = msgspec.msgpack.encode(self.topics)
        db.write(first)

    def _open_anew(self, db: Rdict | None, reason: str) -> Rdict:
        """Replace the database with an empty one, and remember the bookmarks that it had."""
        names = None if db is None else _bookmarks(db, self.lost)
        if db is not None:
            rocks.close(db)
        _log.warning("sink_store_rebuilt", reason=reason)
        rocks.destroy(self.directory / "rows")
        self.rebuilt = reason
        self.wiped += 1
        self.lost = Lost(reason, names)
        return self._open(emptied=True)

    def _stage(self, batch: WriteBatch, work: Batch) -> dict[str, int]:
        """Add the real changes to the batch; return by entity the change in the number of rows."""
        rows: dict[str, int] = {}
        if not work.latest:
            return rows
        with self._guard():
            before = self._opened().get(list(work.latest)) or []
        for (key, (message, users, kind)), held in zip(work.latest.items(), before, strict=True):
            value = message.value
            name = kind.entity.name
            if value is None:
                if held is None:
                    work.repeats += 1
                    continue
                work.compare(STAMP.unpack_from(held)[0], message)
                del batch[key]
                work.deleted += 1
                rows[name] = rows.get(name, 0) - 1
            else:
                if held is not None and held[STAMP.size :] == value:
                    work.repeats += 1
                    continue
                if held is not None:
                    work.compare(STAMP.unpack_from(held)[0], message)
                stamp = STAMP.pack(source_partition(message), message.offset, message.timestamp)
                batch[key] = stamp + value
                work.changed += 1
                if held is None:
                    rows[name] = rows.get(name, 0) + 1
            if kind.referred and (held is None or value is None or users):
                id_key = ID + key[1:2] + id_bytes(key[2:].decode())
                if value is None:
                    del batch[id_key]
                else:
                    batch[id_key] = users
        return rows

    def _write(
        self, batch: WriteBatch, work: Batch, rows: dict[str, int], identities: dict[str, str]
    ) -> Applied:
        moved = {p: o for p, o in work.next.items() if o > self._positions.get(p, -1)}
        if moved or work.tails or not batch.is_empty():
            places.stage(batch, moved, work.tails)
            foreign = dict(self._state.foreign)
            for aside in work.aside():
                place = places.place_key(Partition(aside.topic, aside.partition))
                key = _ASIDE + place + places.OFFSET.pack(aside.offset)
                batch[key] = msgspec.msgpack.encode(aside)
                name = self._kinds[aside.topic].entity.name
                foreign[name] = foreign.get(name, 0) + 1
            counts = dict(self._state.rows)
            for name, change in rows.items():
                counts[name] = counts.get(name, 0) + change
            state = _State(counts, foreign, self._state.last_current, identities)
            batch[_STATE_KEY] = msgspec.msgpack.encode(state)
            with self._guard():
                self._opened().write(batch)
            self._positions.update(moved)
            self._tails |= work.tails
            self._state = state
        refused = tuple(work.refused)
        done = (work.changed, work.deleted, work.repeats, work.skipped)
        return Applied(*done, refused, tuple(work.split.values()))


def _bookmarks(db: Rdict, lost: Lost | None) -> tuple[str, ...] | None:
    """Names of the bookmarks in a database, and of those lost before; None if unreadable."""
    if lost is not None and lost.names is None:
        return None
    try:
        found = [
            cast("bytes", key)[1:].decode()
            for key in db.keys(from_key=BOOKMARK, read_opt=rocks.until(rocks.after(BOOKMARK)))
        ]
    except Exception:  # noqa: BLE001 -- rocksdict raises nothing more precise
        return None
    return tuple(sorted({*found, *(lost.names or () if lost is not None else ())}))
