"""No symbolic link below an exports directory is followed.

Whoever can create a link there must not choose what is read, written or removed elsewhere. The
exports directory itself may be a link: that is its owner's choice.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final

from worker.errors import StateError

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
"""Non-blocking: opening a pipe would otherwise wait for a writer."""


class NoRegularFileError(OSError):
    """What stands there is a link, a directory, a pipe or a device."""


def is_directory(path: Path) -> bool:
    """Whether `path` is a directory, and not a link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def open_directory(path: Path) -> int:
    """A descriptor of a directory. OSError if the last part of the path is a link."""
    return os.open(path, _FOLDER)


def open_below(directory: Path, path: str) -> int:
    """A descriptor for reading the file at `path` below `directory`.

    Raises OSError if `directory` or a directory below it is a link, and NoRegularFileError if the
    file is a link or not a regular one. The checks are made on open descriptors, so nothing can be
    swapped in.
    """
    *folders, name = path.split("/")
    here = open_directory(directory)
    try:
        for folder in folders:
            inner = os.open(folder, _FOLDER, dir_fd=here)
            os.close(here)
            here = inner
        file = os.open(name, _FILE, dir_fd=here)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NoRegularFileError(f"{directory / path} is a link") from None
        raise
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise NoRegularFileError(f"{directory / path} is no file")
    return file


def link_on_the_way(directory: Path, path: str) -> bool:
    """Whether `directory`, or any part of `path` below it, is a link."""
    at = directory
    return at.is_symlink() or any((at := at / part).is_symlink() for part in path.split("/"))


def check_no_link(path: Path) -> None:
    """Raise StateError if a link stands there."""
    if path.is_symlink():
        raise StateError(f"{path} is a symbolic link, which is never followed: remove it")


def check_no_file(path: Path) -> None:
    """Raise StateError if something stands there that is no directory."""
    check_no_link(path)
    if os.path.lexists(path) and not is_directory(path):
        raise StateError(f"{path} is no directory: move it away, the sink makes it anew")
