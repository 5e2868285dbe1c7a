"""A directory that appears under its final name in one step, complete or not at all.

It is built as `<root>/.<name>.<random>.partial/<name>`, beside a lock file that the writer holds
for as long as it lives, and renamed at the end. What a crash leaves behind has a lock that nobody
holds: `sweep` removes it, and leaves those of live writers (of this or another process) alone.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from pathlib import Path
from typing import Final

from worker.errors import StateError

DIRECTORY_MODE: Final = 0o750
FILE_MODE: Final = 0o640
"""Owner and group only."""

_SUFFIX: Final = ".partial"
_LOCK: Final = "lock"


class Staging:
    """One directory under construction, to be filled at `directory` once it is open.

    Every method blocks. OSError where the disk refuses; StateError where the final name is taken.
    """

    def __init__(self, root: Path, name: str) -> None:
        self._final = root / name
        self._outer = root
        self._lock = -1

    @property
    def directory(self) -> Path:
        """What will be published."""
        return self._outer / self._final.name

    def open(self) -> None:
        """Create the directory, and hold its lock until it is published or discarded."""
        self._refuse_existing()
        root = self._final.parent
        root.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
        self._outer, self._lock = _create(root, self._final.name)
        self.directory.mkdir(mode=DIRECTORY_MODE)

    def publish(self) -> Path:
        """Flush every directory to disk and rename; the files must have been flushed before."""
        for path in [*self.directory.rglob("*"), self.directory]:
            if path.is_dir():
                sync_directory(path)
        self._refuse_existing()
        try:
            self.directory.rename(self._final)
        except FileExistsError as error:
            raise self._taken() from error
        except OSError as error:
            if self._final.exists():  # ENOTEMPTY has no exception of its own
                raise self._taken() from error
            raise
        sync_directory(self._final.parent)
        self.discard()
        return self._final

    def discard(self) -> None:
        """Remove what has not been published, and let go of the lock. Never raises OSError."""
        if self._lock >= 0:
            shutil.rmtree(self._outer, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1

    def _refuse_existing(self) -> None:
        if self._final.exists():
            raise self._taken()

    def _taken(self) -> StateError:
        return StateError(f"{self._final} exists already; a finished export is never overwritten")


def sweep(root: Path) -> list[Path]:
    """Remove the leftovers of writers that died; returns what was removed. Blocking."""
    removed = []
    for outer in sorted(root.glob(f".*{_SUFFIX}")):
        try:
            lock = _try_lock(outer)
        except OSError:  # not ours to remove
            continue
        if lock is not None:
            try:
                shutil.rmtree(outer, ignore_errors=True)
            finally:
                os.close(lock)
            removed.append(outer)
    return removed


def create_private(path: str, flags: int) -> int:
    """An `opener`: new files are for owner and group only."""
    return os.open(path, flags, FILE_MODE)


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(root: Path, name: str) -> tuple[Path, int]:
    # A sweep may take a directory away before it is locked: then there is another name.
    for _ in range(100):
        outer = root / f".{name}.{secrets.token_hex(4)}{_SUFFIX}"
        outer.mkdir(mode=DIRECTORY_MODE)
        lock = _try_lock(outer)
        if lock is not None:
            return outer, lock
    raise StateError(f"{root}: another process keeps removing what is being written there")


def _try_lock(outer: Path) -> int | None:
    """The open lock of a directory that is still there, or None: it is gone, or another's."""
    path = outer / _LOCK
    try:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(lock), path.stat()):
            return lock
    except (BlockingIOError, FileNotFoundError):
        pass
    except OSError:
        os.close(lock)
        raise
    os.close(lock)
    return None
