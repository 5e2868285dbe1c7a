"""Exports in a directory, which several sinks may share.

The seal of an export is its staging directory, renamed to `.seals/<export_id>`. A rename onto a
non-empty directory fails, and a seal is never empty: the lock file stays in it. The first sink that
comes across the seal renames the export out of it to its final name.

Symbolic links in the directory are never followed (`links`). A link named like an export, a seal or
a leftover is logged once an hour and left alone.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import structlog

from worker.errors import StateError, UsageError
from worker.exports.layout import MANIFEST, id_in
from worker.exports.manifest import read_content
from worker.exports.order import AHEAD, Order, is_of, orders, overtaken
from worker.exports.places.hangs import Calls
from worker.exports.places.links import (
    NoRegularFileError,
    check_no_file,
    check_no_link,
    is_directory,
    open_below,
)
from worker.exports.places.opened import FileOnDisk, copy_file
from worker.exports.places.place import (
    SEAL_DAYS,
    Finished,
    GoneError,
    Skipped,
    copy_out,
    finished_from,
    ignore_skipped,
    stop_if,
    tell_overtaken,
)
from worker.exports.places.staging import (
    Staging,
    create_private,
    hidden_name,
    is_hidden,
    sweep,
    sync_directory,
)
from worker.exports.places.writable import (
    NO_RIGHT,
    PROBE,
    check_writable,
    has_room,
    unwritable,
)
from worker.private import DIRECTORY_MODE

_SEALS: Final = ".seals"
_TOLD_SECONDS: Final = 3_000
"""A link is not logged again before. Less than an hour, so that each hourly sweep logs it."""
_TAKEN: Final = (errno.ENOTEMPTY, errno.EEXIST)
_IN_THE_WAY: Final = (*_TAKEN, errno.ENOTDIR)
"""Errors of renaming a directory onto a taken name; ENOTDIR: by a file or a link."""

_log = structlog.get_logger(__name__)


class DirectoryPlace:
    """An `ExportPlace` in a directory, which is created for the first export.

    It must remain the directory first seen: an unmounted volume uncovers another one, without the
    seals. Methods that use the directory, except `fetch`, raise `StateError` if it was replaced.
    """

    def __init__(
        self,
        root: Path,
        clock: Callable[[], float] = time.time,
        steady: Callable[[], float] = time.monotonic,
    ) -> None:
        """Both clocks are in seconds; `steady` measures how long a call hangs."""
        self._root = root
        self._seals = root / _SEALS
        self._ahead = root / AHEAD
        self._clock = clock
        self._steady = steady
        self._calls = Calls(root, steady)
        self._seen: tuple[int, int] | None = None
        """Device and inode of the root."""
        self._told: dict[Path, float] = {}
        """The links of the last sweep, each with the time (`steady`) when it was logged."""

    def tell(self, tell: Callable[[str | None], object]) -> None:
        """See `ExportPlace`: never told, since a failing disk is not waited for."""

    def hang(self) -> str | None:
        """See `ExportPlace`."""
        return self._calls.hang()

    def close(self) -> None:
        """See `ExportPlace`."""

    def find_or_finish(self, export_id: str) -> Finished | None:
        """See `ExportPlace`."""
        with self._guard():
            self._finish(export_id)
            for name in self._names(export_id):
                found = self._read(name)
                if found is not None:
                    return found
        return None

    def sealed(self, export_id: str) -> bool:
        """See `ExportPlace`."""
        with self._guard():
            return self._is_sealed(export_id) or bool(self._names(export_id))

    def finished(self, skipped: Skipped = ignore_skipped) -> Iterator[Finished]:
        """See `ExportPlace`."""
        with self._guard():
            there = orders(self._names(), self._marks())
        for name, order in there.items():
            with self._calls.running():
                found = self._read(name, skipped, order)
            if found is not None:
                yield found

    def staging(self, name: str) -> Staging:
        """See `ExportPlace`: on the disk of the exports, since publishing renames it."""
        return Staging(self._root, name, self._calls)

    def publish(self, staging: Staging, abandoned: Callable[[], bool]) -> Finished:
        """See `ExportPlace`."""
        export_id = id_in(staging.name)
        if export_id is None:
            raise ValueError(f"{staging.name} is no export's name")
        with self._guard():
            staging.sync()
            there = self.find_or_finish(export_id)
            if there is not None:
                return there
            final = self._root / staging.name
            if os.path.lexists(final):
                raise StateError(f"{final} exists already; it is not overwritten")
            stop_if(abandoned)
            self._mark(overtaken(orders(self._names(), self._marks()), staging.name), staging.name)
            self._seal(staging, export_id)
            found = self.find_or_finish(export_id)
        if found is None:
            raise StateError(f"export {export_id} was published before, and is gone or damaged")
        return found

    def find(self, name: str) -> Finished | None:
        """See `ExportPlace`."""
        if id_in(name) is None:
            return None
        with self._guard():
            return self._read(name)

    def open(self, name: str, path: str) -> FileOnDisk:
        """See `ExportPlace`. The file stays readable if the export is removed meanwhile."""
        if id_in(name) is None:
            raise GoneError(f"there is no export {self._root / name}")
        with self._guard():
            try:
                return FileOnDisk(open_below(self._root / name, path))
            except (FileNotFoundError, NotADirectoryError, NoRegularFileError):
                raise GoneError(f"there is no file {self._root / name / path}") from None

    def link(self, _name: str, _path: str, _kind: str, _disposition: str) -> None:
        """See `ExportPlace`: a directory serves nobody."""

    def fetch(self, name: str, directory: Path) -> None:
        """See `ExportPlace`."""
        finished = self._root / name
        try:
            content = self._manifest(name)
        except PermissionError as error:
            raise StateError(f"{finished / MANIFEST} cannot be read: {error.strerror}") from None
        except OSError:
            raise GoneError(f"there is no export {finished}") from None
        try:
            copy_out(content, str(finished), directory, lambda p, to: copy_file(finished, p, to))
        except StateError:
            if not os.path.lexists(finished / MANIFEST):
                raise GoneError(f"export {finished} has been removed meanwhile") from None
            raise

    def remove(self, name: str) -> None:
        """See `ExportPlace`."""
        if id_in(name) is None:
            raise ValueError(f"{name} is no export's name")
        with self._guard():
            hidden = self._root / hidden_name(name)
            if (self._root / name).is_symlink():
                return
            try:
                (self._root / name).rename(hidden)
            except FileNotFoundError:
                return
            sync_directory(self._root)
            shutil.rmtree(hidden, ignore_errors=True)

    def sweep(self) -> list[str]:
        """See `ExportPlace`."""
        with self._guard():
            self._tell_links()
            seals = [s for s in self._entries(self._seals) if self._is_sealed(s.name)]
            sealed = {seal.name: seal.stat().st_mtime for seal in seals}
            # A clock that runs ahead must not expire seals: the newest seal bounds the time.
            now = min(self._clock(), max(sealed.values(), default=0.0))
            for seal in seals:
                self._finish(seal.name)
                age = now - sealed[seal.name]
                if age > SEAL_DAYS * 24 * 3600 and not self._names(seal.name):
                    shutil.rmtree(seal, ignore_errors=True)
            names = self._names()
            for mark in self._entries(self._ahead):
                if not is_of(mark.name, names):
                    mark.unlink(missing_ok=True)
            return [path.name for path in sweep(self._root)]

    def probe(self) -> None:
        """See `ExportPlace`."""
        self._try(PROBE)

    def check(self) -> None:
        """See `ExportPlace`. A directory that was never there is no fault: exports create it."""
        with self._guard():
            if self._seen is None:
                return
            if not has_room(self._root):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._try(1)  # a dead disk still answers from its cache

    def _try(self, size: int) -> None:
        """Write a file of that size to the disk, and remove it. Raises StateError.

        Also tries whether entries can be created in the place's own directories.
        """
        trial = self.staging("probe")
        try:
            with self._guard():
                trial.open()
                with (trial.directory / "probe").open("xb") as file:
                    file.write(bytes(size))  # a full disk may still accept empty directories
                    file.flush()
                    os.fsync(file.fileno())
                for own in self._check_own():
                    check_writable(own)
        finally:
            trial.discard()

    def _check_own(self) -> list[Path]:
        """The directories below the root that the place keeps for itself, as far as they exist.

        Raises StateError if one is something else than a directory.
        """
        for own in (self._seals, self._ahead):
            check_no_file(own)
        return [own for own in (self._seals, self._ahead) if is_directory(own)]

    def _links(self) -> Iterator[Path]:
        """Links in the place of an export, its manifest, a seal or a leftover."""
        for path in self._entries(self._root):
            own = path in (self._seals, self._ahead)
            if own or id_in(path.name) is not None or is_hidden(path.name):
                found = path if path.is_symlink() else path / MANIFEST
                if found.is_symlink():
                    yield found
        yield from (path for path in self._entries(self._seals) if path.is_symlink())

    def _tell_links(self) -> None:
        """Log each link once an hour, however often the place is swept."""
        before, now = self._told, self._steady()
        self._told = {}
        for link in self._links():
            told = before.get(link)
            if told is None or now - told >= _TOLD_SECONDS:
                told = now
                _log.warning("export_link_ignored", path=str(link))
            self._told[link] = told

    def _seal(self, staging: Staging, export_id: str) -> None:
        """Decide the export: the staged one wins unless another is sealed already."""
        check_no_file(self._seals)
        self._seals.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        seal = self._seals / export_id
        for path in (self._seals, seal):
            check_no_link(path)
        try:
            staging.outer.rename(seal)
        except OSError as error:
            if error.errno in _TAKEN:
                return
            if error.errno in NO_RIGHT:
                raise unwritable(self._seals, error.strerror) from error
            raise
        staging.release()
        for directory in (self._seals, self._root):
            sync_directory(directory)

    def _marks(self) -> list[str]:
        return [path.name for path in self._entries(self._ahead)]

    def _mark(self, marks: Sequence[str], name: str) -> None:
        """Write the marks: these exports are older than the export of that name."""
        if not marks:
            return
        check_no_file(self._ahead)
        self._ahead.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        for mark in marks:
            flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW
            os.close(create_private(str(self._ahead / mark), flags))
        for directory in (self._ahead, self._root):
            sync_directory(directory)
        tell_overtaken(name, marks)

    def _finish(self, export_id: str) -> None:
        """Rename a sealed export to its final name, unless that happened already."""
        if not self._is_sealed(export_id):
            return
        for staged in self._entries(self._seals / export_id):
            if id_in(staged.name) is None or not is_directory(staged):
                continue  # the lock
            try:
                staged.rename(self._root / staged.name)
            except FileNotFoundError:
                continue  # another sink was faster
            except OSError as error:
                if error.errno in _IN_THE_WAY:
                    raise StateError(
                        f"{self._root / staged.name} is in the way of a finished export: move it"
                    ) from None
                raise
            sync_directory(self._root)

    def _is_sealed(self, export_id: str) -> bool:
        return is_directory(self._seals) and is_directory(self._seals / export_id)

    def _names(self, export_id: str | None = None) -> list[str]:
        """The directories named like an export (with that id), latest time first."""
        ids = ((path, id_in(path.name)) for path in self._entries(self._root))
        found = (path for path, there in ids if there is not None and export_id in (None, there))
        return sorted((path.name for path in found if is_directory(path)), reverse=True)

    def _read(
        self, name: str, skipped: Skipped = ignore_skipped, order: Order | None = None
    ) -> Finished | None:
        where = (self._root / name).absolute()
        try:
            return finished_from(name, str(where), self._manifest(name), order)
        except UsageError as error:
            skipped(str(error))
        except OSError as error:
            if is_directory(where):  # else it has just been removed
                skipped(f"{where / MANIFEST} cannot be read: {error.strerror or error}")
        return None

    def _manifest(self, name: str) -> bytes:
        """The content of a manifest. OSError if unreadable, just removed, or no export's.

        Also raises UsageError if it is too large for one.
        """
        with os.fdopen(open_below(self._root / name, MANIFEST), "rb") as file:
            return read_content(file, str((self._root / name / MANIFEST).absolute()))

    def _entries(self, directory: Path) -> list[Path]:
        if directory != self._root and not is_directory(directory):
            return []
        try:
            return sorted(directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            with self._calls.running():
                self._check_root()
                yield
        except OSError as error:
            where = f" ({error.filename})" if error.filename is not None else ""
            raise StateError(
                f"cannot use the exports in {self._root}: {error.strerror or error}{where}"
            ) from error

    def _check_root(self) -> None:
        """Raise StateError unless the root is the directory first seen."""
        try:
            root = self._root.stat()
        except (FileNotFoundError, NotADirectoryError):
            found = None
        else:
            found = (root.st_dev, root.st_ino) if stat.S_ISDIR(root.st_mode) else None
        if self._seen is None:
            self._seen = found
        if found != self._seen:
            raise StateError(
                f"{self._root} was replaced or unmounted while in use: restart the service if"
                " that is right"
            )
