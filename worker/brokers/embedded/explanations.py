"""What a failure of SQLite or of the file system means for whoever uses the embedded log.

Each exception has one line for a person: what failed, where, and what to do.
"""

from __future__ import annotations

import errno
import os
import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Final

from worker.brokers.embedded.disk import FAILED, NO_ROOM, refusal
from worker.brokers.embedded.seal import means_damage, reason_of
from worker.errors import BrokerUnavailable, BuddyError, DamagedLog, StateError

BUSY_SECONDS: Final = 10.0
"""How long a write waits for other processes before it gives up."""

_NO_DIRECTORY: Final = frozenset({errno.ENOTDIR, errno.EEXIST})
_NO_FILES: Final = frozenset({errno.EMFILE, errno.ENFILE})
_REFUSED: Final = frozenset({errno.EACCES, errno.EPERM})


def primary_code(error: sqlite3.Error) -> int:
    """SQLite's result code without its extension; 0 if the error has none."""
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def explain_sqlite_error(error: sqlite3.Error, directory: Path) -> BuddyError:
    """The exception for a failure of SQLite. Only after an I/O error is the outcome unknown."""
    match primary_code(error):
        case sqlite3.SQLITE_FULL:
            return _full(directory)
        case sqlite3.SQLITE_IOERR | sqlite3.SQLITE_CANTOPEN if refusal(directory) in NO_ROOM:
            return _full(directory)
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return BrokerUnavailable(
                f"Another process has held the log in {directory} for {BUSY_SECONDS:.0f} s: "
                f"look for one that hangs, then try again."
            )
        case _ if refusal(directory) in FAILED:
            return _failed(error, directory)
        case _ if means_damage(error):
            return log_damaged(reason_of(error), directory)
        case sqlite3.SQLITE_IOERR:
            return _failed(error, directory)
        case sqlite3.SQLITE_CANTOPEN if links := sorted(filter(Path.is_symlink, _files(directory))):
            return StateError(
                f"{links[0]} is a symbolic link, which SQLite does not follow: put the file itself "
                f"there, or remove the link."
            )
        case _:
            return StateError(
                f"The log in {directory} cannot be read or written ({error}): check the "
                f"directory, its rights and the limit of open files."
            )


def _files(directory: Path) -> list[Path]:
    """The files beside the log's own; none if they cannot be listed."""
    with suppress(OSError):
        return [*directory.glob("*.sqlite-*")]
    return []


def _failed(what: object, directory: Path) -> BrokerUnavailable:
    return BrokerUnavailable(
        f"The disk of {directory} failed ({what}): check it, the quota, and the limit of "
        f"file sizes ('ulimit -f', LimitFSIZE of systemd), then try again."
    )


def log_damaged(what: str, directory: Path) -> DamagedLog:
    """The exception for a log that is damaged as a whole."""
    return DamagedLog(
        f"The log in {directory} is damaged or not a log ({what}): 'buddy log verify' tells more, "
        f"if it can be opened; else put a copy back, or move the directory away."
    )


def explain_os_error(error: OSError, directory: Path, *, is_open: bool = False) -> BuddyError:
    """The exception for a failure of the file system.

    A log that `is_open` and loses its rights is an outage: they can be given back.
    """
    if error.errno in NO_ROOM:
        return _full(directory)
    if error.errno in FAILED:
        return _failed(error.strerror, directory)
    if error.errno in _NO_FILES:
        return StateError(
            f"{directory} cannot be used for the log ({error.strerror}): raise the limit of open "
            f"files ('ulimit -n', LimitNOFILE of systemd)."
        )
    if error.errno == errno.EFBIG:
        return StateError(
            f"A file in {directory} would be larger than this process may make it: raise the limit "
            f"of file sizes ('ulimit -f', LimitFSIZE of systemd)."
        )
    if is_open and error.errno in _REFUSED:
        return BrokerUnavailable(
            f"{error.filename or directory} may not be used ({error.strerror}): give this "
            f"user its rights to {directory}."
        )
    obstacle = _obstacle(error, directory)
    if obstacle is not None:
        return StateError(
            f"{obstacle} is in the way of the log in {directory} ({error.strerror}): move it away."
        )
    return StateError(
        f"{directory} cannot be used for the log ({error.strerror or error}): make it a directory "
        f"that this user may write to."
    )


def _obstacle(error: OSError, directory: Path) -> Path | None:
    """What stands below the directory in the place of a directory, or of a file; None if unknown.

    `members` may be a file, for example, or `upkeep.lock` a directory or a link.
    """
    if not isinstance(error.filename, str) or directory not in Path(error.filename).parents:
        return None
    path = Path(error.filename)
    if error.errno in (errno.EISDIR, errno.ELOOP):
        return path
    if error.errno in _NO_DIRECTORY:
        above = (p for p in (path, *path.parents) if directory in p.parents)
        return next((p for p in above if os.path.lexists(p) and not p.is_dir()), None)
    return None


def not_a_directory(directory: Path) -> BuddyError:
    """The exception for a file in the place of the log's directory."""
    return StateError(
        f"{directory} is a file: name a directory for the log, or move the file away."
    )


def log_missing(directory: Path) -> BuddyError:
    """The exception for a directory without a log."""
    return BrokerUnavailable(
        f"There is no log in {directory}: is --broker right? The first 'buddy run' or 'buddy "
        f"topics create' makes it."
    )


def _full(directory: Path) -> BuddyError:
    return StateError(
        f"The disk of {directory} is full: make room; nothing of this write was stored."
    )
