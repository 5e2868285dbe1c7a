"""Files of finished exports, open for reading: on a disk, or in a bucket."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Final, Protocol

from worker.errors import StateError

_CHUNK: Final = 256 * 1024
_RANGE: Final = 2 * 1024 * 1024


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
