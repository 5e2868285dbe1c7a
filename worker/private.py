"""Directories for owner and group only: docs/contract.md, "Configuration and logs"."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

DIRECTORY_MODE: Final = 0o750

_OURS: Final = {"broker", "index", "sink"}
"""What the data directory holds."""


def make_private(path: Path) -> None:
    """Make a directory if it is missing, and what is missing above it. Raises OSError."""
    # `mkdir` gives its mode to the last one alone.
    missing = [each for each in (path, *path.parents) if not each.exists()]
    for each in reversed(missing):
        each.mkdir(mode=DIRECTORY_MODE, exist_ok=True)


def tighten(data: Path) -> None:
    """Close a data directory to others that an earlier release left open to them.

    Only one that is this user's and holds nothing but our state: anything else is not ours.
    """
    try:
        state = data.stat()
        names = {path.name for path in data.iterdir()}
        if state.st_mode & 0o007 and state.st_uid == os.geteuid() and names and names <= _OURS:
            data.chmod(state.st_mode & 0o770)
    except OSError:
        return  # missing, or not ours to change: whoever needs it will say so
