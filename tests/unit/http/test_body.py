"""Bodies in batches: bounded in records and in bytes."""

from __future__ import annotations

import asyncio
import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.types import Message

from worker.errors import UsageError
from worker.files import FileRecord
from worker.http.body import BATCH_BYTES, BATCH_RECORDS, CLIENT_SECONDS, Uploads, batched
from worker.http.metrics import HttpMetrics
from worker.ops.instruments import Instruments


def of(sizes: list[int]) -> list[FileRecord]:
    return [FileRecord("users", "body", n, b"x" * size) for n, size in enumerate(sizes, 1)]


@given(
    st.lists(st.sampled_from([0, 1, BATCH_BYTES // 3, BATCH_BYTES, BATCH_BYTES + 1]), max_size=9)
)
def test_every_record_comes_once_in_order_and_bounded(sizes: list[int]) -> None:
    records = of(sizes)
    batches = list(batched(iter(records)))
    assert [record for batch in batches for record in batch] == records
    assert all(batches), "no batch is empty"
    for batch in batches:
        assert sum(len(record.value) for record in batch[:-1]) < BATCH_BYTES


def test_a_batch_has_no_more_records_than_it_may() -> None:
    batches = list(batched(iter(of([1] * (2 * BATCH_RECORDS + 1)))))
    assert [len(batch) for batch in batches] == [BATCH_RECORDS, BATCH_RECORDS, 1]


async def test_the_rate_counts_from_when_the_body_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before, a request may wait for something else, such as its receipts."""
    loop = asyncio.get_running_loop()
    now, ahead = loop.time, 0.0
    monkeypatch.setattr(loop, "time", lambda: now() + ahead)

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"{}"}

    request = Request({"type": "http", "method": "POST", "headers": []}, receive)
    uploads = Uploads(HttpMetrics(Instruments(), []))
    async with uploads.batches(request, "users", 100) as batches:
        ahead = 2 * CLIENT_SECONDS
        found = [record.value async for batch in batches for record in batch]
    uploads.close()
    assert found == [b"{}"]


async def test_a_gzip_that_is_a_bomb_is_given_up_early() -> None:
    packed = gzip.compress(b"{}\n" * 1_000_000)
    uploads = Uploads(HttpMetrics(Instruments(), []))
    messages = [{"type": "http.request", "body": packed}]

    async def receive() -> Message:
        return messages.pop()

    headers = [(b"content-type", b"application/x-ndjson"), (b"content-encoding", b"gzip")]
    request = Request({"type": "http", "method": "POST", "headers": headers}, receive)
    read = 0

    async def drain() -> None:
        nonlocal read
        async with uploads.batches(request, "users", 1000) as batches:
            async for batch in batches:
                read += len(batch)

    with pytest.raises(UsageError, match="unpacks to more than 200 times"):
        await drain()
    uploads.close()
    assert read * 3 <= 1024 * 1024
