"""What may stand in the place of a small file, and is none."""

from __future__ import annotations

import os
from pathlib import Path


def improper(path: Path, kind: str) -> Path:
    """A pipe that nobody writes, a link to a device, a directory, or a large file at `path`."""
    match kind:
        case "pipe":
            os.mkfifo(path)
        case "device":
            path.symlink_to("/dev/zero")
        case "directory":
            path.mkdir()
        case _:
            path.write_bytes(b"#" * (1 << 21))
    return path
