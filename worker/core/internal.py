"""Reads what internal topics hold. Whoever may write there can leave anything in them.

Each function gives the value of one message, or None where the message is none of the project's:
it does not decode, or it names a task, an entity, an offset or a moment that cannot be. None of
them raises. Whoever reads skips such a message, counts it and names its place.
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
from worker.core.parking import Envelope
from worker.core.topics import Names

_T = TypeVar("_T")

_NAMES: Final = frozenset(("claims", "grants", *ENTITIES))
"""What a task reads."""

_LAST_OFFSET: Final = 2**40 - 1
"""Of an input: places of records begin anew beyond it (`reading.place_of`)."""
_LAST_PLACE: Final = 2**63 - 1
_LAST_MS: Final = 10**14
"""A moment of the year 5138: calendars end later, and no record is read then."""
_MOST_TIMES: Final = 2**20
"""So often a topic is not created anew, nor an address asked for again."""
_ID_BYTES: Final = 16
"""Of a user's id, and of the digest of an address."""

# What msgspec raises on bytes of another kind: the last two are no MsgspecError.
_UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)

_reached = msgspec.json.Decoder(Reached).decode
_progress = msgspec.json.Decoder(Checkpoint).decode
_envelope = msgspec.msgpack.Decoder(Envelope).decode
_claim: Callable[[bytes], ReservationRequest | Release] = msgspec.msgpack.Decoder(
    ReservationRequest | Release
).decode
_grant = msgspec.msgpack.Decoder(ReservationReply).decode
_granted = msgspec.msgpack.Decoder(Reservation).decode


def read_reached(key: bytes, value: bytes, number: int) -> Reached | None:
    """How far a task says it is, in partition `number` of the progress."""
    if key != b"%d" % number:
        return None
    reached = _decoded(_reached, value)
    return reached if reached is not None and _is_sound(reached) else None


def read_progress(key: bytes, value: bytes, number: int) -> Checkpoint | None:
    """All that a task has saved of its progress."""
    if key != b"%d" % number:
        return None
    progress = _decoded(_progress, value)
    if progress is None or not _is_sound(progress):
        return None
    if not _are_sound(progress):
        return None
    for entity, by_time in progress.held.items():
        end = progress.next.get(entity, 0)
        if not by_time or entity not in ENTITIES:
            return None
        for moment, offsets in by_time.items():
            if not (offsets and _is_moment(moment) and all(0 <= at < end for at in offsets)):
                return None
    return progress


def read_parked(key: bytes, value: bytes, number: int, names: Names) -> Envelope | None:
    """A parked record of that task."""
    envelope = _decoded(_envelope, value)
    # Before topics could be created anew its place was its offset.
    if envelope is not None and envelope.place < 0:
        envelope = msgspec.structs.replace(envelope, place=envelope.offset)
    if (
        envelope is None
        or envelope.entity not in ENTITIES
        or envelope.topic != names.inputs(envelope.entity)
        or envelope.partition != number
        or key != parked_key(envelope.entity, number, envelope.place)
        or not 0 <= envelope.offset <= envelope.place <= _LAST_PLACE
        or not _is_moment(envelope.arrival)
        or not _is_moment(envelope.first_read)
        or not 0 <= envelope.attempt < _MOST_TIMES
    ):
        return None
    return envelope


def read_granted(key: bytes, value: bytes, number: int, tasks: int) -> Reservation | None:
    """What that task has granted of an address."""
    granted = _decoded(_granted, value)
    if (
        granted is None
        or key != granted.address.hex().encode()
        or not _is_owned(granted.address, number, tasks)
        or len(granted.user) != _ID_BYTES
        or not granted.records
        or not all(_is_record(*record, tasks) for record in granted.records)
    ):
        return None
    return granted


def read_claim(value: bytes | None, number: int, tasks: int) -> ReservationRequest | Release | None:
    """What another task, or the same one, asks or tells the owner of an address."""
    asked = _decoded(_claim, value)
    if (
        asked is None
        or not _is_owned(asked.address, number, tasks)
        or not _is_record(asked.task, asked.offset, tasks)
        or (isinstance(asked, ReservationRequest) and not _can_ask(asked))
    ):
        return None
    return asked


def read_grant(value: bytes | None) -> ReservationReply | None:
    """An owner's answer."""
    answer = _decoded(_grant, value)
    if answer is None or len(answer.address) != _ID_BYTES or not 0 <= answer.offset <= _LAST_PLACE:
        return None
    return answer


def parked_key(entity: str, number: int, place: int) -> bytes:
    """Under which key the log keeps a parked record."""
    return f"{entity}/{number}/{place}".encode()


def _decoded(decode: Callable[[bytes], _T], value: bytes | None) -> _T | None:
    if value is None:
        return None
    try:
        return decode(value)
    except _UNDECODABLE:
        return None


def _is_sound(reached: Reached) -> bool:
    """A task that has judged nothing of an input may say -1; it judges nothing unread."""
    read = reached.next
    return all(
        name in _NAMES and 0 <= offset <= _LAST_OFFSET for name, offset in read.items()
    ) and all(
        entity in ENTITIES and -1 <= offset <= read.get(entity, 0)
        for entity, offset in reached.judged.items()
    )


def _are_sound(progress: Checkpoint) -> bool:
    """Whether its books are: they are counted on."""
    counts = [
        count
        for one in progress.counts.values()
        for count in (one.read, one.accepted, one.deleted, one.rejected, one.parked)
    ]
    return (
        progress.counts.keys() <= ENTITIES.keys()
        and progress.earlier.keys() <= _NAMES
        and all(0 <= times < _MOST_TIMES for times in progress.earlier.values())
        and all(0 <= count <= _LAST_PLACE for count in (*counts, *progress.incidents.values()))
    )


def _is_moment(milliseconds: int) -> bool:
    return 0 <= milliseconds <= _LAST_MS


def _is_owned(address: bytes, number: int, tasks: int) -> bool:
    return len(address) == _ID_BYTES and owner_of(address, tasks) == number


def _can_ask(claim: ReservationRequest) -> bool:
    return len(claim.user) == _ID_BYTES and 0 <= claim.attempt < _MOST_TIMES


def _is_record(task: int, place: int, tasks: int) -> bool:
    return 0 <= task < tasks and 0 <= place <= _LAST_PLACE
