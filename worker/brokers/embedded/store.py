"""The database file of the embedded broker: its directory, format and connections.

One SQLite database in WAL mode holds all data. With `synchronous=FULL`, a transaction is on disk
once it returns. Each connection has a thread of its own, because SQLite waits for the disk and
the event loop must not. Every failure is raised with a one-line message for a person.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import structlog

from worker.brokers.embedded.explanations import (
    BUSY_SECONDS,
    explain_os_error,
    explain_sqlite_error,
    log_damaged,
    log_missing,
    not_a_directory,
    primary_code,
)
from worker.brokers.embedded.format import is_current, is_new, make, migrate
from worker.errors import BrokerUnavailable, BuddyError, StateError

FILE_NAME = "log.sqlite"

CALL_SECONDS = 30.0
"""How long a call waits for its thread: a disk that hangs must not block the caller for ever."""

WHOLE_LOG_SECONDS = 12 * 3600.0
"""The same for a call that goes through the whole log."""

_P = ParamSpec("_P")
_T = TypeVar("_T")

_log = structlog.get_logger(__name__)

_creating = threading.Lock()
# Closing a file drops every POSIX lock that this process holds on it, SQLite's included. So no
# thread may create (and close) the file while another thread of this process has it open.


class Connection:
    """A SQLite connection and the one thread that uses it; calls run in order of arrival."""

    def __init__(self, directory: Path, *, writes: bool) -> None:
        self._directory = directory
        self._path = directory / FILE_NAME
        self._writes = writes
        self._thread = ThreadPoolExecutor(1, f"embedded-{'write' if writes else 'read'}")
        self._connection: sqlite3.Connection | None = None
        self._places: dict[str, tuple[int, int]] = {}
        """Device and inode of each file that the connection has open, by path."""

    async def open(self) -> None:
        """Open the database. A connection that writes also creates or migrates it.

        Raises `StateError`, or `BrokerUnavailable` if there is no log to read.
        """
        await self._submit(self._open)
        if not await self.run(_is_current, self._path):
            if not self._writes:
                raise StateError(
                    f"{self._path} has an earlier format: start a worker or a sink once, which "
                    f"brings it up to date."
                )
            _log.warning("log_migrating", directory=str(self._directory))
            await self.run_long(_migrate, self._path)
            _log.info("log_migrated", directory=str(self._directory))

    async def run(
        self,
        work: Callable[Concatenate[sqlite3.Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Run `work` in the thread. Work that has begun completes even if the caller is cancelled.

        Raises `StateError`, or `BrokerUnavailable`, after which the outcome may be unknown.
        """
        return await self._submit(lambda: work(self._ready(), *args, **kwargs))

    async def run_long(
        self,
        work: Callable[Concatenate[sqlite3.Connection, _P], _T],
        *args: _P.args,
        **kwargs: _P.kwargs,
    ) -> _T:
        """Like `run`, for work that goes through the whole log."""
        return await self._submit(lambda: work(self._ready(), *args, **kwargs), WHOLE_LOG_SECONDS)

    async def close(self) -> None:
        """Close after the calls that are already queued. Idempotent."""
        with contextlib.suppress(BuddyError, RuntimeError):
            await self._submit(self._close)
        self._thread.shutdown(wait=False)

    async def _submit(self, work: Callable[[], _T], seconds: float | None = None) -> _T:
        loop = asyncio.get_running_loop()
        limit = CALL_SECONDS if seconds is None else seconds
        try:
            async with asyncio.timeout(limit):
                return await loop.run_in_executor(self._thread, self._guarded, work)
        except TimeoutError:
            raise BrokerUnavailable(
                f"The disk of {self._directory} did not answer in {limit:.0f} s: "
                f"check it, then try again."
            ) from None
        except RuntimeError as error:  # the executor has shut down
            raise BrokerUnavailable(f"The log in {self._directory} is closed.") from error

    def _guarded(self, work: Callable[[], _T]) -> _T:
        try:
            return work()
        except sqlite3.Error as error:
            raise explain_sqlite_error(error, self._directory) from error
        except UnicodeDecodeError as error:  # in SQLite's message, which quotes damaged text
            raise log_damaged("its tables cannot be told", self._directory) from error
        except OSError as error:
            is_open = self._connection is not None
            raise explain_os_error(error, self._directory, is_open=is_open) from error

    def _ready(self) -> sqlite3.Connection:
        if self._connection is None:
            raise BrokerUnavailable(f"The log in {self._directory} is not open.")
        # A write to a deleted file succeeds, but nobody would ever read it.
        if not self._is_in_place():
            raise StateError(
                f"The log in {self._directory} was removed or replaced while in use: "
                f"stop every process that uses it and start again."
            )
        return self._connection

    def _is_in_place(self) -> bool:
        """Whether the open files, -wal and -shm included, are the ones that the paths name now."""
        return all(_place(path) == place for path, place in self._places.items())

    def _open(self) -> None:
        if self._writes:
            _prepare(self._directory, self._path)
        else:
            _find(self._directory, self._path)
        # mode=rw: SQLite creates no database. It creates -wal and -shm beside an existing one, and
        # the last connection to close removes them.
        connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode=rw",
            isolation_level=None,
            timeout=BUSY_SECONDS,
            uri=True,
        )
        try:
            if self._writes:
                # This pragma ignores the busy timeout when another connection runs it too.
                _patiently(lambda: connection.execute("PRAGMA journal_mode=WAL").fetchone())
            for pragma in (
                "synchronous=FULL",
                "cache_size=-8192",
                "wal_autocheckpoint=4000",
                "journal_size_limit=67108864",
                # Zeroing deleted content would write every expired message once more.
                "secure_delete=FAST",
            ):
                connection.execute(f"PRAGMA {pragma}").fetchone()
            if self._writes:
                _make_tables(connection)
                # `transaction` retries with short pauses: SQLite's own pauses grow to 100 ms.
                connection.execute("PRAGMA busy_timeout=0").fetchone()
            else:
                connection.execute("PRAGMA query_only=ON")
                connection.execute("PRAGMA schema_version").fetchone()  # opens -wal and -shm
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        # -wal and -shm exist, and stay the same files, while a connection has them open.
        paths = [f"{self._path}{end}" for end in ("", "-wal", "-shm")]
        self._places = {path: place for path in paths if (place := _place(path)) is not None}

    def _close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            return
        if self._is_in_place():
            connection.close()
        else:
            _keep_open(connection)


def _keep_open(connection: sqlite3.Connection) -> None:
    """Keep the connection open until the process ends.

    Closing it would write the content of its replaced files into the files that are there now. A
    daemon thread holds the connection, because Python closes what modules hold when it exits.
    From Python 3.12 on, SQLite's `SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE` would do instead.
    """

    def hold(_connection: sqlite3.Connection) -> None:
        threading.Event().wait()

    threading.Thread(target=hold, args=(connection,), name="replaced-log", daemon=True).start()


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Run the block atomically, as the only writer among all processes.

    Within `Connection.run`, it raises `BrokerUnavailable` if others hold the write lock for
    `BUSY_SECONDS`.
    """
    _patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


@contextlib.contextmanager
def snapshot(connection: sqlite3.Connection) -> Iterator[None]:
    """Reads in the block see one state of the database; writers continue."""
    connection.execute("BEGIN")
    try:
        yield
    finally:
        _roll_back(connection)


def _make_tables(connection: sqlite3.Connection) -> None:
    with transaction(connection):
        if is_new(connection):
            make(connection)


def _is_current(connection: sqlite3.Connection, path: Path) -> bool:
    if is_new(connection):  # another process is about to create its tables
        raise log_missing(path.parent)
    return is_current(connection, path)


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    with transaction(connection):
        if not is_current(connection, path):  # else another process was faster
            migrate(connection)


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
            if primary_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
        time.sleep(pause)
        pause = min(pause * 1.5, 0.005)


def _prepare(directory: Path, path: Path) -> None:
    try:
        directory.mkdir(mode=0o750)
    except FileExistsError:
        if not directory.is_dir():
            raise not_a_directory(directory) from None
    else:
        _sync(directory.parent)
    with _creating:
        try:
            # SQLite gives -wal and -shm the mode of this file.
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o640))
        except FileExistsError:
            return
    _sync(directory)


def _find(directory: Path, path: Path) -> None:
    if directory.exists() and not directory.is_dir():
        raise not_a_directory(directory)
    if not path.exists():
        raise log_missing(directory)


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _place(path: str | Path) -> tuple[int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 -- before each call: pathlib takes three times as long
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
