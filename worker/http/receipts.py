"""Receipts: how much of a request with an `Idempotency-Key` has been sent.

The transaction that sends a batch also writes a receipt. So the last receipt of a key says exactly
which records of the body are in the input, whoever was killed and when.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, NamedTuple

import msgspec
import structlog

from worker.brokers.contract import Broker
from worker.core.topics import Names
from worker.errors import BuddyError
from worker.files import FileRecord
from worker.http.broker_watch import BrokerWatch
from worker.http.following import TopicFollower
from worker.stream import Message, Partition, ProducerRecord

MOST_KEYS: Final = 100_000
"""The keys that are remembered; those that sent longest ago are forgotten."""
_POLL_SECONDS: Final = 0.5

_log = structlog.get_logger(__name__)


class Receipt(msgspec.Struct, frozen=True, omit_defaults=True):
    """What requests with one key have sent so far. Records of a body are numbered from 0."""

    read: int
    """The records from the start of the body that are sent or refused."""
    sent: int
    digest: str
    """Of the records that are sent or refused."""
    identity: str | None = None
    """Of the input: one that was created anew has other records at the same coordinates."""
    refused: tuple[int, ...] = ()
    """The numbers of refused records, the first ones."""
    ends: dict[str, tuple[int, ...]] = {}
    """By topic: where its partitions ended before this batch. Only of batches that are listed."""
    earlier: int | None = None
    """The offset of the latest receipt before this one that has `ends`."""
    topics: dict[str, str] = {}
    """The identities of the topics of `ends` then; receipts of earlier releases lack them."""


class StoredReceipt(NamedTuple):
    """A receipt and its offset."""

    offset: int
    receipt: Receipt


class BodyDigest:
    """A running digest of the records of a body. Pure."""

    def __init__(self) -> None:
        self._hash = hashlib.sha256()

    def add(self, records: Iterable[FileRecord]) -> None:
        """Add records. Of one that is too large to be kept, its own digest counts."""
        for record in records:
            value = (record.sha256 or "").encode() if record.oversize else record.value
            self._hash.update(b"%d:%d:" % (record.oversize, len(value)))
            self._hash.update(value)

    def hex(self) -> str:
        """The digest of the records so far."""
        return self._hash.hexdigest()


_decode = msgspec.json.Decoder(Receipt).decode


def encode_receipt(topic: str, key: str, receipt: Receipt) -> ProducerRecord:
    """The message of a receipt. Pure."""
    return ProducerRecord(topic, key.encode(), msgspec.json.encode(receipt), (), 0)


def read_receipt(message: Message) -> Receipt | None:
    """The receipt in a message; None if it is none. Pure."""
    try:
        return _decode(message.value or b"")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None


class Receipts:
    """Finds the receipts of keys; `run` follows their topic."""

    def __init__(self, broker: Broker, names: Names, watch: BrokerWatch) -> None:
        self._broker = broker
        self._partition = Partition(names.receipts, 0)
        self._follower = TopicFollower(broker, names.receipts, self._take, _not_read, watch, _lost)
        self._latest: dict[bytes, int] = {}
        """The offset of the last receipt of each key, the key that sent last at the end."""

    async def run(self) -> None:
        """Follow until cancelled. Waits out every error, and goes on where it was."""
        await self._follower.run()

    async def of(self, key: str) -> list[StoredReceipt]:
        """The last receipt of a key, after the earlier ones that have `ends`.

        Empty if nothing was sent. Waits until everything is read that was written before the call,
        open transactions included. Raises MissingTopic, BrokerUnavailable.
        """
        await self._follower.reach()
        found: list[StoredReceipt] = []
        offset = self._latest.get(key.encode())
        while offset is not None and (receipt := await self._read(key, offset)) is not None:
            found.append(StoredReceipt(offset, receipt))
            offset = receipt.earlier
        return found[::-1]

    async def _read(self, key: str, offset: int) -> Receipt | None:
        """The receipt at an offset; None if it has expired, or the topic ends before it."""
        spans = await self._broker.spans([self._partition], uncommitted=True)
        if offset >= spans[self._partition].end:
            return None
        reader = self._broker.reader()
        reader.assign({self._partition: offset})
        try:
            while reader.position(self._partition) <= offset:
                for message in await reader.read(1, _POLL_SECONDS):
                    is_it = (message.offset, message.key) == (offset, key.encode())
                    return read_receipt(message) if is_it else None
        finally:
            await reader.close()
        return None

    def _take(self, message: Message) -> None:
        if message.partition != 0 or message.key is None:
            return
        self._latest.pop(message.key, None)
        self._latest[message.key] = message.offset
        if len(self._latest) > MOST_KEYS:
            del self._latest[next(iter(self._latest))]


def _not_read(error: BuddyError, seconds: float) -> None:
    _log.warning("receipts_not_read", error=str(error), retry_in=round(seconds, 1))


def _lost(partition: Partition, count: int) -> None:
    _log.warning("receipts_lost", topic=partition.topic, partition=partition.number, count=count)
