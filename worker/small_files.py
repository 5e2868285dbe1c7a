"""Reads files that people name in settings: secrets, tokens, certificates, the settings themselves.

Each must be a regular file, or a link to one. A pipe in its place would block the reader for ever.
The null device stands for an empty file: `--config /dev/null` means no settings.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO, Final

LARGEST: Final = 1024 * 1024


def open_regular(path: Path) -> BinaryIO:
    """Open a regular file, or the null device; OSError for anything else. Waits for nobody."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    found = os.fstat(descriptor)
    is_null = stat.S_ISCHR(found.st_mode) and found.st_rdev == Path(os.devnull).stat().st_rdev
    if not stat.S_ISREG(found.st_mode) and not is_null:
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def read_small(path: Path) -> bytes:
    """The content of a regular file. Raises OSError, also if it is larger than `LARGEST`."""
    with open_regular(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, f"it is larger than {LARGEST} bytes", str(path))
    return content
