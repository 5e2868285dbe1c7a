"""Whether a directory of exports can be written, and its disk has room."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Final

from worker.errors import StateError
from worker.exports.places.staging import hidden_name
from worker.private import DIRECTORY_MODE

PROBE: Final = 1 << 20
"""Bytes that must be free, and that a probe writes."""
NO_RIGHT: Final = (errno.EACCES, errno.EPERM, errno.EROFS)
_FILES: Final = 32
"""Files of an export, directories included, at the least."""


def has_room(directory: Path) -> bool:
    """Whether its disk has room for a small export."""
    disk = os.statvfs(directory)
    counts_files = disk.f_files > 0  # some file systems make room for files as they need it
    return disk.f_bavail * disk.f_frsize >= PROBE and not (counts_files and disk.f_favail < _FILES)


def check_writable(directory: Path) -> None:
    """Raise StateError or OSError unless entries can be created in the directory."""
    trial = directory / hidden_name("probe")
    try:
        trial.mkdir(mode=DIRECTORY_MODE)
    except OSError as error:
        if error.errno in NO_RIGHT:
            raise unwritable(directory, error.strerror) from error
        raise
    trial.rmdir()


def unwritable(directory: Path, why: str | None) -> StateError:
    """The error for a directory in which nothing can be created."""
    return StateError(f"{directory} cannot be written ({why}): let the sink's user write to it")
