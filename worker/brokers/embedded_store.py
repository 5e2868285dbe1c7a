"""The database file of the embedded broker: its directory, format, connections and failures.

One SQLite database in WAL mode holds everything; `synchronous=FULL`, so what a transaction
returned from is on the disk. Each connection lives in a thread of its own, because SQLite waits
for the disk and the event loop must not. Every failure leaves here as one line for a person.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

from worker.errors import BrokerUnavailable, BuddyError, StateError

FILE_NAME = "log.sqlite"
APPLICATION_ID = 0x42756479  # "Budy", so that `file` and this program know whose database it is
FORMAT = 1

BUSY_SECONDS = 10.0
"""How long a write waits for other processes before it gives up."""

CALL_SECONDS = 30.0
"""How long a call waits for its thread: a disk that hangs must not hang the caller for ever."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_SCHEMA = """
CREATE TABLE topics (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    partitions INTEGER NOT NULL,
    compacted INTEGER NOT NULL,
    append_time INTEGER NOT NULL,
    retention_ms INTEGER,
    delete_retention_ms INTEGER NOT NULL,
    max_message_bytes INTEGER NOT NULL
);
-- start: the first offset that has not expired. next: the one that comes next, never reused.
-- cleaned: below it each key stands once. kept, grown: bytes below and above it.
CREATE TABLE partitions (
    id INTEGER PRIMARY KEY,
    topic INTEGER NOT NULL,
    number INTEGER NOT NULL,
    start INTEGER NOT NULL DEFAULT 0,
    next INTEGER NOT NULL DEFAULT 0,
    last_time INTEGER NOT NULL DEFAULT 0,
    cleaned INTEGER NOT NULL DEFAULT 0,
    cleaned_at INTEGER NOT NULL,
    kept INTEGER NOT NULL DEFAULT 0,
    grown INTEGER NOT NULL DEFAULT 0,
    UNIQUE (topic, number)
);
-- The messages of the offsets from base up to next. entries is what embedded_log encodes.
CREATE TABLE batches (
    id INTEGER PRIMARY KEY,
    partition INTEGER NOT NULL,
    base INTEGER NOT NULL,
    next INTEGER NOT NULL,
    time INTEGER NOT NULL,
    last_time INTEGER NOT NULL,
    entries BLOB NOT NULL
);
CREATE UNIQUE INDEX batches_by_offset ON batches (partition, base);
CREATE TABLE committers (name TEXT PRIMARY KEY, epoch INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE group_offsets (
    consumer_group TEXT NOT NULL,
    partition INTEGER NOT NULL,
    position INTEGER NOT NULL,
    PRIMARY KEY (consumer_group, partition)
) WITHOUT ROWID;
CREATE TABLE members (
    id INTEGER PRIMARY KEY,
    consumer_group TEXT NOT NULL,
    topic TEXT NOT NULL,
    name TEXT NOT NULL UNIQUE
);
"""

_creating = threading.Lock()
# Closing a file drops every POSIX lock that this process holds on it, SQLite's too. So nobody in
# this process may create (and close) the file while somebody else has it open already.


class Connection:
    """A SQLite connection and the one thread that uses it; calls run in the order they came."""

    def __init__(self, directory: Path, *, writes: bool) -> None:
        self._directory = directory
        self._path = directory / FILE_NAME
        self._writes = writes
        self._thread = ThreadPoolExecutor(1, f"embedded-{'write' if writes else 'read'}")
        self._connection: sqlite3.Connection | None = None
        self._place: tuple[int, int] | None = None

    async def open(self) -> None:
        """Open the database, and make it if it is missing. Raises `StateError`."""
        await self._submit(self._open)

    async def run(
        self,
        work: Callable[Concatenate[sqlite3.Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Do `work` in the thread. If the caller is cancelled, work that had begun still ends.

        Raises `StateError`, or `BrokerUnavailable` when it is not known what took place.
        """
        return await self._submit(lambda: work(self._ready(), *args, **kwargs))

    async def close(self) -> None:
        """Close after the calls that wait already; calling it again does nothing."""
        with contextlib.suppress(BuddyError, RuntimeError):
            await self._submit(self._close)
        self._thread.shutdown(wait=False)

    async def _submit(self, work: Callable[[], _T]) -> _T:
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CALL_SECONDS):
                return await loop.run_in_executor(self._thread, self._guarded, work)
        except TimeoutError:
            raise BrokerUnavailable(
                f"The disk of {self._directory} did not answer in {CALL_SECONDS:.0f} s: "
                f"check it, then try again."
            ) from None
        except RuntimeError as error:  # the executor after its shutdown
            raise BrokerUnavailable(f"The log in {self._directory} is closed.") from error

    def _guarded(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except sqlite3.Error as error:
            raise _explain(error, self._directory) from error
        except OSError as error:
            raise _explain_system(error, self._directory) from error

    def _ready(self) -> sqlite3.Connection:
        if self._connection is None:
            raise BrokerUnavailable(f"The log in {self._directory} is not open.")
        # A deleted file can still be written to, but nobody would ever read it.
        if _place(self._path) != self._place:
            raise StateError(
                f"The log in {self._directory} was removed or replaced while in use: "
                f"stop every process that uses it and start again."
            )
        return self._connection

    def _open(self) -> None:
        if self._writes:
            _prepare(self._directory, self._path)
        else:
            _find(self._directory, self._path)
        # rw: SQLite makes no database. What it makes beside one, the last to close it removes.
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",
            isolation_level=None,
            timeout=BUSY_SECONDS,
            uri=True,
        )
        try:
            if self._writes:
                # It does not wait for others that do the same, whatever the time-out.
                _patiently(lambda: connection.execute("PRAGMA journal_mode=WAL").fetchone())
            for pragma in (
                "synchronous=FULL",
                "cache_size=-8192",
                "wal_autocheckpoint=4000",
                "journal_size_limit=67108864",
                # Zeroing what is deleted would write every expired message once more.
                "secure_delete=FAST",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchone()
            if self._writes:
                _make_tables(connection)
            _check_format(connection, self._path)
            if self._writes:
                # `transaction` waits in short turns: SQLite's own grow up to 100 ms.
                connection.execute("PRAGMA busy_timeout=0").fetchone()
            else:
                connection.execute("PRAGMA query_only=ON")
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._place = _place(self._path)

    def _close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All or nothing, alone among all processes. Raises `BrokerUnavailable` if others hold on."""
    _patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Reads within see one state of the database; writers go on."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        _roll_back(connection)


def _roll_back(connection: sqlite3.Connection) -> None:
    # SQLite rolls back by itself after some errors, and complains when asked again.
    with contextlib.suppress(sqlite3.Error):
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def _patiently(attempt: Callable[[], _T]) -> _T:
    pause = 0.0005
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            return attempt()
        except sqlite3.OperationalError as error:
            if _code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 1.5, 0.005)


def _prepare(directory: Path, path: Path) -> None:
    try:
        directory.mkdir(mode=0o750)
    except FileExistsError:
        if not directory.is_dir():
            raise _is_a_file(directory) from None
    else:
        _sync(directory.parent)
    with _creating:
        try:
            # SQLite gives its other files the mode of this one.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o640))
        except FileExistsError:
            return
    _sync(directory)


def _find(directory: Path, path: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise _is_a_file(directory)
    if not path.exists():
        raise _missing(directory)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _make_tables(connection: sqlite3.Connection) -> None:
    with transaction(connection):
        if _is_new(connection):
            for statement in _SCHEMA.split(";"):
                connection.execute(statement)
            connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version={FORMAT}")


def _check_format(connection: sqlite3.Connection, path: Path) -> None:
    owner, version = _marks(connection)
    if (owner, version) == (APPLICATION_ID, FORMAT):
        return
    if _is_new(connection):  # another process is about to make its tables
        raise _missing(path.parent)
    if owner != APPLICATION_ID:
        raise StateError(f"{path} is not a log of this program: name another directory.")
    raise StateError(
        f"{path} has format {version}, this program reads {FORMAT}: use the release that wrote "
        f"it, or move the directory away and send the records again."
    )


def _is_new(connection: sqlite3.Connection) -> bool:
    tables = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
    return _marks(connection) == (0, 0) and tables == 0


def _marks(connection: sqlite3.Connection) -> tuple[int, int]:
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    return owner, connection.execute("PRAGMA user_version").fetchone()[0]


def _code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def _explain(error: sqlite3.Error, directory: Path) -> BuddyError:
    """The one line for a failure of SQLite. Only an I/O error leaves open what took place."""
    match _code(error):
        case sqlite3.SQLITE_FULL:
            return _full(directory)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return BrokerUnavailable(
                f"Another process has held the log in {directory} for {BUSY_SECONDS:.0f} s: "
                f"look for one that hangs, then try again."
            )
        case sqlite3.SQLITE_IOERR:
            return BrokerUnavailable(
                f"The disk of {directory} failed ({error}): check it, then try again."
            )
        case sqlite3.SQLITE_CORRUPT | sqlite3.SQLITE_NOTADB:
            return StateError(
                f"The log in {directory} is damaged or not a log ({error}): move the directory "
                f"away, or put a copy back."
            )
        case _:
            return StateError(
                f"The log in {directory} cannot be read or written ({error}): check the "
                f"directory and its rights."
            )


def _explain_system(error: OSError, directory: Path) -> BuddyError:
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return _full(directory)
    return StateError(
        f"{directory} cannot be used for the log ({error.strerror or error}): make it a directory "
        f"that this user may write to."
    )


def _is_a_file(directory: Path) -> BuddyError:
    return StateError(
        f"{directory} is a file: name a directory for the log, or move the file away."
    )


def _missing(directory: Path) -> BuddyError:
    return BrokerUnavailable(
        f"There is no log in {directory}: is --broker right? The first 'buddy run' or 'buddy "
        f"topics create' makes it."
    )


def _full(directory: Path) -> BuddyError:
    return StateError(
        f"The disk of {directory} is full: make room; nothing of this write was stored."
    )
