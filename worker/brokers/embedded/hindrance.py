"""What keeps the embedded log from upkeep for long: a frozen process, whichever it is.

A process that is stopped (SIGSTOP, Ctrl-Z) keeps its file locks and its snapshot. With the lock of
upkeep it stops retention and compaction for all. With a snapshot it keeps SQLite from emptying
the write-ahead log, which then grows until the disk is full.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

LASTING_MS = 60_000
"""A hindrance is told once nothing has moved for so long …"""

AGAIN_MS = 300_000
"""… and logged at most this often."""

MOST_WAL_BYTES = 256 * 1024 * 1024
"""Four times the size from which upkeep empties it."""

_log = structlog.get_logger(__name__)


class Hindrances:
    """What has hindered the rounds of upkeep of this process. `steady` is in milliseconds."""

    def __init__(self, steady: Callable[[], int]) -> None:
        self._lock = _Hindrance(steady)
        self._wal = _Hindrance(steady)

    def line(self) -> str | None:
        """What hinders upkeep, in one line, or None."""
        return self._lock.line or self._wal.line

    def locked(self, path: str, touched: int) -> None:
        """Another process has the lock, and showed at `touched` that it goes on."""
        self._lock.met(
            f"a process that hangs holds {path}: nothing expires and nothing is compacted until "
            f"it goes on or ends",
            touched,
        )

    def unlocked(self) -> None:
        """The lock was free."""
        self._lock.over()

    def wal(self, path: str, size: int) -> None:
        """The write-ahead log has this size, though rounds of upkeep empty it."""
        if size > MOST_WAL_BYTES:
            self._wal.met(
                f"a process that hangs while it reads keeps {path} from being emptied: "
                f"{size // 2**20} MiB"
            )
        else:
            self._wal.over()


class _Hindrance:
    """One kind. It counts once it was met for `LASTING_MS` with the same mark."""

    def __init__(self, steady: Callable[[], int]) -> None:
        self.line: str | None = None
        self._steady = steady
        self._since: tuple[int, int] | None = None
        """The mark, and when it was first met."""
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
