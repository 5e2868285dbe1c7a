"""Validates messages of the internal topics, which may hold foreign or damaged data.

Each function returns the value of one message. It returns None if the message does not decode, or
if it names an impossible task, entity, offset or time. No function raises. The caller skips such a
message, counts it and reports its coordinate.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, TypeVar

import msgspec

from schemas import ENTITIES
from worker.core.addresses import (
    Release,
    Reservation,
    ReservationReply,
    ReservationRequest,
    owner_of,
)
from worker.core.checkpoint import Checkpoint, Reached
from worker.core.parked import Envelope
from worker.core.reading import LAST_OFFSET, offset_of
from worker.core.topics import Names

_T = TypeVar("_T")

_NAMES: Final = frozenset(("claims", "grants", *ENTITIES))
"""The names of a task's inputs."""

_LAST_ORDINAL: Final = 2**63 - 1
_LAST_MS: Final = 10**14
"""A time in the year 5138: within the range of calendars, and later than any record."""
_MOST_TIMES: Final = 2**20
"""An exclusive bound: no topic is recreated, and no address requested again, this often."""
_ID_BYTES: Final = 16
"""The length of a user's id, and of an address digest."""

# What msgspec raises on foreign bytes: the last two are not MsgspecErrors.
_UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_reached = msgspec.json.Decoder(Reached).decode
_progress = msgspec.json.Decoder(Checkpoint).decode
_envelope = msgspec.msgpack.Decoder(Envelope).decode
_request_or_release: Callable[[bytes], ReservationRequest | Release] = msgspec.msgpack.Decoder(
    ReservationRequest | Release
).decode
_reply = msgspec.msgpack.Decoder(ReservationReply).decode
_reservation = msgspec.msgpack.Decoder(Reservation).decode


def read_reached(key: bytes, value: bytes, number: int) -> Reached | None:
    """The position of a task, from partition `number` of `internal.progress`."""
    if key != b"%d" % number:
        return None
    reached = _decoded(_reached, value)
    return reached if reached is not None and _is_sound(reached) else None


def read_progress(key: bytes, value: bytes, number: int) -> Checkpoint | None:
    """The complete checkpoint of a task, from partition `number` of `internal.progress`."""
    if key != b"%d" % number:
        return None
    checkpoint = _decoded(_progress, value)
    if checkpoint is None or not _is_sound(checkpoint):
        return None
    if not _are_sound(checkpoint):
        return None
    for entity, by_time in checkpoint.in_memory.items():
        end = checkpoint.next.get(entity, 0)
        if not by_time or entity not in ENTITIES:
            return None
        for moment, offsets in by_time.items():
            if not (offsets and _is_moment(moment) and all(0 <= at < end for at in offsets)):
                return None
    return checkpoint


def read_parked(key: bytes, value: bytes, number: int, names: Names) -> Envelope | None:
    """The persisted copy of a parked record of task `number`."""
    envelope = _decoded(_envelope, value)
    # Releases that did not support recreated topics wrote no ordinal: it equals the offset.
    if envelope is not None and envelope.ordinal < 0:
        envelope = msgspec.structs.replace(envelope, ordinal=envelope.offset)
    if (
        envelope is None
        or envelope.entity not in ENTITIES
        or envelope.topic != names.input(envelope.entity)
        or envelope.partition != number
        or key != parked_key(envelope.entity, number, envelope.ordinal)
        or not 0 <= envelope.ordinal <= _LAST_ORDINAL
        or envelope.offset != offset_of(envelope.ordinal)
        or not _is_moment(envelope.arrival)
        or not _is_moment(envelope.first_read)
        or not 0 <= envelope.attempt < _MOST_TIMES
    ):
        return None
    return envelope


def read_reservation(key: bytes, value: bytes, number: int, tasks: int) -> Reservation | None:
    """A reservation of task `number`."""
    reservation = _decoded(_reservation, value)
    if (
        reservation is None
        or key != reservation.address.hex().encode()
        or not _is_owned(reservation.address, number, tasks)
        or len(reservation.user) != _ID_BYTES
        or not reservation.records
        or not all(_is_record(*record, tasks) for record in reservation.records)
    ):
        return None
    return reservation


def read_request(
    value: bytes | None, number: int, tasks: int
) -> ReservationRequest | Release | None:
    """A reservation request or a release, sent to task `number`: the owner of the address."""
    asked = _decoded(_request_or_release, value)
    if (
        asked is None
        or not _is_owned(asked.address, number, tasks)
        or not _is_record(asked.task, asked.ordinal, tasks)
        or (isinstance(asked, ReservationRequest) and not _is_valid(asked))
    ):
        return None
    return asked


def read_reply(value: bytes | None) -> ReservationReply | None:
    """The owner's reply to a reservation request."""
    reply = _decoded(_reply, value)
    if reply is None or len(reply.address) != _ID_BYTES or not 0 <= reply.ordinal <= _LAST_ORDINAL:
        return None
    return reply


def parked_key(entity: str, number: int, ordinal: int) -> bytes:
    """The message key of a parked record's copy in `internal.parked`."""
    return f"{entity}/{number}/{ordinal}".encode()


def _decoded(decode: Callable[[bytes], _T], value: bytes | None) -> _T | None:
    if value is None:
        return None
    try:
        return decode(value)
    except _UNDECODABLE:
        return None


def _is_sound(reached: Reached) -> bool:
    """Whether names, offsets and `earlier` are valid: the task continues to count from them.

    `judged` is at most `next`; -1 is valid (`Reached`).
    """
    read = reached.next
    return (
        all(name in _NAMES and 0 <= offset <= LAST_OFFSET for name, offset in read.items())
        and all(
            entity in ENTITIES and -1 <= offset <= read.get(entity, 0)
            for entity, offset in reached.judged.items()
        )
        and all(
            name in _NAMES and 0 <= times < _MOST_TIMES for name, times in reached.earlier.items()
        )
    )


def _are_sound(checkpoint: Checkpoint) -> bool:
    """Whether the books and `arrived` are in range: the task continues to count from them."""
    counts = [
        count
        for one in checkpoint.counts.values()
        for count in (one.read, one.accepted, one.deleted, one.rejected, one.parked)
    ]
    return (
        checkpoint.counts.keys() <= ENTITIES.keys()
        and checkpoint.arrived.keys() <= _NAMES
        and all(map(_is_moment, checkpoint.arrived.values()))
        and all(0 <= count <= _LAST_ORDINAL for count in (*counts, *checkpoint.incidents.values()))
    )


def _is_moment(milliseconds: int) -> bool:
    return 0 <= milliseconds <= _LAST_MS


def _is_owned(address: bytes, number: int, tasks: int) -> bool:
    return len(address) == _ID_BYTES and owner_of(address, tasks) == number


def _is_valid(request: ReservationRequest) -> bool:
    return len(request.user) == _ID_BYTES and 0 <= request.attempt < _MOST_TIMES


def _is_record(task: int, ordinal: int, tasks: int) -> bool:
    return 0 <= task < tasks and 0 <= ordinal <= _LAST_ORDINAL
