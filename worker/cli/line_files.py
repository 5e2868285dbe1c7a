"""Files of lines that commands write. Their errors are one line."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO, Final

from worker.errors import StateError, UsageError

_FILE_MODE: Final = 0o640
_DIRECTORY_MODE: Final = 0o750
"""For owner and group only: records hold personal data."""
_ONE_LINE: Final = bytes.maketrans(b"\r\n", b"  ")


def one_line(record: bytes) -> bytes:
    """A JSON record on one line. No data changes: line ends are between its tokens only."""
    return record.translate(_ONE_LINE)


def new_directory(path: Path) -> None:
    """Make a directory unless it is there. Raises UsageError if it is not empty, StateError."""
    try:
        path.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
        full = any(path.iterdir())
    except OSError as error:
        raise _unwritable(path, error) from None
    if full:
        raise UsageError(f"{path} is not empty: name a new or an empty directory")


class LineFiles:
    """Open files by path. Each method raises StateError, with one line."""

    def __init__(self) -> None:
        self._files: dict[Path, BinaryIO] = {}

    def open(self, path: Path, *, new: bool = False) -> None:
        """Create the file, or empty it. A `new` one must not be there."""
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | (os.O_EXCL if new else os.O_TRUNC)
            self._files[path] = os.fdopen(os.open(path, flags, _FILE_MODE), "wb")
        except OSError as error:
            raise _unwritable(path, error) from None

    def write(self, path: Path, line: bytes) -> None:
        """Add a line to the file. If it is not open it is created first, and must not be there."""
        if path not in self._files:
            self.open(path, new=True)
        try:
            self._files[path].write(line + b"\n")
        except OSError as error:
            raise _unwritable(path, error) from None

    def close(self) -> None:
        """Flush and close all files. Raises the first error after all are closed."""
        failed: StateError | None = None
        for path, file in self._files.items():
            try:
                file.close()
            except OSError as error:
                failed = failed or _unwritable(path, error)
        if failed is not None:
            raise failed


def _unwritable(path: Path, error: OSError) -> StateError:
    return StateError(f"{path} cannot be written: {error.strerror}")
