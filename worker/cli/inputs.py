"""Inputs of `check` and `send`: reads standard input, and refuses special files.

Also collects mismatches between what files declare and what they hold.
"""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.cli.console import count_of, say
from worker.cli.streams import why
from worker.errors import UsageError
from worker.files import Mismatch, Notice
from worker.files.encodings import ChunkStream

_SPECIAL: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_DESCRIPTORS: Final = (Path("/dev/fd"), Path("/proc/self/fd"))


class Mismatches:
    """Collects mismatches, each once, and gives `notice` the line of each."""

    def __init__(self, notice: Notice) -> None:
        self.found: list[Mismatch] = []
        self._notice = notice

    def add(self, mismatch: Mismatch) -> None:
        """Add what a file states and is not so."""
        if mismatch not in self.found:
            self.found.append(mismatch)
            self._notice(mismatch.message)

    def print_count(self) -> None:
        """Print how many there are, if there are any, on standard output."""
        if self.found:
            found = count_of(len(self.found), "mismatch", "mismatches")
            say(f"{found} between files and what is stated of them: see standard error.", "error")


def standard_input() -> ChunkStream:
    """Standard input in chunks, as they arrive. Reading raises UsageError if it fails."""
    return ChunkStream(_input_chunks())


def _input_chunks() -> Iterator[bytes]:
    # read1 returns the bytes that a pipe holds; read would wait for a full buffer.
    read = getattr(sys.stdin.buffer, "read1", sys.stdin.buffer.read)
    try:
        while data := read(1 << 20):
            yield data
    except OSError as error:
        raise UsageError(f"standard input {why(error, 'read')}") from None


def refuse_special(name: str) -> None:
    """Raises UsageError for a pipe, a socket or a device, and for a path that cannot be inspected.

    Files are opened more than once, and special files may never end. A pipe that the shell makes
    for `<(command)` is accepted: with --entity, it is read only once.
    """
    if not name:
        raise UsageError("'' is no path")
    path = Path(name)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return  # the reader reports it
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    if stat.S_ISFIFO(mode) and path.parent in _DESCRIPTORS:
        return
    kind = next((name for is_kind, name in _SPECIAL if is_kind(mode)), "no file")
    raise UsageError(f"{path}: is {kind}: name a file, or - for standard input")
