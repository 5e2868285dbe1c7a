"""The three standard streams, as any shell may leave them: closed, full, gone, not UTF-8.

Standard output is a command's result: a failed write is an error with its own line and exit code.
Standard error is for people and logs. A service must not end because nobody can read its log, so
failed writes to standard error are dropped.
"""

from __future__ import annotations

import errno
import io
import os
import sys

from worker.errors import OutputError, ReaderGoneError


class _Output(io.FileIO):
    """Raises OutputError at the first failed write. Output that is still buffered is dropped."""

    _failed = False

    def write(self, data: object) -> int:
        """Write as many bytes as possible, and return how many; dropped bytes count as written."""
        if self._failed:
            return memoryview(data).nbytes  # type: ignore[arg-type]
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except OSError as error:
            self._failed = True
            if error.errno == errno.EPIPE:
                raise ReaderGoneError("nobody reads standard output any more") from None
            raise OutputError(f"standard output {why(error, 'written')}") from None


class _Complaints(io.FileIO):
    """Drops output that cannot be written."""

    def write(self, data: object) -> int:
        """Write as many bytes as possible, and return how many; dropped bytes count as written."""
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


def prepare() -> None:
    """Make this process's streams behave as described above. Call once, before anything else."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # Otherwise the next opened file, such as a database, would get this number and the
            # stream's output. The wrong access mode makes any use fail, as on a closed stream.
            wrong = os.O_RDONLY if number else os.O_WRONLY
            os.open(os.devnull, wrong)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Complaints(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, before: object) -> io.TextIOWrapper:
    """Text over a descriptor, in the encoding of `before`. Characters it lacks are escaped."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=True
    )


def why(error: OSError, done: str) -> str:
    """Why a stream cannot be used, as words that follow the stream's name."""
    if error.errno == errno.EBADF:
        return "is closed"
    return f"cannot be {done}: {error.strerror}"
