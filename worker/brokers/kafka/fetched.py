"""What aiokafka has fetched, unpacked into messages up to the first damaged batch.

The classes here replace parts inside aiokafka's fetcher: it has no public way to unpack records
into other objects, or to read past the damage of one partition.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from aiokafka.consumer.fetcher import FetchError, FetchResult
from aiokafka.errors import CorruptRecordException, RecordTooLargeError, UnsupportedCodecError
from aiokafka.record.default_records import DefaultRecordBatch

from worker.brokers.kafka.header_names import KeptRecords, is_about_a_name
from worker.stream import Message, Topic

_APPEND_TIME = 1

OnDamage = Callable[[Any, int, BaseException], None]
"""Called with a partition, its first unreadable offset, and the cause."""


class Fetched(OrderedDict[Any, Any]):
    """aiokafka's fetched records by partition, as `ReadableRecords`; there is no public way."""

    def __init__(self, on_damage: OnDamage, topics: Mapping[str, Topic]) -> None:
        super().__init__()
        self._on_damage = on_damage
        self._topics = topics

    def __setitem__(self, number: Any, result: Any) -> None:
        if isinstance(result, FetchError) and isinstance(result._error, RecordTooLargeError):  # noqa: SLF001 -- patches aiokafka
            # The batch's length is damaged: a broker sends even its largest batch in full.
            self._on_damage(number, result._error.args[2], result._error)  # noqa: SLF001 -- patches aiokafka
            return
        if isinstance(result, FetchResult):
            records = result._partition_records  # noqa: SLF001 -- patches aiokafka
            records._records = OrderedBatches(  # noqa: SLF001 -- patches aiokafka
                records._records,  # noqa: SLF001 -- patches aiokafka
                records.next_fetch_offset,
                result._assignment.state_value(number).highwater,  # noqa: SLF001 -- patches aiokafka
                gapless=number.topic in self._topics and not self._topics[number.topic].compacted,
            )
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
        while True:
            try:
                yield from self._records
            except (MemoryError, UnsupportedCodecError):
                raise
            except Exception as error:  # noqa: BLE001 -- damaged bytes may raise anything
                if is_about_a_name(error) and self._reads_names_leniently():
                    continue
                self._on_damage(self._number, self.next_fetch_offset, error)
            return

    def _reads_names_leniently(self) -> bool:
        """Go on in the batch that has just raised; whether that is possible.

        aiokafka's iterator has ended with the error. A new one sees the batch once more: it checks
        the checksum again, notes the same aborted transactions, and skips what was read before.
        """
        records = self._records
        if not records._records.repeat():  # noqa: SLF001 -- patches aiokafka
            return False
        records._records_iterator = records._unpack_records()  # noqa: SLF001 -- patches aiokafka
        return True


class OrderedBatches:
    """The batches of a fetch from `offset` on, each where it can be: the log ends at `end`.

    A batch's checksum does not cover its first offset, nor does aiokafka look at it. With a damaged
    one, Kafka does not find the batch, or its records get the coordinates of others, or they are
    dropped as read before. So each batch must begin where the one before it ends, and the first one
    must contain `offset`. Compaction leaves gaps: without `gapless`, a batch may begin later, as
    long as it ends where the next one can begin.
    """

    def __init__(self, batches: Any, offset: int, end: int, *, gapless: bool) -> None:
        self._batches = batches
        self._gapless = gapless
        self._offset = offset
        self._earliest = 0
        """Where the next batch may begin at the earliest: the first one may contain `offset`."""
        self._end = end
        self._given = 0
        """Number of batches handed out."""
        self._again: Any = None
        """The batch that is handed out once more, with lenient names."""
        self._lenient = 0
        """Which batch was handed out with lenient names, counted from 1."""
        self._ahead = self._take()

    def has_next(self) -> bool:
        """See aiokafka's `MemoryRecords`."""
        return self._again is not None or self._ahead is not None

    def repeat(self) -> bool:
        """Hand out the last batch once more, with lenient names; False if it is lenient already."""
        if self._lenient == self._given or not isinstance(self._batches, KeptRecords):
            return False
        self._lenient = self._given
        self._again = self._batches.lenient(self._given - 1)
        return True

    def next_batch(self) -> Any:
        """See aiokafka's `MemoryRecords`. Raises CorruptRecordException for a wrong offset."""
        if self._again is not None:
            batch, self._again = self._again, None
            return batch
        batch, self._ahead = self._ahead, None
        self._given += 1
        if isinstance(batch, Exception):
            raise batch
        self._ahead = self._take()
        if isinstance(batch, DefaultRecordBatch):  # earlier formats have no number of offsets
            self._check(batch.base_offset, batch.next_offset)
        self._offset = self._earliest = batch.next_offset
        if self._is_after_gap(self._ahead) and not self._batches.has_next():
            self._ahead = None  # the next fetch begins with it, and shows what follows
        return batch

    def _check(self, first: int, after: int) -> None:
        # The checksum covers the number of offsets: a batch that begins rightly ends rightly.
        following = self._ahead
        is_known = isinstance(following, DefaultRecordBatch)
        limit = following.base_offset if is_known else self._end
        is_sound = first == self._offset
        if self._earliest <= first < self._offset < after:
            is_sound = after == limit or (after < limit and not (self._gapless and is_known))
        elif first > self._offset:
            is_sound = after <= limit and not self._gapless
        if not is_sound:
            raise CorruptRecordException(
                f"a batch from {first} up to {after}, where {self._offset} is next of {limit}"
            )

    def _is_after_gap(self, following: Any) -> bool:
        """Whether a batch begins later than expected, and ends before the end of the log."""
        return (
            isinstance(following, DefaultRecordBatch)
            and self._offset < following.base_offset
            and following.next_offset < self._end
        )

    def _take(self) -> Any:
        """The next batch, the exception that it raises, or None."""
        try:
            return self._batches.next_batch() if self._batches.has_next() else None
        except Exception as error:  # noqa: BLE001 -- raised in its turn
            return error


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
