"""Bodies in batches: bounded in records and in bytes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from worker.files import FileRecord
from worker.http.body import BATCH_BYTES, BATCH_RECORDS, batched


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
