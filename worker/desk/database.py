"""The database of the desk: its tables, how it is opened, and what its errors mean.

One process at a time writes it; others may read it meanwhile. A database that cannot be
used is replaced with an empty one, with one log line (`desk_rebuilt`): the topics fill it again.
SQLite has no checksums, so a file that was closed in order has one beside it. One of a process that
was killed gets SQLite's own check when it is opened again.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import structlog

from worker.errors import StateError
from worker.index.checksum import is_sealed, mismatch, seal, unseal
from worker.index.directory import FILE_MODE, StateDirectory

VERSION: Final = 4
"""Version of the tables below; any other version on disk is rebuilt."""
FILE_NAME: Final = "rejections.sqlite"

_SUFFIXES: Final = ("", "-wal", "-shm")
"""Of the names of the files. All of them exist while the database is open."""

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
    entity TEXT NOT NULL, name TEXT NOT NULL, records INTEGER NOT NULL, first INTEGER NOT NULL,
    PRIMARY KEY (entity, name));
CREATE TABLE rejections (
    id INTEGER PRIMARY KEY, at INTEGER NOT NULL, key INTEGER, kinds INTEGER NOT NULL,
    topic_partition INTEGER NOT NULL, "offset" INTEGER NOT NULL,
    source_partition INTEGER NOT NULL, source_offset INTEGER NOT NULL, producer INTEGER NOT NULL,
    state INTEGER NOT NULL, cause INTEGER, cause_kinds INTEGER NOT NULL,
    judged INTEGER NOT NULL);
CREATE INDEX rejections_by_key ON rejections (key) WHERE key IS NOT NULL;
CREATE INDEX rejections_without_key ON rejections ("offset") WHERE key IS NULL;
CREATE TABLE counts (
    level INTEGER NOT NULL, bucket INTEGER NOT NULL, kinds INTEGER NOT NULL,
    source_partition INTEGER NOT NULL, producer INTEGER NOT NULL, cause_kinds INTEGER NOT NULL,
    records INTEGER NOT NULL, open INTEGER NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (level, bucket, kinds, source_partition, producer, cause_kinds)) WITHOUT ROWID;
CREATE TABLE verdicts (
    entity TEXT NOT NULL, what TEXT NOT NULL, bucket INTEGER NOT NULL,
    others INTEGER NOT NULL, found INTEGER NOT NULL,
    PRIMARY KEY (entity, what, bucket)) WITHOUT ROWID;
CREATE TABLE watches (
    entity TEXT NOT NULL, what TEXT NOT NULL, watch TEXT NOT NULL,
    PRIMARY KEY (entity, what)) WITHOUT ROWID;
CREATE TABLE incidents (
    id INTEGER PRIMARY KEY, entity TEXT NOT NULL, what TEXT NOT NULL, opened INTEGER NOT NULL,
    closed INTEGER,
    report TEXT NOT NULL, untold INTEGER NOT NULL DEFAULT 0);
"""
"""Rejections are numbered as they are read. `topic_partition` and `offset` are the coordinate of
the rejection, and the next two columns that of the record in the input of the entity. `cause` is
the rejection of what the record refers to, `cause_kinds` are the kinds of that rejection, or 0.
`judged` is the time of the round that rejected it, by the clock of its worker.
`first` and `last` are in seconds since the start of the bucket. `verdicts` counts what
`worker.desk.incidents` has not judged yet; its state is in `watches`."""

_DAMAGED: Final = ("decode to UTF-8", "no such table", "no such column", "malformed")
"""Signs of damage in what SQLite calls an operational error."""
_LEAST_FREE: Final = 256 * 1024
"""Bytes: with less room on the disk, a write that fails has failed for that."""

_log = structlog.get_logger(__name__)


class _OtherStoreError(Exception):
    """The file is that of another release or prefix."""


class DeskDatabase:
    """The tables in a directory of their own, for the topics of one prefix."""

    def __init__(
        self,
        directory: Path,
        prefix: str,
        on_load: Callable[[DeskDatabase], None],
        *,
        read_only: bool = False,
    ) -> None:
        """Open or create the database. Raises `StateError`.

        Calls `on_load` whenever what was read from the tables before may be wrong: after an
        opening, and after a transaction that was rolled back. With `read_only`, another process has
        the database open, and this one only reads it; nothing is created.
        """
        self.directory = directory
        self.read_only = read_only
        # A caller that is cancelled closes the database while a thread of its own still uses it.
        self._turn = threading.RLock()
        self._file = directory / FILE_NAME
        self._places: list[tuple[int, int]] = []
        """Device and inode of each file that this process has open."""
        self._least = 0
        """Bytes that the file had: it never shrinks, since nothing vacuums it."""
        self._sealed = False
        """Whether the checksum beside the file is right."""
        self._made_for = f"{VERSION} {prefix}"
        self._on_load = on_load
        self._lock = StateDirectory(directory)
        self.rebuilt = 0
        """How often it was replaced with an empty one since the opening."""
        if read_only:
            self._connect_read_only()
            return
        self._lock.take()
        try:
            self._open(self._lock.distrust())
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Write a checksum of what has changed, and release the directory."""
        with self._turn:
            try:
                if not self._sealed and not self.read_only:
                    with suppress(StateError):  # the next opening replaces it
                        self.check_in_place()
                        self._seal()
            finally:
                self._db.close()
                self._lock.release()

    def replace(self, reason: str) -> None:
        """Replace the tables with empty ones. Raises `StateError`."""
        with self._turn:
            self._db.close()
            self._open(reason)

    def check_in_place(self) -> None:
        """Raise `StateError` if a file was removed, replaced or cut short, or is marked as damaged.

        The next opening then replaces the database. SQLite itself may notice none of it: it reads
        the pages that it has in memory, and writes into files that nobody else sees. Another
        process that reads the database may have found damage that is in no page read here.
        """
        damaged = self._lock.distrust() is not None
        if not damaged and not self._is_in_place():
            damaged = True
            with suppress(StateError):  # the directory may be gone too: it is made anew
                self._lock.mark_damaged("a file was removed, replaced or cut short in use")
        if damaged:
            raise StateError(
                f"{self.directory} was emptied, or found to be damaged, while it was in use: it is"
                " opened anew, and rebuilt from the topics"
            )

    @property
    def identity(self) -> str:
        """Another one whenever the tables are made anew: numbers of rejections change then."""
        ((value,),) = self.rows("SELECT value FROM facts WHERE name = 'identity'")
        return str(value)

    def rows(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows that a statement gives. Raises `StateError`."""
        with self.guard():
            return self._db.execute(statement, values).fetchall()

    def execute(self, statement: str, values: Sequence[Any] = ()) -> sqlite3.Cursor:
        """Execute a statement, within a `guard`."""
        return self._db.execute(statement, values)

    def executemany(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Execute a statement once for each, within a `guard`."""
        self._db.executemany(statement, values)

    def interrupt(self) -> None:
        """End the statement that a thread executes now: it raises `StateError` there."""
        self._db.interrupt()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of the block is written, or nothing. Nothing else may write.

        Raises what `check_in_place` raises: a commit may write to the file, which hides a cut.
        """
        self.check_in_place()
        if self._sealed:
            unseal(self._file)
            self._sealed = False
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # SQLite itself rolls back some errors, a full disk for one
                self._db.execute("ROLLBACK")
            self._on_load(self)
            raise

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Raise `StateError` for what SQLite, or a content that contradicts itself, raises.

        Damage is marked, so that the next opening replaces the database.
        """
        try:
            with self._turn:
                yield
        except OSError as error:
            raise self._lock.failure(error) from None
        except sqlite3.ProgrammingError as error:  # closed under a question that was given up
            raise StateError(f"{self.directory} cannot be read: {error}") from None
        except (sqlite3.Error, ValueError, TypeError, LookupError) as error:
            damaged = any(sign in str(error) for sign in _DAMAGED)
            if damaged or not isinstance(error, sqlite3.OperationalError):
                if not (self.read_only and "no such table" in str(error)):  # they are being created
                    self._lock.mark_damaged(str(error))
                raise StateError(
                    f"{self.directory} is damaged ({error}): it is rebuilt from the topics at its"
                    " next opening"
                ) from None
            raise self._failure(error) from None

    def _open(self, reason: str | None) -> None:
        """Open the database; with a reason, or if it is unusable, an empty one."""
        for _ in range(2):
            if reason is not None:
                _log.warning("desk_rebuilt", reason=reason)
                self.rebuilt += 1
                self._unlink()
            try:
                self._connect()
            except OSError as error:
                raise self._lock.failure(error) from None
            except sqlite3.OperationalError as error:
                if not any(sign in str(error) for sign in _DAMAGED):
                    raise self._failure(error) from None
                reason = f"it is damaged ({error})"
            except sqlite3.DatabaseError as error:
                reason = f"it is damaged ({error})"
            except _OtherStoreError as error:
                reason = str(error)
            else:
                return
        raise StateError(f"{self.directory} cannot be used ({reason})")

    def _failure(self, error: sqlite3.Error) -> StateError:
        # SQLite calls some full disks an I/O error.
        full = "is full" in str(error)
        with suppress(OSError):  # if read-only, the directory may not be there yet
            full = full or shutil.disk_usage(self.directory).free < _LEAST_FREE
        if full:
            return self._lock.failure(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
        return self._lock.failure(error)

    def _seal(self) -> None:
        """Write the checksum. Without one, the next opening takes longer."""
        with suppress(sqlite3.Error, OSError):
            busy, *_ = self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
            if busy:  # another process reads it: the last one to close it changes the file
                return
            seal(self._file, self._file.stat().st_size, FILE_MODE)

    def _connect(self) -> None:
        self._sealed = is_sealed(self._file)
        if self._sealed and (why := mismatch(self._file)) is not None:
            raise _OtherStoreError(why)
        os.close(os.open(self._file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, FILE_MODE))
        self._db = sqlite3.connect(self._file, isolation_level=None, check_same_thread=False)
        try:
            if not self._sealed:
                self._check()
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._make_tables()
            self._on_load(self)
            self._places, self._least = self._look()
        except BaseException:
            self._db.close()
            raise

    def _is_in_place(self) -> bool:
        try:
            places, size = self._look()
        except OSError:
            return False
        least, self._least = self._least, max(self._least, size)
        return places == self._places and size >= least

    def _look(self) -> tuple[list[tuple[int, int]], int]:
        """The places of the files, -wal and -shm included, and the size of the first one."""
        paths = (self.directory / f"{FILE_NAME}{suffix}" for suffix in _SUFFIXES)
        found = [path.stat() for path in paths]
        return [(each.st_dev, each.st_ino) for each in found], found[0].st_size

    def _connect_read_only(self) -> None:
        with self.guard():
            where = f"{self._file.absolute().as_uri()}?mode=ro"
            self._db = sqlite3.connect(
                where, uri=True, isolation_level=None, check_same_thread=False
            )
            try:
                self._check_maker()
                self._on_load(self)
            except _OtherStoreError as error:
                self._db.close()
                raise StateError(f"{self.directory} cannot be used yet: {error}") from None
            except BaseException:
                self._db.close()
                raise

    def _check(self) -> None:
        ((found,),) = self._db.execute("PRAGMA integrity_check(1)")
        if found != "ok":
            raise _OtherStoreError(f"it is damaged ({found})")

    def _make_tables(self) -> None:
        if not self._db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone():
            self._db.execute("BEGIN")
            for statement in filter(str.strip, _TABLES.split(";")):
                self._db.execute(statement)
            self._db.executemany(
                "INSERT INTO facts VALUES (?, ?)",
                [("made for", self._made_for), ("identity", uuid.uuid4().hex)],
            )
            self._db.execute("COMMIT")
        self._check_maker()

    def _check_maker(self) -> None:
        found = self._db.execute("SELECT value FROM facts WHERE name = 'made for'").fetchone()
        if found != (self._made_for,):
            raise _OtherStoreError("it was made by another release, or for another prefix")

    def _unlink(self) -> None:
        try:
            unseal(self._file)
            for suffix in _SUFFIXES:
                (self.directory / f"{FILE_NAME}{suffix}").unlink(missing_ok=True)
            self._lock.unmark()
        except OSError as error:
            raise self._lock.failure(error) from None
