"""A state directory: one process holds it, and files that may be torn are not trusted.

The files are not flushed to the disk at every write, which would cost most of the speed. A killed
process cannot tear them, because the kernel still has the written pages. Only a failure of the
system (power, kernel) can. So a mark in the directory names the boot during which the files were
last open. A mark of another boot means that the files were not closed in order.
"""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path
from typing import Final

from worker.errors import StateError
from worker.private import make_private
from worker.small_files import read_small

FILE_MODE: Final = 0o640
"""For owner and group only: docs/contract.md, "Configuration and logs"."""

_BOOT: Final = Path("/proc/sys/kernel/random/boot_id")
_DAMAGED: Final = "damaged"
_MAKE: Final = os.O_CREAT | os.O_NOFOLLOW
"""A symbolic link might lead to a file of others."""
_NOT_OPENED: Final = "unable to open database file"
"""SQLite's words, also for a link in the place of a file beside the database."""
_FULL: Final = tuple(map(os.strerror, (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)))


class StateDirectory:
    """Locks the directory between `take` and `release`.

    `boot` is the boot id of the system, or None if there is none. Without a boot id torn files
    cannot be detected, so the files must be flushed at every write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.boot = _boot_id()
        self._mark = path / "unflushed"
        self._lock = -1

    def take(self) -> None:
        """Create the directory if needed, and lock it against other processes and threads.

        The kernel releases the lock of a killed holder. Raises StateError if the directory is
        locked or cannot be written.
        """
        try:
            make_private(self.path)
            lock = os.open(self.path / "owner.lock", os.O_RDWR | _MAKE, FILE_MODE)
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
        """Release the directory; idempotent."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def distrust(self) -> str | None:
        """Why the files may be torn or damaged, or None. Raises StateError."""
        try:
            mark = read_small(self._mark).decode("utf-8", "replace")
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
        """Mark the files as trustworthy during this boot only; the mark itself is flushed."""
        if self.boot is not None:
            self._write_mark(self.boot)

    def mark_damaged(self, what: str) -> None:
        """Mark the files as damaged, with the reason: they must not be used again."""
        self._write_mark(f"{_DAMAGED} ({what})")

    def unmark(self) -> None:
        """Remove the mark: the files are flushed. If the removal is lost, they are rebuilt."""
        self._mark.unlink(missing_ok=True)

    def failure(self, error: Exception) -> StateError:
        """The StateError for this error: one line that says what to do."""
        what = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            return StateError(
                f"{error.filename} is a symbolic link, which is never followed: remove it"
            )
        links = sorted(filter(Path.is_symlink, self.path.glob("*")))
        if links and _NOT_OPENED in what:
            return StateError(f"{links[0]} is a symbolic link, which is never followed: remove it")
        if any(sign in what for sign in _FULL):
            return StateError(
                f"{self.path} cannot be written, the disk is full ({what}): free some space"
            )
        return StateError(
            f"{self.path} cannot be read or written ({what}): look at its rights and the space "
            "on its disk"
        )

    def _write_mark(self, text: str) -> None:
        try:
            mark = os.open(self._mark, os.O_WRONLY | os.O_TRUNC | _MAKE, FILE_MODE)
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
