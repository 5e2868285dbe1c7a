"""A directory of state: one process holds it, and nothing in it is trusted that may be torn.

The files are not flushed to the disk at every write, which would cost most of the speed. Killing
a process cannot tear them: the system holds what was written. Only the end of the system itself
(power, kernel) can. So a mark in the directory names the boot during which the files were last
open; if it is found again under another boot, they were not closed in order.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from worker.errors import StateError
from worker.private import make_private

FILE_MODE: Final = 0o640
"""For owner and group only: docs/contract.md, "Configuration and logs"."""

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_DAMAGED: Final = "damaged"
_FULL: Final = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))


class StateDirectory:
    """Holds the directory between `take` and `release`.

    `boot` names the run of this system; None where it has no such name: then the files must be
    flushed at every write, since nothing could tell afterwards whether they are torn.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.boot = _boot_id()
        self._mark = path / "unflushed"
        self._lock = -1

    def take(self) -> None:
        """Make the directory if need be and become its only holder, also against a thread.

        Raises StateError if another holds it or it cannot be written. A holder that is killed
        lets go of it.
        """
        try:
            make_private(self.path)
            lock = os.open(self.path / "owner.lock", os.O_RDWR | os.O_CREAT, FILE_MODE)
        except OSError as error:
            raise self.failure(error) from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise StateError(
                f"{self.path} is in use by another process: stop that one, or give this one a "
                "directory of its own"
            ) from error
        except OSError as error:
            os.close(lock)
            raise self.failure(error) from error
        self._lock = lock

    def release(self) -> None:
        """Let go of the directory; a second time does nothing."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def distrust(self) -> str | None:
        """Why the files may be torn; None if they are as they were last written."""
        try:
            mark = self._mark.read_text("utf-8", "replace")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self.failure(error) from error
        if mark.startswith(_DAMAGED):
            return f"it was found to be damaged{mark.removeprefix(_DAMAGED)}"
        if mark != self.boot:
            return "the system stopped before it was closed in order"
        return None

    def mark_unflushed(self) -> None:
        """Note, on the disk itself, that the files are trustworthy during this boot only."""
        if self.boot is not None:
            self._write_mark(self.boot)

    def mark_damaged(self, what: str) -> None:
        """Note that the files must not be used again, and why."""
        self._write_mark(f"{_DAMAGED} ({what})")

    def unmark(self) -> None:
        """Note that the files are flushed. Should this note be lost, they are rebuilt: no harm."""
        self._mark.unlink(missing_ok=True)

    def failure(self, error: Exception) -> StateError:
        """The one line for a person about what went wrong here."""
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if any(sign in what for sign in _FULL):
            return StateError(
                f"{self.path} cannot be written, the disk is full ({what}): free some space and "
                "start again"
            )
        return StateError(
            f"{self.path} cannot be read or written ({what}): look at its rights and the space "
            "on its disk, then start again"
        )

    def _write_mark(self, text: str) -> None:
        try:
            mark = os.open(self._mark, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, FILE_MODE)
            try:
                os.write(mark, text.encode())
                os.fsync(mark)
            finally:
                os.close(mark)
            directory = os.open(self.path, os.O_RDONLY)
            try:
                os.fsync(directory)
            finally:
                os.close(directory)
        except OSError as error:
            raise self.failure(error) from error


def _boot_id() -> str | None:
    try:
        return _BOOT.read_text("ascii").strip() or None
    except OSError:
        return None
