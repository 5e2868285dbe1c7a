"""The log's own time: what append times and retention go by, whoever's clock is wrong.

The log keeps an *anchor*: what the wall clock said at the first write since the machine started,
and how long the machine had been up. From then on the log's time follows the uptime, which nobody
can set, and all processes of the machine share. A wall clock that contradicts it by more than
`TOLERANCE_MS` is not believed, until `accept` says that it is right.

After a restart of the machine nothing tells how long it was off. Then any clock is believed that
is not behind the last append; a clock that is behind waits for it.
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
"""A clock this far from the log's time is still believed; a record may lie as far in the future."""

_SETTLED_MS = 24 * 3600 * 1000

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_UPTIME = "/proc/uptime"

_log = structlog.get_logger(__name__)


class Anchor(NamedTuple):
    """A moment on the wall clock and since the start of the machine, in milliseconds."""

    boot: str
    """Which start of which machine."""
    uptime: int
    wall: int


class LogTime(NamedTuple):
    """What time it is in the log."""

    now: int
    ahead: int
    """By how much this process's wall clock is ahead of it, or behind (< 0). 0: it agrees."""
    settled: bool
    """Whether the anchor is a day old: a wrong clock would have been seen by now."""


def machine_clock() -> Clock:
    """The wall clock, and the uptime in the place of the steady one.

    The uptime is the kernel's: it is the same in all processes, it goes on while the machine
    sleeps, and no library in between (libfaketime) bends it.
    """
    return Clock(steady=_uptime)


def boot_id() -> str:
    """Which start of the machine this is."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:  # not Linux: what is not known to be shared counts as a start of its own
        return uuid.uuid4().hex


class LogClock:
    """Tells the log's time to one process. `clock.steady` must be what all processes share."""

    def __init__(self, clock: Clock, boot: str) -> None:
        self.steady = clock.steady
        self._clock = clock
        self._boot = boot
        self._agreed = False
        self._told = False

    def read(self, connection: sqlite3.Connection) -> LogTime:
        """The time of the log, within a write transaction: the first one keeps the anchor."""
        wall, uptime = self._clock.wall(), self._clock.steady()
        anchor = _load(connection)
        if anchor is not None and anchor.boot == self._boot:
            expected = anchor.wall + max(0, uptime - anchor.uptime)
            settled = uptime - anchor.uptime >= _SETTLED_MS
        else:
            expected, settled = max(last_append(connection), wall), False
            if expected - wall <= TOLERANCE_MS:
                _store(connection, Anchor(self._boot, uptime, expected))
        if abs(wall - expected) <= TOLERANCE_MS:
            self._agreed, self._told = True, False
            return LogTime(wall, 0, settled)
        return LogTime(expected, wall - expected, settled)

    def check(self, time: LogTime) -> None:
        """Refuse to send by a clock that has been ahead ever since this process began.

        One that was right before has been set while the process runs: it goes on by the log's
        time. So does one that is behind, because that changes nothing. Raises `ClockRefused`.
        """
        if time.ahead > 0 and not self._agreed:
            raise ClockRefused(
                f"The clock says {_text(time.now + time.ahead)}, but in the log it is "
                f"{_text(time.now)}: set the clock, or say that it is right with "
                f"'buddy log accept-clock'."
            )

    def accept(self, connection: sqlite3.Connection) -> LogTime:
        """Believe the wall clock from now on, within a transaction; what was the time until now."""
        before = self.read(connection)
        wall, uptime = self._clock.wall(), self._clock.steady()
        _store(connection, Anchor(self._boot, uptime, wall))
        return before

    def tell(self, time: LogTime) -> None:
        """Say once that the wall clock is not believed."""
        if time.ahead and not self._told:
            self._told = True
            clock = _text(time.now + time.ahead)
            _log.warning("clock_not_believed", clock=clock, log=_text(time.now))


def _uptime() -> int:
    try:
        # Ten milliseconds exact, which is enough for what is measured by it here.
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
