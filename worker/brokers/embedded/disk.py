"""The disk under the embedded log: whether it has room, and whether it answers at all.

SQLite reports some full disks as I/O errors, and a dying disk as a damaged file. So the disk is
asked before either is concluded. It is asked with a small new file: closing the log's own file
would drop the locks that SQLite holds on it.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
from pathlib import Path
from typing import Final

from worker.brokers.embedded.seal import means_damage

NO_ROOM: Final = frozenset({errno.ENOSPC, errno.EDQUOT})
FAILED: Final = frozenset({errno.EIO, errno.ENXIO, errno.ENODEV})
_PROBE_BYTES: Final = 64 * 1024


def refusal(directory: Path) -> int | None:
    """The error number with which a small write fails now, or None."""
    try:
        with tempfile.TemporaryFile(dir=directory, buffering=0) as probe:
            probe.write(b"x" * _PROBE_BYTES)
            os.fsync(probe.fileno())
    except OSError as error:
        return error.errno
    return None


def is_damage(error: sqlite3.Error, connection: sqlite3.Connection) -> bool:
    """Whether the file is damaged where it was read; not if its disk fails."""
    return means_damage(error) and not fails(connection)


def fails(connection: sqlite3.Connection) -> bool:
    """Whether the disk of the open database does not answer."""
    ((_, _, file), *_) = connection.execute("PRAGMA database_list").fetchall()
    return refusal(Path(file).parent) in FAILED
