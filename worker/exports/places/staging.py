"""A directory under construction, whose leftovers after a crash are found and removed.

It is built as `<root>/.<name>.<random>.partial/<name>`, beside a lock file that the writer holds
while it lives. After a crash nobody holds the lock, so `sweep` removes the leftovers. It leaves
the directories of live writers, in this or another process, alone.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

from worker.errors import StateError
from worker.exports.places.hangs import Calls
from worker.exports.places.links import is_directory, open_directory
from worker.private import DIRECTORY_MODE, make_private

FILE_MODE: Final = 0o640
"""Owner and group only."""

_SUFFIX: Final = ".partial"
_LOCK: Final = "lock"


class Staging:
    """One directory under construction. Once it is open, fill `directory`.

    Every method blocks, and raises OSError if the disk refuses.
    """

    def __init__(self, root: Path, name: str, calls: Calls) -> None:
        self.name = name
        self.calls = calls
        """Where a writer registers its calls to the disk."""
        self.outer = root
        """The parent of the directory and its lock. A place may move it to its seals."""
        self._root = root
        self._lock = -1

    @property
    def directory(self) -> Path:
        """The directory that will be published."""
        return self.outer / self.name

    def open(self) -> None:
        """Create the directory, and hold its lock until it is discarded or released."""
        with self.calls.running():
            make_private(self._root)
            self.outer, self._lock = _create(self._root, self.name)
            self.directory.mkdir(mode=DIRECTORY_MODE)

    def sync(self) -> None:
        """Flush every directory to disk; the files must have been flushed before."""
        for path in [*self.directory.rglob("*"), self.directory, self.outer]:
            if is_directory(path):
                sync_directory(path)

    def release(self) -> None:
        """Release the lock of a directory that was moved elsewhere: `discard` leaves it alone."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def discard(self) -> None:
        """Remove the directory unless it was released. Never raises OSError."""
        if self._lock >= 0:
            with self.calls.running():
                shutil.rmtree(self.outer, ignore_errors=True)
                self.release()


def sweep(root: Path) -> list[Path]:
    """Remove the leftovers of dead writers; returns what was removed. Blocking.

    Symbolic links are left alone, whatever their names.
    """
    found = []
    for outer in filter(is_directory, sorted(root.glob(f".*{_SUFFIX}"))):
        try:
            lock = _try_lock(outer)
        except OSError:  # not ours to remove
            continue
        if lock is not None:
            try:
                shutil.rmtree(outer, ignore_errors=True)
            finally:
                os.close(lock)
            found.append(outer)
    return [outer for outer in found if not outer.exists()]


def create_private(path: str, flags: int) -> int:
    """An `opener` that creates files for owner and group only."""
    return os.open(path, flags, FILE_MODE)


def is_hidden(name: str) -> bool:
    """Whether the name has the form that `hidden_name` gives."""
    return name.startswith(".") and name.endswith(_SUFFIX)


def hidden_name(name: str) -> str:
    """A name for a directory that `sweep` removes if nobody holds its lock."""
    return f".{name}.{secrets.token_hex(4)}{_SUFFIX}"


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(root: Path, name: str) -> tuple[Path, int]:
    # A sweep may remove the directory before it is locked: then try another name.
    for _ in range(100):
        outer = root / hidden_name(name)
        outer.mkdir(mode=DIRECTORY_MODE)
        lock = _try_lock(outer)
        if lock is not None:
            return outer, lock
    raise StateError(f"{root}: another process keeps removing what is being written there")


def _try_lock(outer: Path) -> int | None:
    """The open lock of an existing directory. None if it is gone, or another writer has it."""
    path = outer / _LOCK
    try:
        folder = open_directory(outer)
    except FileNotFoundError:
        return None
    try:
        lock = os.open(_LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, FILE_MODE, dir_fd=folder)
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.lstat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(lock)
        raise
    os.close(lock)
    return None
