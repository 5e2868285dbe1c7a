"""What `check` and `send` read besides files: standard input; and what they do not read."""

from __future__ import annotations

import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from worker.cli.streams import why
from worker.errors import UsageError
from worker.files.encodings import ChunkStream

_SPECIAL: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)
_DESCRIPTORS: Final = (Path("/dev/fd"), Path("/proc/self/fd"))


def standard_input() -> ChunkStream:
    """What comes in by standard input, as it comes. Reading raises UsageError where it cannot."""
    return ChunkStream(_input_chunks())


def _input_chunks() -> Iterator[bytes]:
    # read1 gives what a pipe has; read would wait until its buffer is full.
    read = getattr(sys.stdin.buffer, "read1", sys.stdin.buffer.read)
    try:
        while data := read(1 << 20):
            yield data
    except OSError as error:
        raise UsageError(f"standard input {why(error, 'read')}") from None


def refuse_special(name: str) -> None:
    """Raises UsageError for a path that cannot be looked at, and for one that never ends.

    A file is opened more than once. A pipe that the shell has made for `<(command)` is read once
    where --entity says what it holds.
    """
    if not name:
        raise UsageError("'' is no path")
    path = Path(name)
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return  # whoever reads it says so
    except OSError as error:
        raise UsageError(f"{path}: cannot be read: {error.strerror}") from None
    if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
        return
    if stat.S_ISFIFO(mode) and path.parent in _DESCRIPTORS:
        return
    kind = next((name for is_kind, name in _SPECIAL if is_kind(mode)), "no file")
    raise UsageError(f"{path}: is {kind}: name a file, or - for standard input")
