"""Files of exports as responses: whole, a range, or all of them as one zip.

Files are read in threads, so neither a slow disk nor a bucket stops the event loop. A file of a
directory stays open while it is sent: removing its export does not cut it off.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send
from zipstream import ZipStream

from worker.exports.places.place import OpenFile
from worker.http.metrics import HttpMetrics
from worker.http.problems import Problem

T = TypeVar("T")

_THREADS: Final = 16
_RANGE: Final = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


class Downloads:
    """Runs what blocks in threads, and sends files."""

    def __init__(self, metrics: HttpMetrics) -> None:
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(_THREADS, "download")
        self._looking = ThreadPoolExecutor(_THREADS, "look")
        """Of its own: downloads from a bucket that is away wait for minutes."""

    def close(self) -> None:
        """Start no more threads. Requests must have ended."""
        for pool in (self._pool, self._looking):
            pool.shutdown(wait=False, cancel_futures=True)

    async def run(self, function: Callable[[], T]) -> T:
        """The result of a function that blocks."""
        return await asyncio.get_running_loop().run_in_executor(self._looking, function)

    def file(
        self, request: Request, file: OpenFile, etag: str, headers: Mapping[str, str]
    ) -> Response:
        """The file, or the range of it that the client asks for; closes it at the end.

        `etag` is the SHA-256 of the file, or of what it stands for. 304 if the client has it, 416
        if there is no such range.
        """
        sent = {**headers, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if is_known(request, etag):
            file.close()
            return Response(status_code=304, headers=sent)
        try:
            wanted = range_of(request, etag, file.size)
        except Problem:
            file.close()
            raise
        start, stop = wanted or (0, file.size)
        sent["Content-Length"] = str(stop - start)
        if wanted is not None:
            sent["Content-Range"] = f"bytes {start}-{stop - 1}/{file.size}"
        status = 200 if wanted is None else 206
        return self._answer(request, file.chunks(start, stop), file.close, status, sent)

    def zip(
        self, request: Request, files: Sequence[tuple[str, OpenFile]], headers: Mapping[str, str]
    ) -> Response:
        """These files as one zip, stored without compression; closes them at the end."""
        archive = ZipStream(sized=True)
        for path, file in files:
            archive.add(file.chunks(0, file.size), path, size=file.size)
        sent = {**headers, "Content-Length": str(len(archive))}

        def close() -> None:
            for _, file in files:
                file.close()

        return self._answer(request, iter(archive), close, 200, sent)

    def _answer(
        self,
        request: Request,
        chunks: Iterator[bytes],
        close: Callable[[], None],
        status: int,
        headers: Mapping[str, str],
    ) -> Response:
        if request.method == "HEAD":
            close()
            return Response(status_code=status, headers=dict(headers))
        sent = _Chunks(self._pool, chunks, close, self._metrics.delivered)
        return _Download(sent, status, headers)


def is_known(request: Request, etag: str) -> bool:
    """Whether the client has this version already (`If-None-Match`)."""
    known = request.headers.get("if-none-match", "")
    return known.strip() == "*" or f'"{etag}"' in [
        one.strip().removeprefix("W/") for one in known.split(",")
    ]


def range_of(request: Request, etag: str, size: int) -> tuple[int, int] | None:
    """The range of bytes that the client asks for, as start and stop; None for the whole.

    Several ranges, and ranges of another version (`If-Range`), are answered with the whole. Raises
    Problem 416 if the file has no byte of the range.
    """
    match = _RANGE.fullmatch(request.headers.get("range", "").strip())
    if match is None or not (match[1] or match[2]):
        return None
    if request.headers.get("if-range", f'"{etag}"').strip() != f'"{etag}"':
        return None
    if match[1]:
        start = int(match[1])
        stop = min(int(match[2]) + 1, size) if match[2] else size
        if match[2] and int(match[2]) < start:
            return None
    else:
        start, stop = max(size - int(match[2]), 0), size
    if start >= stop:
        headers = {"Content-Range": f"bytes */{size}"}
        raise Problem(416, "no_such_range", f"the file has {size} bytes", headers=headers)
    return start, stop


class _Chunks:
    """Chunks that are read in a thread. `close` closes nothing under a thread that still reads."""

    def __init__(
        self,
        pool: ThreadPoolExecutor,
        chunks: Iterator[bytes],
        close: Callable[[], None],
        sent: Callable[[int], None],
    ) -> None:
        """`sent` is told the size of each chunk that was sent."""
        self._pool = pool
        self._chunks = chunks
        self._close = close
        self._sent = sent
        self._reading: Future[bytes] | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while True:
            self._reading = self._pool.submit(next, self._chunks, b"")
            chunk = await asyncio.wrap_future(self._reading)
            if not chunk:
                return
            yield chunk
            self._sent(len(chunk))

    def close(self) -> None:
        if self._reading is None or self._reading.done():
            self._close()
        else:
            self._reading.add_done_callback(lambda _: self._close())


class _Download(StreamingResponse):
    def __init__(self, chunks: _Chunks, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(chunks, status, headers)
        self._file = chunks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._file.close()
