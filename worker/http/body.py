"""The body of a request as records: read as a stream, so a body of any length takes little memory.

The readers of `worker.files` are synchronous, so they run in threads of their own. A thread waits
for the client while it has nothing to read; the number of threads bounds the uploads at one time.
"""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Final

from starlette.requests import ClientDisconnect, Request

from worker.files import FileRecord, as_utf8, read_ndjson
from worker.files.encodings import ChunkStream
from worker.files.json_document import read_plain
from worker.http.metrics import HttpMetrics
from worker.http.problems import Problem

MOST_UPLOADS: Final = 16
"""Bodies that are read at one time, each by a thread."""
CLIENT_SECONDS: Final = 30.0
"""How long a client may send nothing in the middle of a body."""
LEAST_RATE: Final = 256
"""Bytes a second, since the body was first asked for."""
_FREELY_UNPACKED: Final = 1024 * 1024
"""Bytes that any gzip may unpack to; beyond it no more than 200 times its size."""
BATCH_RECORDS: Final = 1_000
BATCH_BYTES: Final = 4 * 1024 * 1024
"""The records that are published together, and so are in memory, for each upload."""

NDJSON: Final = frozenset({"application/x-ndjson", "application/ndjson", "application/jsonl"})
_JSON: Final = frozenset(
    {"", "application/json", "application/octet-stream", "application/x-www-form-urlencoded"}
)
"""Types that are read as JSON. The last is what curl says if it is told nothing."""
_NAME: Final = "body"
"""The name of the body in the errors of the readers: `body:3: …`."""


class Uploads:
    """Reads bodies in its threads, at most `MOST_UPLOADS` at one time."""

    def __init__(self, metrics: HttpMetrics) -> None:
        self._metrics = metrics
        self._pool = ThreadPoolExecutor(MOST_UPLOADS, "upload")
        self._busy = 0

    def close(self) -> None:
        """Start no more threads. Requests must have ended."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def batches(
        self, request: Request, entity: str, limit: int
    ) -> AsyncIterator[AsyncIterator[list[FileRecord]]]:
        """The records of a body in batches. A record beyond `limit` bytes comes as oversize.

        Raises Problem: 408, 415, 429; and while reading UsageError for a broken frame, and
        ClientDisconnect.
        """
        check_type(request)
        if self._busy >= MOST_UPLOADS:
            raise Problem(
                429,
                "too_many_uploads",
                f"{MOST_UPLOADS} bodies are being read: try again",
                headers={"Retry-After": "1"},
            )
        self._count(1)
        chunks = _Chunks(request.stream(), asyncio.get_running_loop())
        try:
            yield self._read(batched(_records(chunks, request, entity, limit)))
        finally:
            chunks.close()
            self._count(-1)

    def _count(self, change: int) -> None:
        self._busy += change
        self._metrics.uploads(self._busy)

    async def _read(self, batches: Iterator[list[FileRecord]]) -> AsyncIterator[list[FileRecord]]:
        loop = asyncio.get_running_loop()
        while True:
            batch: list[FileRecord] | None
            batch = await loop.run_in_executor(self._pool, next, batches, None)
            if batch is None:
                return
            yield batch


def check_type(request: Request) -> None:
    """Raise Problem 415 if the body is of a type or an encoding that is not read."""
    kind = media_type(request)
    if kind not in NDJSON | _JSON:
        raise Problem(
            415,
            "unsupported_type",
            "the body must be application/json or application/x-ndjson; 'buddy send' reads CSV"
            " and XLSX",
        )
    if request.headers.get("content-encoding", "identity").lower() not in ("identity", "gzip"):
        raise Problem(415, "unsupported_encoding", "the body may be compressed with gzip only")


def is_json(request: Request) -> bool:
    """Whether the body is read as JSON, and is not compressed."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    return media_type(request) in _JSON and encoding == "identity"


def media_type(request: Request) -> str:
    """The media type of the body, without parameters; empty if the client names none."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def batched(records: Iterator[FileRecord]) -> Iterator[list[FileRecord]]:
    """Split records into batches, bounded in number and in bytes."""
    batch: list[FileRecord] = []
    size = 0
    for record in records:
        batch.append(record)
        size += len(record.value)
        if len(batch) >= BATCH_RECORDS or size >= BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _records(
    chunks: Iterator[bytes], request: Request, entity: str, limit: int
) -> Iterator[FileRecord]:
    text = as_utf8(ChunkStream(chunks), _NAME, freely=_FREELY_UNPACKED)
    if media_type(request) in NDJSON:
        yield from read_ndjson(text, entity, _NAME, limit=limit)
    else:
        yield from read_plain(text, entity, _NAME, limit=limit)


class _Chunks:
    """The chunks of a body, for a thread: each is awaited in the event loop."""

    def __init__(self, stream: AsyncIterator[bytes], loop: asyncio.AbstractEventLoop) -> None:
        self._stream = stream
        self._loop = loop
        self._closed = threading.Event()
        self._began = math.inf
        self._size = 0
        self._awaited: Future[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._closed.is_set():
            raise ClientDisconnect
        self._awaited = asyncio.run_coroutine_threadsafe(self._receive(), self._loop)
        if self._closed.is_set():
            self._awaited.cancel()
        if chunk := self._awaited.result():
            return chunk
        raise StopIteration

    async def _receive(self) -> bytes:
        """The next chunk that is not empty; empty at the end."""
        self._began = min(self._began, self._loop.time())
        try:
            async with asyncio.timeout(CLIENT_SECONDS):
                async for chunk in self._stream:
                    if chunk:
                        self._check_rate(len(chunk))
                        return chunk
        except TimeoutError:
            raise Problem(
                408, "body_too_slow", f"nothing came for {CLIENT_SECONDS:.0f} s"
            ) from None
        return b""

    def _check_rate(self, size: int) -> None:
        """Raise Problem 408 if the body comes so slowly that it only occupies a thread."""
        self._size += size
        seconds = self._loop.time() - self._began
        if seconds > CLIENT_SECONDS and self._size < seconds * LEAST_RATE:
            raise Problem(408, "body_too_slow", f"less than {LEAST_RATE} bytes a second came")

    def close(self) -> None:
        """Release the thread, if it still waits. Call this in the event loop."""
        self._closed.set()
        if self._awaited is not None:
            self._awaited.cancel()
