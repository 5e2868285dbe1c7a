"""Directories for owner and group only: docs/contract.md, "Configuration and logs"."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from worker.errors import StateError

DIRECTORY_MODE: Final = 0o750

_OURS: Final = {"broker", "desk", "index", "sink"}
"""The entries of a data directory."""


def make_private(path: Path) -> None:
    """Create a directory and its missing parents.

    Raises OSError, and StateError if a symbolic link leads nowhere: what it names is not created.
    """
    # `mkdir` with `parents` applies its mode to the last directory only.
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        check_link(each)
        each.mkdir(mode=DIRECTORY_MODE, exist_ok=True)


def check_link(path: Path) -> None:
    """Raise StateError if a symbolic link stands there and leads nowhere.

    What may not be looked at is no such link: whoever opens it reports that.
    """
    if os.path.islink(path) and not os.path.exists(path):  # noqa: PTH110, PTH114 -- never raise
        raise StateError(
            f"{path} is a symbolic link that leads nowhere ({path.readlink()}): make the directory "
            "that it names, or remove the link"
        )


def tighten(data: Path) -> None:
    """Remove the access of others from a data directory, which earlier releases left open.

    Only if it belongs to this user and holds nothing but our state: any other is not ours.
    """
    try:
        state = data.stat()
        names = {path.name for path in data.iterdir()}
        if state.st_mode & 0o007 and state.st_uid == os.geteuid() and names and names <= _OURS:
            data.chmod(state.st_mode & 0o770)
    except OSError:
        return  # missing, or not ours to change: its first use reports the problem
