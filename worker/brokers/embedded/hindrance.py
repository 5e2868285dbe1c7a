"""Detects frozen processes that block the upkeep of the embedded log.

A stopped process (SIGSTOP, Ctrl-Z) keeps its file locks and its snapshot. If it holds the upkeep
lock, retention and compaction stop for all processes. If it holds a snapshot, SQLite cannot
truncate the write-ahead log, which then grows until the disk is full.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

LASTING_MS = 60_000
"""A hindrance is reported once nothing has moved for this long."""

AGAIN_MS = 300_000
"""A hindrance is logged at most this often."""

MOST_WAL_BYTES = 256 * 1024 * 1024
"""A larger write-ahead log is a hindrance: four times the size at which upkeep truncates it."""

_log = structlog.get_logger(__name__)


class Hindrances:
    """The hindrances that this process's rounds of upkeep met. `steady` is in milliseconds."""

    def __init__(self, steady: Callable[[], int]) -> None:
        self._lock = _Hindrance(steady)
        self._wal = _Hindrance(steady)

    def line(self) -> str | None:
        """What hinders upkeep, in one line, or None."""
        return self._lock.line or self._wal.line

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


class _Hindrance:
    """One kind of hindrance; it counts once it is met with the same mark for `LASTING_MS`."""

    def __init__(self, steady: Callable[[], int]) -> None:
        self.line: str | None = None
        self._steady = steady
        self._since: tuple[int, int] | None = None
        """The mark, and the time at which it was first met."""
        self._logged: int | None = None

    def met(self, line: str, mark: int = 0) -> None:
        now = self._steady()
        if self._since is None or self._since[0] != mark:
            self._since, self.line = (mark, now), None
        if now - self._since[1] < LASTING_MS:
            return
        self.line = line
        if self._logged is None or now - self._logged >= AGAIN_MS:
            self._logged = now
            _log.error("upkeep_hindered", reason=line)

    def over(self) -> None:
        self.line = self._since = None
