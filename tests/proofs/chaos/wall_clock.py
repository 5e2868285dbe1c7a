"""A wall clock that can be set while a process runs.

`python -m tests.proofs.chaos.wall_clock FILE ...` runs `buddy ...` with this clock.

The launcher starts the program with the wall clock of all its code, libraries included, ahead by
as many milliseconds as the file says: eight bytes that are looked at whenever somebody asks for
the time. The steady clock is left alone, as it is where an operator or NTP sets a machine's clock.
"""

from __future__ import annotations

import mmap
import struct
import sys
import time
from pathlib import Path
from typing import Final

_NUMBER: Final = struct.Struct("<q")


class WallClock:
    """The clock of one machine, as the one who sets it sees it. It begins right."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(_NUMBER.pack(0))

    def set_ahead(self, milliseconds: int) -> None:
        """Have it be ahead of the right time, or behind; 0: right again."""
        with self.path.open("r+b") as file:
            file.write(_NUMBER.pack(milliseconds))


def follow(path: Path) -> None:
    """From now on `time.time` and `time.time_ns` say what that clock says."""
    with path.open("rb") as file:
        ahead = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    right = time.time_ns

    def time_ns() -> int:
        return right() + int(_NUMBER.unpack_from(ahead)[0]) * 1_000_000

    time.time_ns = time_ns
    time.time = lambda: time_ns() / 1e9


if __name__ == "__main__":
    follow(Path(sys.argv.pop(1)))
    # Only now: whoever takes over these functions takes over the replaced ones.
    from worker.cli.main import main

    main()
