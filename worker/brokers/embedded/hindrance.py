"""Detects what blocks writers and the upkeep of the embedded log: frozen processes, a full disk.

A stopped process (SIGSTOP, Ctrl-Z) keeps its file locks and its snapshot. If it holds the upkeep
lock, retention and compaction stop for all processes. If it holds a snapshot, SQLite cannot
truncate the write-ahead log, which then grows until the disk is full.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import structlog

LASTING_MS = 60_000
"""A hindrance is reported once nothing has moved for this long."""

_FAILING_MS = 15_000
"""Three rounds: a failure that ends by itself is none."""

AGAIN_MS = 300_000
"""A hindrance is logged at most this often."""

LEAST_FREE_BYTES = 1024 * 1024
"""With less free space on its disk, the log counts as full."""

MOST_WAL_BYTES = 256 * 1024 * 1024
"""A larger write-ahead log is a hindrance: four times the size at which upkeep truncates it."""

_log = structlog.get_logger(__name__)


class Hindrances:
    """The hindrances that this process's rounds of upkeep met. `steady` is in milliseconds."""

    def __init__(self, steady: Callable[[], int]) -> None:
        self._disk = _Hindrance(steady, _disk_full, lasting=0)
        self._failure = _Hindrance(steady, _nothing, lasting=_FAILING_MS)
        self._lock = _Hindrance(steady, _upkeep_hindered, lasting=LASTING_MS)
        self._wal = _Hindrance(steady, _upkeep_hindered, lasting=LASTING_MS)

    def line(self) -> str | None:
        """What hinders writers or upkeep, in one line, or None."""
        return self._disk.line or self._failure.line or self._lock.line or self._wal.line

    def failed(self, reason: str) -> None:
        """A round of upkeep failed. `upkeep_failed` logs each; what lasts is a hindrance."""
        self._failure.met(reason)

    def succeeded(self) -> None:
        """A round of upkeep came to its end."""
        self._failure.over()

    def disk(self, line: str | None) -> None:
        """What `full_disk` says."""
        if line is not None:
            self._disk.met(line)
        else:
            self._disk.over()

    def locked(self, path: str, touched: int) -> None:
        """Another process holds the lock; it last touched the lock file at `touched`."""
        self._lock.met(
            f"a process that hangs holds {path}: nothing expires and nothing is compacted until "
            f"it goes on or ends",
            touched,
        )

    def unlocked(self) -> None:
        """The lock was free."""
        self._lock.over()

    def wal(self, path: str, size: int) -> None:
        """The write-ahead log has this size in bytes after a step of upkeep."""
        if size > MOST_WAL_BYTES:
            self._wal.met(
                f"a process that hangs while it reads keeps {path} from being emptied: "
                f"{size // 2**20} MiB"
            )
        else:
            self._wal.over()


def full_disk(directory: Path) -> str | None:
    """Says that the disk of the log is full, in one line; None while there is room.

    Raises OSError if the directory is gone.
    """
    free = shutil.disk_usage(directory).free
    if free >= LEAST_FREE_BYTES:
        return None
    return (
        f"the disk of the log in {directory} is full ({free // 1024} KiB left): nothing can be"
        " sent, judged or exported until there is room"
    )


class _Hindrance:
    """One kind of hindrance; it counts once it is met with the same mark for `lasting`."""

    def __init__(
        self, steady: Callable[[], int], report: Callable[[str], None], *, lasting: int
    ) -> None:
        self.line: str | None = None
        self._steady = steady
        self._report = report
        self._lasting = lasting
        self._since: tuple[int, int] | None = None
        """The mark, and the time at which it was first met."""
        self._logged: int | None = None

    def met(self, line: str, mark: int = 0) -> None:
        now = self._steady()
        if self._since is None or self._since[0] != mark:
            self._since, self.line = (mark, now), None
        if now - self._since[1] < self._lasting:
            return
        self.line = line
        if self._logged is None or now - self._logged >= AGAIN_MS:
            self._logged = now
            self._report(line)

    def over(self) -> None:
        self.line = self._since = None


def _nothing(reason: str) -> None:
    """Log nothing."""


def _disk_full(reason: str) -> None:
    _log.error("log_disk_full", reason=reason)


def _upkeep_hindered(reason: str) -> None:
    _log.error("upkeep_hindered", reason=reason)
