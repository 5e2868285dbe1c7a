"""The desk's store: where each rejection lies, what became of it, and counts by time.

SQLite, in a directory of its own. Promises:

* Rejections, counts and positions change together in one transaction. After a kill -9 the store is
  as it was after some call of `apply`, and reading on from its positions gives the same store.
* A rejection counts once: messages below the stored position are skipped.
* The bytes of records stay in the topics. The store has coordinates, codes, fields, and digests of
  keys.
* One process at a time; a second one gets `StateError`.

A power cut may take the last transactions: they are read again. The topics can rebuild everything
here, so a store that cannot be used is emptied, with one log line (`desk_rebuilt`).
"""

from __future__ import annotations

import errno
import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

import structlog

from worker.core.topics import Names
from worker.core.unknown import MOST_NAMED
from worker.desk.buckets import WIDTHS_MS
from worker.desk.seen import RejectionSeen, Settling, key_digest
from worker.errors import StateError
from worker.index.directory import StateDirectory
from worker.index.freshness import SavedIndex
from worker.index.tails import Tail
from worker.stream import Partition

VERSION: Final = 1
"""Version of the tables below; any other version on disk is rebuilt."""
FILE_NAME: Final = "rejections.sqlite"
OPEN, ACCEPTED, DELETED = range(3)
"""What became of a rejection: nothing yet, or its key was accepted or deleted since."""
STATES: Final = ("open", "accepted", "deleted")

_MOST_PRODUCERS: Final = 1_000
_MOST_KINDS: Final = 100_000
"""Senders choose both, so their number is bounded: what comes later is counted as `OTHERS`."""
OTHERS: Final = "(others)"
MOST_REJECTIONS: Final = 20_000_000
"""Some 2 GB. Topics keep rejections for 30 days; this holds where one keeps them for longer."""
_AT_ONCE: Final = 500
"""Number of keys in one query."""
_REMOVED_AT_ONCE: Final = 20_000

_TABLES: Final = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY, topic TEXT NOT NULL, number INTEGER NOT NULL,
    start INTEGER NOT NULL DEFAULT 0, position INTEGER NOT NULL, tail BLOB,
    UNIQUE (topic, number));
CREATE TABLE topics (topic TEXT PRIMARY KEY, identity TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE kinds (
    id INTEGER PRIMARY KEY, entity TEXT NOT NULL, violations TEXT NOT NULL,
    UNIQUE (entity, violations));
CREATE TABLE producers (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE unknown_fields (
    entity TEXT NOT NULL, name TEXT NOT NULL, records INTEGER NOT NULL,
    PRIMARY KEY (entity, name));
CREATE TABLE rejections (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, key INTEGER, kinds INTEGER NOT NULL,
    topic_partition INTEGER NOT NULL, "offset" INTEGER NOT NULL,
    source_partition INTEGER NOT NULL, source_offset INTEGER NOT NULL, producer INTEGER NOT NULL,
    state INTEGER NOT NULL, cause INTEGER, cause_kinds INTEGER NOT NULL);
CREATE INDEX rejections_by_key ON rejections (key) WHERE key IS NOT NULL;
CREATE TABLE counts (
    level INTEGER NOT NULL, bucket INTEGER NOT NULL, kinds INTEGER NOT NULL,
    source_partition INTEGER NOT NULL, producer INTEGER NOT NULL, cause_kinds INTEGER NOT NULL,
    records INTEGER NOT NULL, open INTEGER NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (level, bucket, kinds, source_partition, producer, cause_kinds)) WITHOUT ROWID;
"""
"""Rejections are numbered as they are read. `topic_partition` and `offset` are the coordinate of
the rejection, and the next two columns that of the record in the input of the entity. `cause` is
the rejection of what the record refers to, `cause_kinds` are the kinds of that rejection, or 0.
`first` and `last` are in seconds since the start of the bucket."""

_REJECTION: Final = "INSERT INTO rejections VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
_COUNT: Final = (
    "INSERT INTO counts VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
    " ON CONFLICT DO UPDATE SET records = records + excluded.records,"
    " open = open + excluded.open, first = min(first, excluded.first),"
    " last = max(last, excluded.last)"
)

_log = structlog.get_logger(__name__)


class Numbered(NamedTuple):
    """A rejection and its coordinate in a topic of rejections."""

    partition: Partition
    offset: int
    seen: RejectionSeen


class _Row(NamedTuple):
    id: int | None
    at: int
    key: int | None
    kinds: int
    topic_partition: int
    offset: int
    source_partition: int
    source_offset: int
    producer: int
    state: int
    cause: int | None
    cause_kinds: int


class RejectionStore:
    """The rejections of one prefix. Its calls block; one at a time, from any thread."""

    def __init__(self, directory: Path, names: Names) -> None:
        """Open or create the store. Raises `StateError`."""
        self.directory = directory
        self.names = names
        self._lock = StateDirectory(directory)
        self._lock.take()
        try:
            self._db = self._open()
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Release the directory."""
        self._db.close()
        self._lock.release()

    # --- what it holds ------------------------------------------------------------------------

    @property
    def database(self) -> sqlite3.Connection:
        """For `queries`, which only read."""
        return self._db

    def saved(self) -> SavedIndex:
        """Positions, identities and tails, for the rules of `worker.index.freshness`."""
        with self._guard():
            rows = self._db.execute("SELECT topic, number, position, tail FROM partitions")
            positions: dict[Partition, int] = {}
            tails: dict[Partition, Tail] = {}
            for topic, number, position, tail in rows:
                partition = Partition(topic, number)
                positions[partition] = position
                if tail is not None:
                    tails[partition] = Tail.decode(tail)
            identities = dict(self._db.execute("SELECT topic, identity FROM topics"))
        return SavedIndex(VERSION, None, positions, identities, tails)

    # --- what changes it ----------------------------------------------------------------------

    def apply(
        self,
        rejections: Sequence[Numbered],
        settlings: Sequence[Settling],
        positions: Mapping[Partition, int],
        identities: Mapping[str, str],
        tails: Mapping[Partition, Tail],
    ) -> None:
        """Add rejections, then settle those whose key was accepted or deleted since.

        What a record refers to comes before the record. `positions` has the next offset of every
        partition that is followed. All of it is written, or nothing. Raises `StateError`.
        """
        with self._guard(), self._transaction():
            for partition, position in positions.items():
                self._db.execute(
                    "INSERT INTO partitions (topic, number, position) VALUES (?, ?, ?)"
                    " ON CONFLICT DO UPDATE SET position = excluded.position",
                    (*partition, position),
                )
            for partition, tail in tails.items():
                self._db.execute(
                    "UPDATE partitions SET tail = ? WHERE topic = ? AND number = ?",
                    (tail.encode(), *partition),
                )
            self._db.executemany("INSERT OR REPLACE INTO topics VALUES (?, ?)", identities.items())
            self._add(rejections)
            self._settle(settlings)

    def expire(self, starts: Mapping[Partition, int], most: int = MOST_REJECTIONS) -> int:
        """Remove rejections that their topics no longer have, with their counts.

        `starts` has the start of each partition of rejections. Of more than `most` rejections the
        oldest are removed as well. Returns how many were removed. Raises `StateError`.
        """
        removed = 0
        with self._guard():
            for partition, start in starts.items():
                known = self._db.execute(
                    "SELECT id FROM partitions WHERE topic = ? AND number = ? AND start < ?",
                    (*partition, start),
                ).fetchone()
                if known is not None:
                    removed += self._remove('topic_partition = ? AND "offset" < ?', (*known, start))
                    self._db.execute(
                        "UPDATE partitions SET start = ? WHERE id = ?", (start, *known)
                    )
            (there,) = self._db.execute(
                "SELECT coalesce(sum(records), 0) FROM counts WHERE level = ?",
                (len(WIDTHS_MS) - 1,),
            ).fetchone()
            if there > most:
                _log.warning("desk_full", removed=there - most)
                limit = self._db.execute(
                    "SELECT id FROM rejections ORDER BY id LIMIT 1 OFFSET ?", (there - most,)
                ).fetchone()
                removed += self._remove("id < ?", limit)
            if removed:
                self._db.execute("DELETE FROM counts WHERE records = 0")
        return removed

    def wipe(self, reason: str) -> None:
        """Empty the store, to be filled again from the topics. Raises `StateError`."""
        _log.warning("desk_rebuilt", reason=reason)
        self._db.close()
        self._unlink()
        self._db = self._open()

    # --- inside -------------------------------------------------------------------------------

    def _remove(self, where: str, values: tuple[int, ...]) -> int:
        """Remove rejections and their counts, some at a time. Returns how many."""
        some = f"SELECT id FROM rejections WHERE {where} LIMIT {_REMOVED_AT_ONCE}"  # noqa: S608
        removed = 0
        while True:
            with self._transaction():
                rows = self._db.execute(
                    f"DELETE FROM rejections WHERE id IN ({some}) RETURNING *",  # noqa: S608
                    values,
                )
                gone = list(map(_Row._make, rows))
                self._count((row, -1, -1 if row.state == OPEN else 0) for row in gone)
            if not gone:
                return removed
            removed += len(gone)

    def _add(self, rejections: Sequence[Numbered]) -> None:
        numbers = {
            Partition(topic, number): id_
            for id_, topic, number in self._db.execute("SELECT id, topic, number FROM partitions")
        }
        unknown: Counter[tuple[str, str]] = Counter()
        rows: list[_Row] = []
        for partition, offset, seen in rejections:
            cause = self._cause(seen.wanted)
            row = _Row(
                None,
                seen.at,
                None if seen.key is None else key_digest(seen.entity, seen.key),
                self._kinds(seen),
                numbers[partition],
                offset,
                seen.source.partition,
                seen.source.offset,
                self._producer(seen.producer),
                OPEN,
                None if cause is None else cause.id,
                0 if cause is None else cause.kinds,
            )
            self._db.execute(_REJECTION, row)
            rows.append(row)
            names = self._unknown.setdefault(seen.entity, set())
            for name in seen.unknown_names:
                if name in names or len(names) < MOST_NAMED:
                    names.add(name)
                    unknown[seen.entity, name] += 1
        self._count((row, 1, 1) for row in rows)
        self._db.executemany(
            "INSERT INTO unknown_fields VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET records = records + excluded.records",
            [(*name, count) for name, count in unknown.items()],
        )

    def _cause(self, wanted: Sequence[int]) -> _Row | None:
        """The latest rejection of a key that a record refers to and that was missing."""
        for key in wanted:
            row = self._db.execute(
                "SELECT * FROM rejections WHERE key = ? ORDER BY id DESC LIMIT 1", (key,)
            ).fetchone()
            if row is not None:
                return _Row._make(row)
        return None

    def _settle(self, settlings: Sequence[Settling]) -> None:
        by_key: dict[int, list[Settling]] = {}
        for settling in settlings:
            by_key.setdefault(settling.key, []).append(settling)
        keys = list(by_key)
        for first in range(0, len(keys), _AT_ONCE):
            some = keys[first : first + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._db.execute(
                f"SELECT * FROM rejections WHERE key IN ({marks}) AND state = {OPEN}",  # noqa: S608
                some,
            )
            settled: list[tuple[_Row, Settling]] = []
            for row in map(_Row._make, rows):
                since = [s for s in by_key[row.key or 0] if _is_since(s, row)]
                settled += [(row, each) for each in since[-1:]]
            self._count((row, 0, -1) for row, _ in settled)
            self._db.executemany(
                "UPDATE rejections SET state = ? WHERE id = ?",
                [(DELETED if by.deleted else ACCEPTED, row.id) for row, by in settled],
            )

    def _count(self, changes: Iterable[tuple[_Row, int, int]]) -> None:
        """Add to the counts of rejections, and of open ones, at every level."""
        sums: dict[tuple[int, ...], list[int]] = {}
        for row, records, open_ in changes:
            for level, width in enumerate(WIDTHS_MS):
                bucket = (
                    level,
                    row.at // width,
                    row.kinds,
                    row.source_partition,
                    row.producer,
                    row.cause_kinds,
                )
                at = row.at % width // 1000
                found = sums.setdefault(bucket, [0, 0, at, at])
                found[0] += records
                found[1] += open_
                found[2] = min(found[2], at)
                found[3] = max(found[3], at)
        self._db.executemany(_COUNT, [(*bucket, *found) for bucket, found in sums.items()])

    def _kinds(self, seen: RejectionSeen) -> int:
        kinds = seen.entity, json.dumps(seen.kinds)
        if kinds not in self._kind_numbers and len(self._kind_numbers) >= _MOST_KINDS:
            kinds = seen.entity, json.dumps(((OTHERS, ""),))
        if (number := self._kind_numbers.get(kinds)) is None:
            number = self._kind_numbers[kinds] = self._insert(
                "INSERT INTO kinds (entity, violations) VALUES (?, ?)", kinds
            )
        return number

    def _producer(self, name: str) -> int:
        if name not in self._producer_numbers and len(self._producer_numbers) >= _MOST_PRODUCERS:
            name = OTHERS
        if (number := self._producer_numbers.get(name)) is None:
            number = self._producer_numbers[name] = self._insert(
                "INSERT INTO producers (name) VALUES (?)", (name,)
            )
        return number

    def _insert(self, statement: str, values: Sequence[str]) -> int:
        number = self._db.execute(statement, values).lastrowid
        assert number is not None
        return number

    def _open(self) -> sqlite3.Connection:
        """Open the database; an unusable one is replaced with an empty one."""
        reason = self._lock.distrust()
        for _ in range(2):
            if reason is not None:
                _log.warning("desk_rebuilt", reason=reason)
                self._unlink()
            try:
                return self._connect()
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):
                    raise self._lock.failure(error) from None
                reason = f"it is damaged ({error})"
            except _Other as error:
                reason = str(error)
        raise StateError(f"{self.directory} cannot be used ({reason})")

    def _connect(self) -> sqlite3.Connection:
        db = sqlite3.connect(
            self.directory / FILE_NAME, isolation_level=None, check_same_thread=False
        )
        try:
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            made = self._made_for()
            if not db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
                db.execute("BEGIN")
                for statement in filter(str.strip, _TABLES.split(";")):
                    db.execute(statement)
                db.execute("INSERT INTO facts VALUES ('made for', ?)", (made,))
                db.execute("COMMIT")
            _check_made_for(db, made)
            self._load(db)
        except BaseException:
            db.close()
            raise
        return db

    def _load(self, db: sqlite3.Connection) -> None:
        self._kind_numbers: dict[tuple[str, str], int] = {
            (entity, violations): number
            for number, entity, violations in db.execute("SELECT * FROM kinds")
        }
        self._producer_numbers: dict[str, int] = {
            name: number for number, name in db.execute("SELECT * FROM producers")
        }
        self._unknown: dict[str, set[str]] = {}
        for entity, name in db.execute("SELECT entity, name FROM unknown_fields"):
            self._unknown.setdefault(entity, set()).add(name)

    def _made_for(self) -> str:
        return f"{VERSION} {self.names.prefix}"

    def _unlink(self) -> None:
        try:
            for suffix in ("", "-wal", "-shm"):
                (self.directory / f"{FILE_NAME}{suffix}").unlink(missing_ok=True)
            self._lock.unmark()
        except OSError as error:
            raise self._lock.failure(error) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.execute("ROLLBACK")
            self._load(self._db)
            raise

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, ValueError) as error:
            if not isinstance(error, sqlite3.OperationalError):
                self._lock.mark_damaged(str(error))
                raise StateError(
                    f"{self.directory} is damaged ({error}): run the command again, which rebuilds"
                    " it from the topics"
                ) from None
            full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            raise self._lock.failure(full if "is full" in str(error) else error) from None


class _Other(Exception):
    """The store on disk is not ours to continue."""


def _check_made_for(db: sqlite3.Connection, made: str) -> None:
    found = db.execute("SELECT value FROM facts WHERE name = 'made for'").fetchone()
    if found != (made,):
        raise _Other("it was made by another release, or for another prefix")


def _is_since(settling: Settling, row: _Row) -> bool:
    """Whether a row or deletion was accepted after the rejection of its key.

    Records of one input partition are judged in order, whatever the clocks say.
    """
    same = settling.partition == row.source_partition
    later = same and settling.offset > row.source_offset
    return later or settling.at > row.at
