"""Below an exports directory no symbolic link is followed.

Whoever can put a link there must not choose what is read, written or removed elsewhere. The
exports directory itself may be one: that is its owner's choice.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW
_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
"""Not blocking, or opening a pipe would wait for somebody who writes to it."""


def is_directory(path: Path) -> bool:
    """Whether a directory is there, and no link to one."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def open_directory(path: Path) -> int:
    """A descriptor of a directory. OSError if the last part of the path is a link."""
    return os.open(path, _FOLDER)


def open_below(directory: Path, path: str) -> int:
    """A descriptor for reading the file at `path` below `directory`.

    OSError if the directory, the file or a directory between them is a link, or if it is no
    regular file. What is opened is what was looked at: nobody can swap it in between.
    """
    *folders, name = path.split("/")
    here = open_directory(directory)
    try:
        for folder in folders:
            inner = os.open(folder, _FOLDER, dir_fd=here)
            os.close(here)
            here = inner
        file = os.open(name, _FILE, dir_fd=here)
    finally:
        os.close(here)
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise OSError(f"{directory / path} is no file")
    return file


def link_on_the_way(directory: Path, path: str) -> bool:
    """Whether `directory`, or anything below it on the way to `path`, is a link."""
    at = directory
    return at.is_symlink() or any((at := at / part).is_symlink() for part in path.split("/"))
