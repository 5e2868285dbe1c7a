"""An LMDB environment in a state directory: opened or rebuilt, grown, read and written.

How the file is written, and why:

* Through a writable memory map (`writemap`), which halves the cost of a page. A full disk would
  then kill the process during a store instruction. So blocks are allocated before they are mapped.
* Without a flush at each commit: `directory.py` explains why that is safe. If the system has no
  boot id, each commit flushes its data. The root of the tree follows one commit later, so a system
  failure leaves the previous state.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import lmdb
import structlog

from worker.errors import StateError, StateLost
from worker.index.checksum import is_sealed, mismatch, seal, unseal
from worker.index.damage import damage_of
from worker.index.directory import FILE_MODE, StateDirectory

if TYPE_CHECKING:
    from lmdb import _Database

ABOUT: Final = "about"
"""The tree that every environment has; the environment owns its key `version`."""

_VERSION: Final = b"version"
_MIB: Final = 1024 * 1024
_LOCK_BYTES: Final = 8192
"""The size that LMDB needs for 126 readers; it extends a smaller file without blocks."""

_WRITEMAP: Final = hasattr(os, "posix_fallocate")  # macOS lacks it: LMDB then uses write calls

# LMDB raises these for a file whose content is not what LMDB wrote.
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

    `trees` maps each name to whether a key may have several values. `map_size` is the initial
    size of the file in bytes. `reader` shows the state after the last write. It stays open, so a
    look-up needs no new transaction. Copy-on-write file systems such as btrfs cannot guarantee
    allocated blocks: there a full disk still kills the process.
    """

    reader: lmdb.Transaction[bytes]

    def __init__(
        self, directory: Path, trees: Mapping[str, bool], *, version: int, map_size: int
    ) -> None:
        self.cleared = 0
        """How often this object has discarded the content."""
        self.trees: dict[str, _Database] = {}
        self._kinds = {ABOUT: False, **trees}
        self._version = version
        self._least = map_size
        self._directory = StateDirectory(directory)
        self._file = directory / "data.mdb"
        self._lmdb: lmdb.Environment | None = None
        self._damaged = False

    def open(self) -> None:
        """Lock the directory; rebuild files that are of another version, damaged or maybe torn.

        Raises StateError if another process holds the directory, or on a read or write failure.
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
        """Flush to the disk and release the directory; idempotent. Raises StateError."""
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
        """Discard the content, start with empty trees, and log the reason. Raises StateError."""
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
        """Run `work` in one transaction, which an exception rolls back completely.

        `work` must be repeatable: it runs again after the file had to grow. Read `self.reader`
        again afterwards, whatever the outcome: it may be a new transaction. Raises StateError.
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
        """The StateError for an error; damage gives `StateLost` and marks the directory."""
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
            sealed = is_sealed(self._file)
            found = mismatch(self._file) if sealed else damage_of(self._file, self._version)
        except OSError as error:
            raise self.failure(error) from error
        return None if found is None else f"it is damaged ({found})"

    def _begin(self) -> None:
        """Mark the file as modified, before the first modification."""
        try:
            self._directory.mark_unflushed()
            unseal(self._file)
        except OSError as error:
            raise self.failure(error) from error

    def _connect(self) -> str | None:
        """Open the file and its trees; returns why the file is unusable, else None."""
        try:
            # Only the holder of the directory uses the lock file, so an old one is worthless.
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
            # Before any page access: a page beyond the end of the file kills the process.
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
            self._lmdb.close()  # also closes the reader
            self._lmdb = None
            self.trees = {}

    def _renew(self) -> None:
        # An old reader would prevent the reuse of the pages that it sees.
        self.reader.abort()
        self.reader = self._env.begin()

    def _grow(self) -> None:
        old = self._env.info()["map_size"]
        new = (old * 3 // 2 + _MIB) // _MIB * _MIB
        self._allocate(old, new - old)
        self.reader.abort()  # the map may move to another address
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
    """The number of bytes of the file in use."""
    return (env.info()["last_pgno"] + 1) * env.stat()["psize"]


def _allocate_locks(file: Path) -> None:
    """Create LMDB's lock file with allocated blocks: LMDB maps it writable too."""
    if not _WRITEMAP:
        return
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL, FILE_MODE)
    try:
        os.posix_fallocate(descriptor, 0, _LOCK_BYTES)
    finally:
        os.close(descriptor)
