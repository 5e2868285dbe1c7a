"""The messages that a task writes: encodes and counts every message of a decision."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import repeat
from typing import Final

import msgspec

from schemas import ENTITIES
from worker.core.addresses import (
    Release,
    Reservation,
    ReservationReply,
    ReservationRequest,
    owner_of,
)
from worker.core.checkpoint import Checkpoint, write_checkpoint
from worker.core.decode import Decoded, Deletion, Invalid
from worker.core.internal import parked_key
from worker.core.ownership import owner_record, owner_tombstone
from worker.core.parked import Parked
from worker.core.possible import column_of
from worker.core.references import unexpected
from worker.core.rejection import reject, smallest_headers, timestamp
from worker.core.task_settings import TaskSettings
from worker.core.unknown import UnknownNames
from worker.core.violations import Code, Violation
from worker.stream import Headers, Message, Partition, ProducerRecord

SOURCE_HEADER: Final = "buddy-source"
ACCEPTED_AT_HEADER: Final = "buddy-accepted-at"
WARNINGS_HEADER: Final = "buddy-warnings"
UNKNOWN_HEADER: Final = "buddy-unknown-fields"
"""The names of the first unknown fields of a row's record, as a JSON array."""
_MOST_UNKNOWN: Final = 10
"""Up to 1.3 kB in all, which the limits of the topics leave for headers."""

_MESSAGE_BYTES: Final = 400
"""The memory of a message besides its value."""

_pack = msgspec.msgpack.Encoder().encode


class Tally:
    """Counts of a decision, for logs, metrics and people."""

    def __init__(self) -> None:
        self.read: Counter[str] = Counter()
        self.accepted: Counter[str] = Counter()
        self.deleted: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.violations: Counter[tuple[str, str, Code]] = Counter()
        """By entity, column and code."""
        self.arrivals: Counter[int] = Counter()
        """By arrival time in milliseconds: how many records got a verdict."""
        self.unknown_fields: Counter[str] = Counter()
        self.unknown_names = UnknownNames()
        """Includes those of rejected records: a missing field may be there under another name."""
        self.parked: Counter[str] = Counter()
        self.records_omitted: list[str] = []
        """Coordinates of rejected records whose rejection lacks the record or its headers."""
        self.failures: list[tuple[str, str]] = []
        """Coordinate and exception type of each record whose judging failed."""
        self.isolated: list[tuple[str, int]] = []
        """Entity and offset of each record rejected because the broker refused its outcome."""
        self.asked_again = 0
        """How many requests for addresses, and grants, were repeated."""
        self.unreadable: dict[Partition, list[int]] = {}
        """By partition: the offsets of invalid messages in claims and grants."""


class Outbox:
    """Collects the messages of one task in one round. `now` is in milliseconds.

    The messages follow those of the round's other tasks, in decision order.
    """

    def __init__(
        self, number: int, settings: TaskSettings, now: int, messages: list[ProducerRecord]
    ) -> None:
        self.tally = Tally()
        self._messages = messages
        self._number = number
        self._settings = settings
        self._names = settings.names
        self._now = now
        self._accepted_at = (ACCEPTED_AT_HEADER, timestamp(now).encode())
        self._sources: dict[str, bytes] = {}
        self._accepted = {entity: settings.names.accepted(entity) for entity in ENTITIES}
        self._bytes = 0

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been written."""
        return not self._bytes

    @property
    def next_position(self) -> int:
        """The index that the next message will have in the round."""
        return len(self._messages)

    @property
    def is_full(self) -> bool:
        """Whether the decision has reached its size limit: what can wait is for the next one."""
        return self._bytes >= self._settings.decision_bytes

    def accept(
        self, entity: str, message: Message, row: Decoded, warnings: tuple[Violation, ...]
    ) -> int:
        """Publish a row. Returns the index of its message in the round."""
        tally = self.tally
        tally.accepted[entity] += 1
        tally.arrivals[message.timestamp] += 1
        headers: Headers = ((SOURCE_HEADER, self._source(message)), self._accepted_at)
        if row.unknown_fields:
            tally.unknown_fields[entity] += row.unknown_fields
            tally.unknown_names.note(entity, row.unknown_names)
            names = msgspec.json.encode(row.unknown_names[:_MOST_UNKNOWN])
            headers = (*headers, (UNKNOWN_HEADER, names))
        if warnings:
            for warning in warnings:
                tally.violations[entity, column_of(warning.field), warning.code] += 1
            codes = ",".join(dict.fromkeys(v.code.value for v in warnings))
            headers = (*headers, (WARNINGS_HEADER, codes.encode()))
        return self._append(ProducerRecord(self._accepted[entity], row.key, row.row, headers))

    def accept_all(
        self,
        entity: str,
        messages: Sequence[Message],
        keys: Iterable[bytes],
        rows: Sequence[bytes],
    ) -> int:
        """Publish rows without warnings: as `accept` for each, but column by column.

        All messages are of one partition. Returns the index of the first message in the round.
        """
        tally, at = self.tally, self._accepted_at
        tally.accepted[entity] += len(messages)
        tally.arrivals.update([message.timestamp for message in messages])
        source = self._template(messages[0])
        headers = [((SOURCE_HEADER, source % message.offset), at) for message in messages]
        first = len(self._messages)
        self._messages += map(ProducerRecord, repeat(self._accepted[entity]), keys, rows, headers)
        self._bytes += _MESSAGE_BYTES * len(rows) + sum(map(len, rows))
        return first

    def delete(self, entity: str, message: Message, deletion: Deletion) -> int:
        """Publish the deletion of a row. Returns the index of its message in the round."""
        self.tally.deleted[entity] += 1
        self.tally.arrivals[message.timestamp] += 1
        headers = ((SOURCE_HEADER, self._source(message)), self._accepted_at)
        return self._append(ProducerRecord(self._accepted[entity], deletion.key, None, headers))

    def reject(self, entity: str, message: Message, invalid: Invalid) -> None:
        """Publish a rejection."""
        self._reject(entity, message, invalid, self._settings.rejection_limit)

    def isolate(self, entity: str, message: Message, refusals: int) -> None:
        """Publish a rejection of a record whose outcome the broker has refused.

        From the second refusal on, the rejection has its smallest form.
        """
        self.tally.isolated.append((entity, message.offset))
        self.tally.failures.append((coordinate(message), "MessageRefused"))
        invalid = Invalid(None, (unexpected(),), malformed=True)
        limit = self._settings.rejection_limit if refusals < 2 else 0
        self._reject(entity, message, invalid, limit)

    def _reject(self, entity: str, message: Message, invalid: Invalid, limit: int) -> None:
        value, omitted = reject(entity, message, invalid, self._now, limit)
        self.tally.rejected[entity] += 1
        self.tally.arrivals[message.timestamp] += 1
        self.tally.unknown_names.note(entity, invalid.unknown_names)
        for found in invalid.violations:
            self.tally.violations[entity, column_of(found.field), found.code] += 1
        if omitted:
            self.tally.records_omitted.append(coordinate(message))
        key = message.key if message.key is None or len(message.key) < 1024 else None
        headers = ((SOURCE_HEADER, self._source(message)),)
        self._append(ProducerRecord(self._names.rejected(entity), key, value, headers))

    def persist(self, parked: Parked) -> None:
        """Write the copy of a parked record."""
        envelope = _pack(parked.envelope())
        if len(envelope) > self._settings.rejection_limit:
            # Headers may have any size. A rejection would omit them as well, and tells so.
            ours = smallest_headers(parked.message.headers)
            envelope = _pack(msgspec.structs.replace(parked.envelope(), headers=ours))
        self._write_parked(parked.entity, parked.ordinal, envelope)

    def drop(self, entity: str, ordinal: int) -> None:
        """Write the tombstone of a parked record's copy."""
        self._write_parked(entity, ordinal, None)

    def request(self, address: bytes, user: bytes, parked: Parked) -> None:
        """Request an address from its owner."""
        self.tally.asked_again += parked.attempt > 0
        request = ReservationRequest(address, user, self._number, parked.ordinal, parked.attempt)
        self._write_to_owner(address, parked.ordinal, request)

    def release(self, address: bytes, ordinal: int) -> None:
        """Tell the owner of an address that the record that was granted it has been judged."""
        self._write_to_owner(address, ordinal, Release(address, self._number, ordinal))

    def reply(self, request: ReservationRequest, granted: Reservation | None) -> None:
        """Reply to a request, and persist the reservation if it is granted."""
        reply = ReservationReply(
            request.ordinal, request.address, granted is not None, request.attempt
        )
        self._write_reply(request.task, reply)
        if granted is not None:
            self.reserve(granted)

    def reply_again(self, reservation: Reservation) -> None:
        """Repeat the replies that grant a reservation: judged records are then released again."""
        self.tally.asked_again += len(reservation.records)
        for task, ordinal in reservation.records:
            self._write_reply(task, ReservationReply(ordinal, reservation.address, granted=True))

    def reserve(self, reservation: Reservation) -> None:
        """Persist a reservation, or write its tombstone if it has no record any more."""
        value = _pack(reservation) if reservation.records else None
        self._write(self._names.granted, reservation.address.hex(), value, self._number)

    def unreadable(self, message: Message) -> None:
        """Note an invalid message in claims or grants: it is skipped."""
        partition = Partition(message.topic, message.partition)
        self.tally.unreadable.setdefault(partition, []).append(message.offset)

    def save(self, checkpoint: Checkpoint) -> None:
        """Write the checkpoint."""
        value = write_checkpoint(checkpoint)
        self._write(self._names.progress, str(self._number), value, self._number)

    def strike_out(self, owner: str) -> None:
        """Write the tombstone of an earlier owner: nobody need fence it again."""
        self._append(owner_tombstone(self._names, self._number, owner))

    def write_owner(self, owner: str) -> None:
        """Write the record of the current owner again."""
        self._append(owner_record(self._names, self._number, owner))

    def _write_to_owner(
        self, address: bytes, ordinal: int, claim: ReservationRequest | Release
    ) -> None:
        owner = owner_of(address, self._settings.tasks)
        self._write(self._names.claims, f"{self._number}/{ordinal}", _pack(claim), owner)

    def _write_reply(self, task: int, reply: ReservationReply) -> None:
        self._write(self._names.grants, str(reply.ordinal), _pack(reply), task)

    def _write_parked(self, entity: str, ordinal: int, envelope: bytes | None) -> None:
        key = parked_key(entity, self._number, ordinal)
        self._append(ProducerRecord(self._names.parked, key, envelope, partition=self._number))

    def _write(self, topic: str, key: str, value: bytes | None, partition: int) -> None:
        self._append(ProducerRecord(topic, key.encode(), value, partition=partition))

    def _append(self, message: ProducerRecord) -> int:
        value = message.value
        self._bytes += _MESSAGE_BYTES + (0 if value is None else len(value))
        self._messages.append(message)
        return len(self._messages) - 1

    def _source(self, message: Message) -> bytes:
        """The coordinate for a header. Everything that a task reads is in its own partition."""
        return self._template(message) % message.offset

    def _template(self, message: Message) -> bytes:
        """The coordinate with `%d` for the offset; topic names contain no percent sign."""
        source = self._sources.get(message.topic)
        if source is None:
            source = self._sources[message.topic] = f"{message.topic}/{self._number}/%d".encode()
        return source


def coordinate(message: Message) -> str:
    """The coordinate of a message: topic/partition/offset."""
    return f"{message.topic}/{message.partition}/{message.offset}"
