"""Exports in a directory, which several sinks may share.

The seal of an export is its staging directory, renamed to `.seals/<export_id>`: a rename onto a
directory that is not empty fails, and a seal never is, since the lock file stays in it. The export
itself is then renamed out of the seal to its final name, by whoever comes first.
"""

from __future__ import annotations

import errno
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from worker.errors import StateError, UsageError
from worker.exports.layout import MANIFEST, id_in
from worker.exports.place import SEAL_DAYS, Finished, finished_from, stop_if
from worker.exports.staging import DIRECTORY_MODE, Staging, hidden_name, sweep, sync_directory

_SEALS: Final = ".seals"
_TAKEN: Final = (errno.ENOTEMPTY, errno.EEXIST)


class DirectoryPlace:
    """A `Place` that is a directory; it is made when something is published."""

    def __init__(self, root: Path, clock: Callable[[], float] = time.time) -> None:
        self._root = root
        self._seals = root / _SEALS
        self._clock = clock

    def find(self, export_id: str) -> Finished | None:
        """See `Place`."""
        with self._guard():
            self._finish(export_id)
            for name in self._names(export_id):
                found = self._read(name)
                if found is not None:
                    return found
        return None

    def sealed(self, export_id: str) -> bool:
        """See `Place`."""
        with self._guard():
            return (self._seals / export_id).exists() or bool(self._names(export_id))

    def finished(self) -> Iterator[Finished]:
        """See `Place`."""
        with self._guard():
            names = self._names()
        for name in names:
            found = self._read(name)
            if found is not None:
                yield found

    def staging(self, name: str) -> Staging:
        """See `Place`: on the same disk as the exports, since it is renamed."""
        return Staging(self._root, name)

    def publish(self, staging: Staging, abandoned: Callable[[], bool]) -> Finished:
        """See `Place`."""
        export_id = id_in(staging.name)
        if export_id is None:
            raise ValueError(f"{staging.name} is no export's name")
        with self._guard():
            staging.sync()
            there = self.find(export_id)
            if there is not None:
                return there
            final = self._root / staging.name
            if final.exists():
                raise StateError(f"{final} exists already; it is not overwritten")
            stop_if(abandoned)
            self._seal(staging, export_id)
            found = self.find(export_id)
        if found is None:
            raise StateError(f"export {export_id} was published before, and has been removed since")
        return found

    def fetch(self, name: str, directory: Path) -> None:
        """See `Place`."""
        with self._guard():
            finished = self._root / name
            if not (finished / MANIFEST).exists():
                raise StateError(f"there is no export {finished}")
            shutil.copytree(
                finished,
                directory,
                ignore=lambda folder, _: {MANIFEST} if Path(folder) == finished else set(),
                dirs_exist_ok=True,
            )
            shutil.copy2(finished / MANIFEST, directory / MANIFEST)

    def remove(self, name: str) -> None:
        """See `Place`."""
        if id_in(name) is None:
            raise ValueError(f"{name} is no export's name")
        with self._guard():
            hidden = self._root / hidden_name(name)
            try:
                (self._root / name).rename(hidden)
            except FileNotFoundError:
                return
            sync_directory(self._root)
            shutil.rmtree(hidden, ignore_errors=True)

    def sweep(self) -> list[str]:
        """See `Place`."""
        with self._guard():
            for seal in self._entries(self._seals):
                self._finish(seal.name)
                age = self._clock() - seal.stat().st_mtime
                if age > SEAL_DAYS * 24 * 3600 and not self._names(seal.name):
                    shutil.rmtree(seal, ignore_errors=True)
            return [path.name for path in sweep(self._root)]

    def _seal(self, staging: Staging, export_id: str) -> None:
        """Decide the export: what is staged is it, unless another one is sealed already."""
        self._seals.mkdir(mode=DIRECTORY_MODE, exist_ok=True)
        seal = self._seals / export_id
        try:
            staging.outer.rename(seal)
        except OSError as error:
            if error.errno in _TAKEN:
                return
            raise
        staging.release()
        for directory in (self._seals, self._root):
            sync_directory(directory)

    def _finish(self, export_id: str) -> None:
        """Give a sealed export its final name, unless it has it, or had it."""
        for staged in self._entries(self._seals / export_id):
            if id_in(staged.name) is None:
                continue  # the lock
            try:
                staged.rename(self._root / staged.name)
            except FileNotFoundError:
                continue  # another one was quicker
            except OSError as error:
                if error.errno in _TAKEN:
                    raise StateError(
                        f"{self._root / staged.name} is in the way of a finished export: move it"
                    ) from None
                raise
            sync_directory(self._root)

    def _names(self, export_id: str = "*") -> list[str]:
        """What is called like an export, the newest first."""
        paths = self._root.glob(f"*_{export_id}")
        return sorted((path.name for path in paths if id_in(path.name) is not None), reverse=True)

    def _read(self, name: str) -> Finished | None:
        directory = self._root / name
        try:
            content = (directory / MANIFEST).read_bytes()
            return finished_from(name, str(directory.absolute()), content)
        except (OSError, UsageError):  # it has just been removed, or is no export
            return None

    @staticmethod
    def _entries(directory: Path) -> list[Path]:
        try:
            return sorted(directory.iterdir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    @contextmanager
    def _guard(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise StateError(
                f"cannot use the exports in {self._root}: {error.strerror or error}"
            ) from error
