"""Requests with an `Idempotency-Key`: a repeat sends only what no request before has sent.

First fence, then read, then send: a request becomes the only writer of its key, reads the receipts
of the key up to the end, and sends each batch in one transaction with a receipt. So no record of a
body is sent twice, whoever repeats the request, when and where.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Final, NamedTuple

import msgspec
from starlette.requests import Request

from worker.brokers.contract import Broker, Committer
from worker.core.topics import Names
from worker.errors import Fenced, MessageRefused, MissingTopic
from worker.files import FileRecord
from worker.http.broker_watch import BrokerWatch
from worker.http.parameters import caller_of
from worker.http.problems import RETRY_SECONDS, Problem
from worker.http.receipts import BodyDigest, Receipt, Receipts, StoredReceipt, encode_receipt
from worker.http.send_report import MOST_LISTED, MOST_REFUSED
from worker.http.verdicts import SentBefore
from worker.stream import Message, OffsetRange, Partition, ProducerRecord

IDEMPOTENCY_KEY: Final = "Idempotency-Key"
REQUEST_HEADER: Final = "buddy-request"
"""Of each record that is sent with a key: the digest of the key, `/`, the record's number."""
READ_SECONDS: Final = 30.0
"""How long reading the receipts may take: longer than the transaction of a process that died."""
_FORM: Final = re.compile(r"[ -~]{1,255}")
_NUMBER: Final = re.compile(r"[0-9]{1,18}")
_READ: Final = 5_000
_POLL_SECONDS: Final = 0.5
_NOTHING: Final = Receipt(0, 0, "")


class NumberedRecord(NamedTuple):
    """A record to be sent: its number in the body from 0, the line where it begins, the message."""

    number: int
    line: int
    message: ProducerRecord


def key_of(request: Request, entity: str) -> str | None:
    """A digest of the request's key, its entity and its caller; None without a key.

    Nothing keeps the key itself: it may be personal. Raises Problem 400.
    """
    keys = request.headers.getlist(IDEMPOTENCY_KEY)
    if not keys:
        return None
    if len(keys) > 1 or not _FORM.fullmatch(keys[0]):
        raise Problem(
            400,
            "malformed_idempotency_key",
            f"{IDEMPOTENCY_KEY} must be one string of 1 to 255 printable ASCII characters",
        )
    scope = msgspec.json.encode((caller_of(request).name, entity, keys[0]))
    return hashlib.sha256(scope).hexdigest()[:32]


class KeyedRequests:
    """Begins requests with a key; `run` follows the receipts."""

    def __init__(self, broker: Broker, names: Names, watch: BrokerWatch) -> None:
        self._broker = broker
        self._names = names
        self._receipts = Receipts(broker, names, watch)

    async def run(self) -> None:
        """Follow the receipts until cancelled."""
        await self._receipts.run()

    @asynccontextmanager
    async def begin(self, key: str, entity: str) -> AsyncIterator[KeyedRequest]:
        """Become the only request of this key: an earlier one that is in progress ends.

        Raises Problem 503, MissingTopic, BrokerUnavailable.
        """
        names = self._names
        topics = (names.input(entity), names.accepted(entity), names.rejected(entity))
        writer = f"{names.prefix}-send-{key}"
        committer = await self._broker.committer(writer, writer)
        try:
            identities = await self._broker.identities(topics)
            partitions = await _partitions(self._broker, topics)
            sender = _Sender(
                self._broker,
                committer,
                names.receipts,
                key,
                identities.get(topics[0]),
                partitions,
                identities,
            )
            chain, places = await self._read_receipts(sender, topics[0])
            yield KeyedRequest(sender, chain, places)
        finally:
            await committer.close()

    async def _read_receipts(
        self, sender: _Sender, topic: str
    ) -> tuple[list[StoredReceipt], dict[int, str]]:
        try:
            async with asyncio.timeout(READ_SECONDS):
                chain = await self._receipts.of(sender.key)
                return chain, await _find(sender, topic, _of_input(chain, sender.identity))
        except TimeoutError:
            raise Problem(
                503,
                "receipts_behind",
                f"what was sent with this {IDEMPOTENCY_KEY} cannot be read yet: try again",
                headers={"Retry-After": str(RETRY_SECONDS)},
            ) from None


class _Sender(NamedTuple):
    """What a request with a key sends with."""

    broker: Broker
    committer: Committer
    receipts: str
    key: str
    identity: str | None
    """Of the input."""
    partitions: Sequence[Partition]
    """Of the topics of its entity: where its records and their verdicts come."""
    identities: Mapping[str, str]
    """Of these topics."""


class KeyedRequest:
    """A request as the only writer of its key.

    Give each batch of the body to `split`, and what is left of it to `write`; then `finish`.
    """

    def __init__(
        self, sender: _Sender, chain: Sequence[StoredReceipt], places: Mapping[int, str]
    ) -> None:
        self.before = chain[-1].receipt if chain else _NOTHING
        """What requests before this one have sent."""
        self.places = places
        """The coordinates of the first records of these, by number, without expired ones."""
        self.read = 0
        """The records of the body so far."""
        self._sender = sender
        there = _of_input(chain, sender.identity)
        self._since = _since(there[0], sender.identities) if there else {}
        self._digest = BodyDigest()
        self._sent = self.before.sent
        self._refused = list(self.before.refused)
        self.refused = frozenset(self.before.refused)
        """The numbers of records that requests before have refused."""
        self._earlier = chain[-1].offset if self.before.ends else self.before.earlier

    @property
    def sent_before(self) -> SentBefore | None:
        """Where the verdicts of the records at `places` are; None without any."""
        coordinates = self.places.values()
        return SentBefore(self._sender.identity, self._since, coordinates) if coordinates else None

    def split(self, batch: Sequence[FileRecord]) -> tuple[Sequence[FileRecord], ...]:
        """The records of the next batch that requests before have done, and the others.

        Raises Problem 422 if that was another body.
        """
        done = max(0, min(len(batch), self.before.read - self.read))
        known, rest = batch[:done], batch[done:]
        self._digest.add(known)
        self.read += done
        if known and self.read == self.before.read and self._digest.hex() != self.before.digest:
            raise _reused()
        self._digest.add(rest)
        self.read += len(rest)
        return known, rest

    def finish(self) -> None:
        """The body has ended. Raises Problem 422 if requests before had more of it."""
        if self.read < self.before.read:
            raise _reused()

    def refuse(self, number: int) -> None:
        """Note that a record is not sent. Call this before `write` for its batch."""
        if len(self._refused) < MOST_REFUSED:
            self._refused.append(number)

    async def write(
        self, outgoing: Sequence[NumberedRecord], *, listed: bool
    ) -> Sequence[tuple[int, int]]:
        """Send records of the last batch; the partition and offset of each.

        `listed`: a repeat lists their coordinates. Raises Problem 409 if the request was repeated
        meanwhile, MessageRefused (nothing is sent then), MissingTopic, BrokerUnavailable.
        """
        broker, committer, topic, key, identity, partitions, identities = self._sender
        receipt = Receipt(
            self.read,
            self._sent + len(outgoing),
            self._digest.hex(),
            identity,
            tuple(self._refused),
            _by_topic(await broker.spans(partitions)) if listed else {},
            self._earlier,
            dict(identities) if listed else {},
        )
        records = [_marked(one, key) for one in outgoing]
        try:
            written = await committer.commit([*records, encode_receipt(topic, key, receipt)], {})
        except Fenced:
            raise Problem(
                409,
                "taken_over",
                f"another request with this {IDEMPOTENCY_KEY} has stopped this one",
            ) from None
        except MessageRefused as error:
            if len(records) in error.refused:
                raise MessageRefused(str(error)) from None
            raise
        self._sent = receipt.sent
        if listed:
            self._earlier = written[-1][1]
        return written[:-1]


async def _partitions(broker: Broker, names: Sequence[str]) -> list[Partition]:
    topics = await broker.topics(names)
    for name in names:
        if name not in topics:
            raise MissingTopic(f"topic {name} is missing: run 'buddy topics create'")
    return [Partition(name, number) for name in names for number in range(topics[name].partitions)]


def _of_input(chain: Sequence[StoredReceipt], identity: str | None) -> list[Receipt]:
    """The receipts for records in this input, which may have been created anew since."""
    return [receipt for _, receipt in chain if receipt.identity == identity]


def _since(receipt: Receipt, identities: Mapping[str, str]) -> dict[Partition, int]:
    """Where the topics ended before a batch; of those that were created anew since, their start."""
    since = {}
    for topic, ends in receipt.ends.items():
        is_same = receipt.topics.get(topic) in (None, identities.get(topic))
        for number, end in enumerate(ends):
            since[Partition(topic, number)] = end if is_same else 0
    return since


async def _find(sender: _Sender, topic: str, receipts: Sequence[Receipt]) -> dict[int, str]:
    """The coordinates of the records of these receipts, by number; without expired ones."""
    broker, key = sender.broker, sender.key
    places: dict[int, str] = {}
    reader = broker.reader()
    try:
        for receipt in receipts:
            starts = {Partition(topic, n): at for n, at in enumerate(receipt.ends.get(topic, ()))}
            if not starts:
                continue
            ends = await broker.spans(starts, uncommitted=True)
            reader.assign(starts)
            while len(places) < receipt.sent and any(
                reader.position(partition) < span.end for partition, span in ends.items()
            ):
                for message in await reader.read(_READ, _POLL_SECONDS):
                    number = _number_in(message, key)
                    if number is not None and number < receipt.read:
                        # A replay of a rejected record has the header too, and comes later.
                        at = f"{topic}/{message.partition}/{message.offset}"
                        places.setdefault(number, at)
    finally:
        await reader.close()
    return {number: places[number] for number in sorted(places)[:MOST_LISTED]}


def _marked(outgoing: NumberedRecord, key: str) -> ProducerRecord:
    mark = (REQUEST_HEADER, f"{key}/{outgoing.number}".encode())
    message = outgoing.message
    return msgspec.structs.replace(message, headers=(*message.headers, mark))


def _number_in(message: Message, key: str) -> int | None:
    """The number of a record that was sent with this key; None for other messages."""
    mark = dict(message.headers).get(REQUEST_HEADER, b"").decode(errors="replace")
    of, _, number = mark.partition("/")
    return int(number) if of == key and _NUMBER.fullmatch(number) else None


def _by_topic(spans: Mapping[Partition, OffsetRange]) -> dict[str, tuple[int, ...]]:
    """Where topics end, by partition. The partitions of a topic are in their order."""
    ends: dict[str, tuple[int, ...]] = {}
    for partition, span in spans.items():
        ends[partition.topic] = (*ends.get(partition.topic, ()), span.end)
    return ends


def _reused() -> Problem:
    return Problem(
        422, "key_reused", f"this {IDEMPOTENCY_KEY} was used for another body: choose a new one"
    )
