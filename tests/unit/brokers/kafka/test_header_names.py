"""Names of headers that are not UTF-8: their records are read like all others."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import islice
from typing import Any, NamedTuple

import pytest
from aiokafka.consumer import fetcher
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import (
    DefaultRecordBatch,
    _DefaultRecordBatchBuilderPy,
    _DefaultRecordBatchPy,
)
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from hypothesis import example, given
from hypothesis import strategies as st

from worker.brokers.kafka.fetched import OrderedBatches, ReadableRecords
from worker.brokers.kafka.header_names import KeptRecords, is_about_a_name
from worker.stream import Partition

HERE = TopicPartition("t", 0)
CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
ABORTS, COMMITS = 7, 8
"""Producers: the transactions of the first are aborted, those of the other are not."""
_ATTRIBUTES, _CRC, _CONTROL = 21, 17, 0x20


class Name(str):
    """A header's name that is sent as these bytes."""

    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return bytes.fromhex(self)


class Batch(NamedTuple):
    """The names of the headers of its records, and who wrote it; without names, a marker."""

    names: Sequence[bytes]
    producer: int = -1
    codec: int = 0

    @property
    def length(self) -> int:
        return max(1, len(self.names))

    @property
    def is_read(self) -> bool:
        return bool(self.names) and self.producer != ABORTS

    def at(self, first: int) -> bytes:
        builder = _DefaultRecordBatchBuilderPy(
            magic=2, compression_type=self.codec, is_transactional=self.producer > 0,
            producer_id=self.producer, producer_epoch=0, base_sequence=0, batch_size=99_999,
        )  # fmt: skip
        for number, name in enumerate(self.names):
            value = str(first + number).encode() * 9
            builder.append(number, 1, b"key", value, [("first", b"1"), (Name(name.hex()), None)])
        if not self.names:  # the end of a transaction
            kind = struct.pack(">hh", 0, 0 if self.producer == ABORTS else 1)
            builder.append(0, 1, kind, b"", [])
        built = bytearray(builder.build())
        built[:8] = first.to_bytes(8, "big")
        if not self.names:
            built[_ATTRIBUTES + 1] |= _CONTROL
            built[_CRC:_ATTRIBUTES] = calc_crc32c(built[_ATTRIBUTES:]).to_bytes(4, "big")
        return bytes(built)


def fetch(batches: Sequence[Batch]) -> list[bytes]:
    sent, first = [], 0
    for batch in batches:
        sent.append(batch.at(first))
        first += batch.length
    return sent


def read(
    sent: Sequence[bytes], end: int, at: int = 0, step: int = 999, aborted: Sequence[int] = ()
) -> tuple[list[tuple[int, str, bytes]], int, list[str]]:
    """Offset, name and value of what is read in steps, the position after it, and the damage."""
    told: list[str] = []
    records = PartitionRecords(
        HERE, fetcher.MemoryRecords(b"".join(sent)), [(ABORTS, first) for first in aborted], at,
        None, None, check_crcs=True, isolation_level=READ_COMMITTED,
    )  # fmt: skip
    records._records = OrderedBatches(records._records, at, end, gapless=True)

    def note(number: Any, offset: int, why: BaseException) -> None:
        assert (Partition(*number), offset) == (Partition("t", 0), records.next_fetch_offset)
        told.append(type(why).__name__)

    readable = ReadableRecords(HERE, records, note)
    found: list[tuple[int, str, bytes]] = []
    while True:  # after a shorter read aiokafka asks no more
        some = list(islice(iter(readable), step))
        found += [(m.offset, m.headers[-1][0], m.value or b"") for m in some]
        if len(some) < step:
            break
    return found, readable.next_fetch_offset, told


def expected(batches: Sequence[Batch], at: int = 0) -> list[tuple[int, str, bytes]]:
    found, offset = [], 0
    for batch in batches:
        for number, name in enumerate(batch.names):
            if batch.is_read and offset + number >= at:
                value = str(offset + number).encode() * 9
                found.append((offset + number, name.decode(errors="backslashreplace"), value))
        offset += batch.length
    return found


NAMES = st.binary(max_size=6) | st.sampled_from(
    [b"", b"good", b"\xff", b"trace-\xff\xfe\xe9", b"\xed\xa0\x80"]
)
BATCHES = st.lists(
    st.builds(
        Batch,
        st.lists(NAMES, max_size=4),
        st.sampled_from([-1, ABORTS, COMMITS]),
        st.sampled_from(list(CODECS.values())),
    ).filter(lambda batch: batch.names or batch.producer > 0),
    min_size=1,
    max_size=6,
)  # fmt: skip


@given(BATCHES, st.integers(1, 5), st.data())
@example([Batch([b"a"]), Batch([b"b", b"\xff", b"c", b"\xfe"]), Batch([b"d"])], 1, None)
@example([Batch([b"\xff"], ABORTS), Batch([]), Batch([b"\xff", b"a"], COMMITS)], 9, None)
def test_all_records_are_read_wherever_the_names_are_not_utf8(
    batches: list[Batch], step: int, data: Any
) -> None:
    sent = fetch(batches)
    end = sum(batch.length for batch in batches)
    at = 0 if data is None else data.draw(st.integers(0, batches[0].length - 1), label="at")
    # A transaction begins with its first batch; the marker of its end makes the next one anew.
    aborted, is_open, offset = [], False, 0
    for batch in batches:
        if batch.producer == ABORTS:
            if batch.names and not is_open:
                aborted.append(offset)
            is_open = bool(batch.names)
        offset += batch.length
    assert read(sent, end, at, step, aborted) == (expected(batches, at), end, [])


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
def test_a_compressed_batch_is_unpacked_again(codec: int) -> None:
    batches = [Batch([b"a", b"trace-\xff\xfe\xe9", b"b"], codec=codec)]
    assert [name for _, name, _ in read(fetch(batches), 3)[0]] == ["a", r"trace-\xff\xfe\xe9", "b"]


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS)
@pytest.mark.parametrize("at", [17, 21, 70, -1], ids=["crc", "kind", "records", "end"])
def test_damage_of_such_a_batch_stays_damage(codec: int, at: int) -> None:
    batches = [Batch([b"\xff"]), Batch([b"a", b"\xff", b"b"], codec=codec), Batch([b"\xff"])]
    sent = fetch(batches)
    damaged = bytearray(sent[1])
    damaged[at] ^= 0x10
    sent[1] = bytes(damaged)
    found, position, told = read(sent, 5)
    assert (found, position) == (expected(batches[:1]), 1)
    assert told == ["CorruptRecordException"]


@pytest.mark.parametrize("at", [61, 62, 66, -6], ids=["length", "kind", "key", "name"])
def test_a_wrong_record_under_a_right_checksum_ends_what_is_read(at: int) -> None:
    batches = [Batch([b"\xff"]), Batch([b"\xff\xff\xff"])]
    sent = fetch(batches)
    wrong = bytearray(sent[1])
    wrong[at] = 0x7F
    wrong[_CRC:_ATTRIBUTES] = calc_crc32c(wrong[_ATTRIBUTES:]).to_bytes(4, "big")
    sent[1] = bytes(wrong)
    found, position, told = read(sent, 2)
    assert found[:1] == expected(batches[:1])
    assert (position, told) in ((1, ["CorruptRecordException"]), (2, []))
    assert (position == 2) == (len(found) == 2)


def test_the_error_of_aiokafkas_parser_in_python_is_known() -> None:
    """It is used where the compiled one is missing, or is switched off: AIOKAFKA_NO_EXTENSIONS."""
    with pytest.raises(CorruptRecordException) as found:
        list(_DefaultRecordBatchPy(Batch([b"\xff"]).at(0)))
    assert is_about_a_name(found.value)
    with pytest.raises(UnicodeDecodeError) as known:
        list(DefaultRecordBatch(Batch([b"\xff"]).at(0)))
    assert is_about_a_name(known.value)
    assert not is_about_a_name(CorruptRecordException("Invalid CRC"))


def test_a_fetch_of_many_such_batches_is_walked_once() -> None:
    batches = [Batch([b"\xff"])] * 3_000
    sent = fetch(batches)
    kept = KeptRecords(b"".join(sent))
    assert [kept.lenient(index).base_offset for index in range(3_000)] == [*range(3_000)]
    assert read(sent, 3_000) == (expected(batches), 3_000, [])


def test_a_time_beyond_64_bits_is_the_compiled_parsers() -> None:
    sent = bytearray(Batch([b"good"]).at(0))
    sent[27:35] = ((1 << 63) - 1).to_bytes(8, "big")  # of the first record
    sent[63] = 18  # 9 ms later, in zigzag encoding
    kept = KeptRecords(bytes(sent))
    (shown,) = kept.lenient(0)
    (compiled,) = kept.next_batch()
    assert shown.timestamp == compiled.timestamp == -(1 << 63) + 8
