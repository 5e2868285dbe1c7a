"""Files of finished exports, open for reading: on a disk, or in a bucket."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Protocol

from worker.errors import StateError
from worker.exports.places.links import link_on_the_way, open_below
from worker.exports.places.staging import create_private

_CHUNK: Final = 256 * 1024
_RANGE: Final = 2 * 1024 * 1024
_COPY_BYTES: Final = 1 << 20


class _Ranges(Protocol):
    def read_range(self, name: str, start: int, stop: int) -> bytes: ...


class FileOnDisk:
    """An `OpenFile` on a disk."""

    def __init__(self, descriptor: int) -> None:
        self.size = os.fstat(descriptor).st_size
        self._descriptor = descriptor

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """See `OpenFile`."""
        while start < stop:
            try:
                data = os.pread(self._descriptor, min(_CHUNK, stop - start), start)
            except OSError as error:
                raise StateError(f"a file cannot be read: {error.strerror}") from None
            if not data:
                raise StateError("a file ends early: somebody has changed it")
            yield data
            start += len(data)

    def close(self) -> None:
        """See `OpenFile`."""
        os.close(self._descriptor)


class FileInBucket:
    """An `OpenFile` in a bucket, read a range at a time: each range is retried by itself."""

    def __init__(self, bucket: _Ranges, name: str, size: int) -> None:
        self.size = size
        self._bucket = bucket
        self._name = name

    def chunks(self, start: int, stop: int) -> Iterator[bytes]:
        """See `OpenFile`."""
        while start < stop:
            data = self._bucket.read_range(self._name, start, min(stop, start + _RANGE))
            if not data:
                raise StateError("an object ends early: somebody has changed it")
            for first in range(0, len(data), _CHUNK):
                yield data[first : first + _CHUNK]
            start += len(data)

    def close(self) -> None:
        """See `OpenFile`."""


def copy_file(finished: Path, path: str, target: Path) -> str:
    """Copy one file of a finished export; returns the SHA-256 of the copy.

    Raises StateError if it cannot be read, or is a link.
    """
    try:
        source = open_below(finished, path)
    except OSError as error:
        why = "a symbolic link is never followed"
        problem = why if link_on_the_way(finished, path) else error.strerror or str(error)
        raise StateError(f"{finished / path} cannot be read: {problem}") from None
    digest = hashlib.sha256()
    with os.fdopen(source, "rb") as original:
        copy = create_private(str(target), os.O_WRONLY | os.O_CREAT | os.O_EXCL)
        with os.fdopen(copy, "wb") as file:
            while data := original.read(_COPY_BYTES):
                digest.update(data)
                file.write(data)
    return digest.hexdigest()
