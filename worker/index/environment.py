"""An LMDB environment in a state directory: opened or begun anew, grown, read and written.

How it is written, and why:

* Through memory (`writemap`): half the cost of a page. A full disk would then end the process in
  the middle of a store instruction, so the file's blocks are allocated before they are mapped.
* Without a flush at each commit: see `directory.py` for what makes that safe. Where the system
  cannot name its boot, data are flushed at each commit (the root of the tree one commit later: a
  failure then leaves the state before).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import lmdb
import structlog

from worker.errors import StateError, StateLost
from worker.index.damage import damage_of, seal, unseal
from worker.index.directory import FILE_MODE, StateDirectory

if TYPE_CHECKING:
    from lmdb import _Database

ABOUT: Final = "about"
"""The tree that every environment has; its `version` belongs to the environment."""

_VERSION: Final = b"version"
_MIB: Final = 1024 * 1024
_LOCK_BYTES: Final = 8192
"""What LMDB needs for its 126 readers; it enlarges a file that is smaller, without blocks."""

_WRITEMAP: Final = hasattr(os, "posix_fallocate")  # macOS has none: there it is written by call

# Raised for a file that is no longer what LMDB once wrote.
_DAMAGE: Final = (
    lmdb.CorruptedError,
    lmdb.IncompatibleError,
    lmdb.InvalidError,
    lmdb.PageNotFoundError,
    lmdb.PanicError,
    lmdb.VersionMismatchError,
)

_T = TypeVar("_T")
_log = structlog.get_logger(__name__)


class Environment:
    """Named trees in one file, for one process and one thread at a time.

    `trees` names them, each with whether a key may have several values. `map_size` is what the
    file has at first, in bytes. `reader` is the view as of the last write; it stays open, so that
    a look-up costs no transaction. File systems that copy on write (btrfs, for one) cannot
    promise allocated blocks: there a full disk still ends the process.
    """

    reader: lmdb.Transaction[bytes]

    def __init__(
        self, directory: Path, trees: Mapping[str, bool], *, version: int, map_size: int
    ) -> None:
        self.cleared = 0
        """How often everything was thrown away since this was made."""
        self.trees: dict[str, _Database] = {}
        self._kinds = {ABOUT: False, **trees}
        self._version = version
        self._least = map_size
        self._directory = StateDirectory(directory)
        self._file = directory / "data.mdb"
        self._lmdb: lmdb.Environment | None = None
        self._damaged = False

    def open(self) -> None:
        """Take the directory; begin anew where its files are unknown, damaged or maybe torn.

        Raises StateError when another process holds it, or it cannot be read or written.
        """
        self._directory.take()
        try:
            reason = self._directory.distrust() or self._damage() or self._connect()
            if reason is not None:
                self.clear(reason)
            else:
                self._begin()
        except BaseException:
            self._disconnect()
            self._directory.release()
            raise

    def close(self) -> None:
        """Flush to the disk and let go of the directory; a second time does nothing."""
        try:
            if self._lmdb is not None and not self._damaged:
                self._lmdb.sync(True)  # noqa: FBT003 -- lmdb's own signature
                length = _used(self._lmdb)
                self._disconnect()
                seal(self._file, length, FILE_MODE)
                self._directory.unmark()
        except (lmdb.Error, OSError) as error:
            raise self.failure(error) from error
        finally:
            self._disconnect()
            self._directory.release()

    def clear(self, reason: str) -> None:
        """Throw everything away and begin with empty trees; the reason goes to the log."""
        _log.warning("state_rebuild", directory=self._directory.path.name, reason=reason)
        self._disconnect()
        self.cleared += 1
        self._damaged = False
        try:
            self._file.unlink(missing_ok=True)
            unseal(self._file)
            self._directory.unmark()
        except OSError as error:
            raise self.failure(error) from error
        again = self._connect()
        if again is not None:
            raise StateError(f"{self._directory.path} cannot be rebuilt: {again}")
        self._begin()

    def write(self, work: Callable[[lmdb.Transaction[bytes]], _T]) -> _T:
        """Do the work in one transaction: all of it, or after an exception nothing.

        `work` may be called again, with a larger file, and must give the same then. The `reader`
        is another one afterwards, whatever the outcome. Raises StateError.
        """
        while True:
            try:
                with self._env.begin(write=True) as txn:
                    outcome = work(txn)
                self._renew()
            except lmdb.MapFullError:
                self._grow()
            except lmdb.Error as error:
                raise self.failure(error) from error
            else:
                return outcome

    def failure(self, error: Exception) -> StateError:
        """The error for what LMDB or the system reported: `StateLost` for damage, remembered."""
        if isinstance(error, _DAMAGE):
            self._damaged = True
            self._directory.mark_damaged(str(error))
            return StateLost(f"{self._directory.path} is damaged ({error}): it is rebuilt")
        return self._directory.failure(error)

    @property
    def _env(self) -> lmdb.Environment:
        if self._lmdb is None:
            raise StateError(f"{self._directory.path} is not open")
        return self._lmdb

    def _damage(self) -> str | None:
        try:
            found = damage_of(self._file, self._version)
        except OSError as error:
            raise self.failure(error) from error
        return None if found is None else f"it is damaged ({found})"

    def _begin(self) -> None:
        """Note that from now on the file is changed, before it is."""
        try:
            self._directory.mark_unflushed()
            unseal(self._file)
        except OSError as error:
            raise self.failure(error) from error

    def _connect(self) -> str | None:
        """Open file and trees; why the file is of no use, if it is not."""
        try:
            # Only the holder of the directory uses it, so nothing in it is worth believing.
            locks = self._file.with_name("lock.mdb")
            locks.unlink(missing_ok=True)
            _allocate_locks(locks)
            size = self._file.stat().st_size if self._file.exists() else 0
            self._lmdb = env = lmdb.open(
                str(self._directory.path),
                map_size=max(self._least, size),
                mode=FILE_MODE,
                max_dbs=len(self._kinds),
                max_spare_txns=1,
                writemap=_WRITEMAP,
                sync=self._directory.boot is None,
                metasync=False,
            )
            # Before any page is looked at: one beyond the end of the file ends the process.
            if size and size < _used(env):
                return "its file was cut short"
            self._allocate(0, env.info()["map_size"])
            return self._open_trees(env, new=not size)
        except _DAMAGE as error:
            return f"it is damaged ({error})"
        except (lmdb.Error, OSError) as error:
            raise self._directory.failure(error) from error

    def _open_trees(self, env: lmdb.Environment, *, new: bool) -> str | None:
        with env.begin(write=True) as txn:
            about = env.open_db(ABOUT.encode(), txn)
            if new:
                txn.put(_VERSION, b"%d" % self._version, db=about)
            found = txn.get(_VERSION, None, about)
            if found != b"%d" % self._version:
                text = "unknown" if found is None else found[:20].decode("ascii", "replace")
                return f"its format has version {text}, this program's {self._version}"
            self.trees = {
                name: env.open_db(name.encode(), txn, dupsort=several)
                for name, several in self._kinds.items()
            }
        self.reader = env.begin()
        return None

    def _disconnect(self) -> None:
        if self._lmdb is not None:
            self._lmdb.close()  # and with it the reader
            self._lmdb = None
            self.trees = {}

    def _renew(self) -> None:
        # The old view must go: it would keep the pages of its state from being used again.
        self.reader.abort()
        self.reader = self._env.begin()

    def _grow(self) -> None:
        old = self._env.info()["map_size"]
        new = (old * 3 // 2 + _MIB) // _MIB * _MIB
        self._allocate(old, new - old)
        self.reader.abort()  # the file may be mapped elsewhere afterwards
        try:
            self._env.set_mapsize(new)
        except lmdb.Error as error:
            raise self.failure(error) from error
        finally:
            self.reader = self._env.begin()

    def _allocate(self, offset: int, length: int) -> None:
        if not _WRITEMAP:
            return
        try:
            file = os.open(self._file, os.O_RDWR)
            try:
                os.posix_fallocate(file, offset, length)
            finally:
                os.close(file)
        except OSError as error:
            raise self._directory.failure(error) from error


def _used(env: lmdb.Environment) -> int:
    """How many bytes of the file are in use."""
    return (env.info()["last_pgno"] + 1) * env.stat()["psize"]


def _allocate_locks(file: Path) -> None:
    """Make LMDB's file of locks, which it writes through memory as well, with blocks of its own."""
    if not _WRITEMAP:
        return
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        os.posix_fallocate(descriptor, 0, _LOCK_BYTES)
    finally:
        os.close(descriptor)
