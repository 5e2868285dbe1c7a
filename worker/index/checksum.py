"""A checksum in a file beside a database that was closed in order: it finds any later change."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from typing import Final

from worker.small_files import open_regular, read_small

_SEAL: Final = "checksum"
_CHUNK: Final = 1 << 20


def seal(file: Path, length: int, mode: int) -> None:
    """Write the checksum of the first `length` bytes beside the file. Raises OSError.

    It is there whole or not at all.
    """
    line = b"%d %08x\n" % (length, _checksum(file, length))
    fresh = file.with_name(f"{_SEAL}.new")
    fresh.unlink(missing_ok=True)  # also a link, which must not be written through
    handle = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        os.write(handle, line)
        os.fsync(handle)
    finally:
        os.close(handle)
    fresh.replace(file.with_name(_SEAL))


def unseal(file: Path) -> None:
    """Remove the checksum; call before the file changes. Raises OSError."""
    file.with_name(_SEAL).unlink(missing_ok=True)


def is_sealed(file: Path) -> bool:
    """Whether there is a checksum beside the file."""
    return file.with_name(_SEAL).exists()


def mismatch(file: Path) -> str | None:
    """Why a sealed file is not as it was when it was sealed; None if it is. Raises OSError."""
    said = read_small(file.with_name(_SEAL))
    if not file.exists():
        return "it is missing"
    length, _, checksum = said.partition(b" ")
    if not length.isdigit() or b"%08x\n" % _checksum(file, int(length)) != checksum:
        return "its checksum is another"
    return None


def _checksum(file: Path, length: int) -> int:
    """The CRC-32 of the first `length` bytes, or of all bytes if the file is shorter."""
    checksum = 0
    with open_regular(file) as content:
        while length > 0 and (chunk := content.read(min(_CHUNK, length))):
            checksum = zlib.crc32(chunk, checksum)
            length -= len(chunk)
    return checksum
