"""Log time: the time that append times and retention use, even if a wall clock is wrong.

The log stores an *anchor*: the wall clock and the uptime at the first write since the machine
started. From then on, log time follows the uptime: nobody can set the uptime, and all processes
of the machine share it. A wall clock that differs from log time by more than `TOLERANCE_MS` is
not trusted, until `accept` confirms the wall clock.

After a restart of the machine, nothing tells how long the machine was off. Any wall clock that is
not behind the last append is then trusted. While the wall clock is behind, log time stands still
at the last append.
"""

from __future__ import annotations

import os
import sqlite3
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import structlog

from worker.brokers.embedded.seal import seal
from worker.brokers.embedded.topics import last_append
from worker.clock import Clock
from worker.errors import ClockRefused

TOLERANCE_MS = 60_000
"""How far a trusted wall clock may differ from log time: the default skew allowed to records."""

_SETTLED_MS = 24 * 3600 * 1000

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_UPTIME = "/proc/uptime"

_log = structlog.get_logger(__name__)


class Anchor(NamedTuple):
    """One moment as wall-clock time and as uptime, both in milliseconds."""

    boot: str
    """Identifies the boot of the machine."""
    uptime: int
    wall: int


class LogTime(NamedTuple):
    """The log time, in milliseconds."""

    now: int
    ahead: int
    """How far this process's wall clock is ahead of `now`; negative if behind, 0 if they agree."""
    age: int
    """How long ago, by the uptime, the anchor was stored; 0 if there is none."""

    @property
    def settled(self) -> bool:
        """Whether the anchor is a day old: a wrong clock would have been noticed by now."""
        return self.age >= _SETTLED_MS

    @property
    def earliest(self) -> int:
        """The log time or this process's wall clock, whichever is behind the other."""
        return self.now + min(0, self.ahead)


def machine_clock() -> Clock:
    """The machine's wall clock, with the uptime as the steady clock.

    The uptime comes from the kernel. All processes share it, it advances while the machine
    sleeps, and libraries such as libfaketime cannot change it.
    """
    return Clock(steady=_uptime)


def boot_id() -> str:
    """An identifier of the machine's current boot."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # not Linux: no shared identifier is known, so each process has its own
        return uuid.uuid4().hex


class LogClock:
    """Computes log time for one process. All processes must share the clock `clock.steady`."""

    def __init__(self, clock: Clock, boot: str) -> None:
        self.steady = clock.steady
        self._clock = clock
        self._boot = boot
        self._agreed = False
        self._told = False

    def read(self, connection: sqlite3.Connection) -> LogTime:
        """The log time, within a write transaction; the first call of a boot stores the anchor."""
        wall, uptime = self._clock.wall(), self._clock.steady()
        anchor = _load(connection)
        if anchor is not None and anchor.boot == self._boot:
            expected = anchor.wall + max(0, uptime - anchor.uptime)
            age = uptime - anchor.uptime
        else:
            expected, age = max(last_append(connection), wall), 0
            if expected - wall <= TOLERANCE_MS:
                _store(connection, Anchor(self._boot, uptime, expected))
        if abs(wall - expected) <= TOLERANCE_MS:
            self._agreed, self._told = True, False
            return LogTime(wall, 0, age)
        return LogTime(expected, wall - expected, age)

    def check(self, time: LogTime) -> None:
        """Refuse to send if the wall clock has been ahead ever since this process started.

        Raises `ClockRefused`. If the clock agreed earlier, somebody set it since: sending
        continues by log time. A clock that is behind is harmless, so sending continues too.
        """
        if time.ahead > 0 and not self._agreed:
            raise ClockRefused(
                f"The clock says {_text(time.now + time.ahead)}, but in the log it is "
                f"{_text(time.now)}: set the clock, or say that it is right with "
                f"'buddy log accept-clock'."
            )

    def accept(self, connection: sqlite3.Connection) -> LogTime:
        """Trust the wall clock from now on, within a transaction; return the previous log time."""
        before = self.read(connection)
        wall, uptime = self._clock.wall(), self._clock.steady()
        _store(connection, Anchor(self._boot, uptime, wall))
        return before

    def report(self, time: LogTime) -> None:
        """Log once that the wall clock is not trusted."""
        if time.ahead and not self._told:
            self._told = True
            clock = _text(time.now + time.ahead)
            _log.warning("clock_not_believed", clock=clock, log=_text(time.now))


def _uptime() -> int:
    try:
        # The resolution of 10 ms is enough for append times, retention and sessions.
        descriptor = os.open(_UPTIME, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:  # not Linux
        return time.monotonic_ns() // 1_000_000
    try:
        return int(float(os.read(descriptor, 64).split()[0]) * 1000)
    finally:
        os.close(descriptor)


def _load(connection: sqlite3.Connection) -> Anchor | None:
    row = connection.execute("SELECT boot, uptime, wall, clock_crc FROM log").fetchone()
    return Anchor(*row[:3]) if row is not None and row[3] == seal(*row[:3]) else None


def _store(connection: sqlite3.Connection, anchor: Anchor) -> None:
    connection.execute(
        "UPDATE log SET boot = ?, uptime = ?, wall = ?, clock_crc = ?", (*anchor, seal(*anchor))
    )


def _text(milliseconds: int) -> str:
    return f"{datetime.fromtimestamp(milliseconds / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}"
