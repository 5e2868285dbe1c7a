r"""Names of headers that are not UTF-8: Kafka takes any bytes, and aiokafka's records do not.

A record with such a name is a record like any other. So its batch is unpacked once more, from the
bytes of the fetch, by aiokafka's parser in Python: each byte of a name that is not UTF-8 becomes
`\xff`. Only such batches pay for this.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.record.util import decode_varint_py

_LENGTH: Final = slice(8, 12)
"""Where a batch has its length, in bytes after the length."""
_OVERFLOW: Final = 1 << 63


def is_about_a_name(error: BaseException) -> bool:
    """Whether unpacking a batch failed at the name of a header: nothing else in it is text."""
    # aiokafka's parser in Python wraps the error.
    return isinstance(error, UnicodeDecodeError) or isinstance(error.__cause__, UnicodeDecodeError)


class KeptRecords(MemoryRecords):  # type: ignore[misc]  # aiokafka has no types
    """The batches of a fetch, as aiokafka unpacks them, and their bytes.

    aiokafka keeps the bytes as long as the batches, but shows them to nobody.
    """

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._data = data
        self._found = self._at = 0
        """Number of batches before the one that was asked for last, and where that one begins."""

    def lenient(self, index: int) -> LenientBatch:
        """The batch with this index; each call must ask for the same batch or a later one."""
        while self._found < index:
            self._found, self._at = self._found + 1, self._end()
        return LenientBatch(self._data[self._at : self._end()])

    def _end(self) -> int:
        length = self._data[self._at + _LENGTH.start : self._at + _LENGTH.stop]
        return self._at + _LENGTH.stop + int.from_bytes(length, "big")


class LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # as above
    r"""A batch that shows the bytes of a header's name that are not UTF-8 as `\xff`."""

    def __iter__(self) -> LenientBatch:
        super().__iter__()
        self._buffer: bytearray = _Lenient(self._buffer)
        return self

    def _read_msg(self) -> Any:
        # The compiled function takes a bytearray only, and none of its subclasses.
        record = super()._read_msg(decode_varint_py)
        if -_OVERFLOW <= record.timestamp < _OVERFLOW:
            return record
        # Kafka computes with 64 bits, and takes what comes of that.
        time = (record.timestamp + _OVERFLOW) % (2 * _OVERFLOW) - _OVERFLOW
        return replace(record, timestamp=time)


class _Lenient(bytearray):
    """Bytes whose slices are decoded without errors: aiokafka decodes nothing but names."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return _Lenient(found) if isinstance(found, bytearray) else found

    def decode(self, encoding: str = "utf-8", errors: str = "backslashreplace") -> str:
        return super().decode(encoding, errors)


# The fetcher has no public way to make its records from another class, and makes them here only.
fetcher.MemoryRecords = KeptRecords
