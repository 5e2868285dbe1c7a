"""What aiokafka has fetched, unpacked into messages up to the first damaged batch.

The classes here replace parts inside aiokafka's fetcher: it has no public way to unpack records
into other objects, or to read past the damage of one partition.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any

from aiokafka.consumer.fetcher import FetchError, FetchResult
from aiokafka.errors import RecordTooLargeError, UnsupportedCodecError

from worker.stream import Message

_APPEND_TIME = 1

OnDamage = Callable[[Any, int, BaseException], None]
"""Called with a partition, its first unreadable offset, and the cause."""


class Fetched(OrderedDict[Any, Any]):
    """aiokafka's fetched records by partition, as `ReadableRecords`; there is no public way."""

    def __init__(self, on_damage: OnDamage) -> None:
        super().__init__()
        self._on_damage = on_damage

    def __setitem__(self, number: Any, result: Any) -> None:
        if isinstance(result, FetchError) and isinstance(result._error, RecordTooLargeError):  # noqa: SLF001 -- patches aiokafka
            # The batch's length is damaged: a broker sends even its largest batch in full.
            self._on_damage(number, result._error.args[2], result._error)  # noqa: SLF001 -- patches aiokafka
            return
        if isinstance(result, FetchResult):
            records = result._partition_records  # noqa: SLF001 -- patches aiokafka
            result._partition_records = ReadableRecords(number, records, self._on_damage)  # noqa: SLF001 -- patches aiokafka
        super().__setitem__(number, result)


class ReadableRecords:
    """The records of a partition, unpacked directly into messages, up to a damaged batch.

    aiokafka's own record objects would be created only to be copied, at twice the cost. On a
    damaged batch, aiokafka raises the same error again and again, in reads of all partitions. This
    class reports the damage instead.
    """

    def __init__(self, number: Any, records: Any, on_damage: OnDamage) -> None:
        records._consumer_record = _message  # noqa: SLF001 -- patches aiokafka
        self._number = number
        self._records = records
        self._on_damage = on_damage

    @property
    def next_fetch_offset(self) -> int:
        """The offset at which aiokafka fetches next."""
        offset: int = self._records.next_fetch_offset
        return offset

    def __iter__(self) -> Iterator[Message]:
        """Each iteration continues where the previous one stopped."""
        try:
            yield from self._records
        except (MemoryError, UnsupportedCodecError):
            raise
        except Exception as error:  # noqa: BLE001 -- damaged bytes may raise anything
            self._on_damage(self._number, self.next_fetch_offset, error)


def _message(number: Any, record: Any) -> Message:
    return Message(
        number.topic,
        number.partition,
        record.offset,
        record.timestamp,
        record.key,
        record.value,
        # Kafka allows a header without a value; here it has an empty value.
        tuple([(name, value or b"") for name, value in record.headers]),
        record.timestamp_type == _APPEND_TIME,
    )
