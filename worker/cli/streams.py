"""The three standard streams, whatever a shell has made of them: closed, full, gone, not UTF-8.

Standard output is what was asked for: that it cannot be written is an error with a line and an
exit code of its own. Standard error is for people and logs: a service must not end because nobody
can read its log, so what cannot be written there is dropped.
"""

from __future__ import annotations

import errno
import io
import os
import sys

from worker.errors import OutputError, ReaderGoneError


class _Output(io.FileIO):
    """Raises OutputError once; after it nobody is interested in what is still in a buffer."""

    _failed = False

    def write(self, data: object) -> int:
        """Write as much as goes."""
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
    """Drops what cannot be written."""

    def write(self, data: object) -> int:
        """Write as much as goes."""
        try:
            return super().write(data) or 0  # type: ignore[arg-type]
        except OSError:
            return memoryview(data).nbytes  # type: ignore[arg-type]


def prepare() -> None:
    """Make the streams of this process behave as the module says. Once, before anything else."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            # Else the next file that is opened, a database perhaps, would be written to as if it
            # were the stream. Opened the wrong way round, so that a use fails as on a closed one.
            wrong = os.O_RDONLY if number else os.O_WRONLY
            os.open(os.devnull, wrong)
    sys.stdin = sys.stdin or open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stdout = _text(_Output(1, "w", closefd=False), sys.stdout)
    sys.stderr = _text(_Complaints(2, "w", closefd=False), sys.stderr)


def _text(raw: io.FileIO, before: object) -> io.TextIOWrapper:
    """Text over a descriptor, in the encoding that was chosen; what it cannot say is escaped."""
    encoding = getattr(before, "encoding", None) or "utf-8"
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding, errors="backslashreplace", line_buffering=True
    )


def why(error: OSError, done: str) -> str:
    """What keeps a stream from being used, after its name."""
    if error.errno == errno.EBADF:
        return "is closed"
    return f"cannot be {done}: {error.strerror}"
