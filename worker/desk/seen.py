"""Reads the messages that the desk follows: rejections, and the rows that settle them. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from schemas import ENTITIES
from worker.core.outbox import ACCEPTED_AT_HEADER, SOURCE_HEADER, UNKNOWN_HEADER
from worker.core.rejection import LAST_MS, Source
from worker.core.rules import read_uuid
from worker.core.shown import shown
from worker.core.unknown import LONGEST_NAME, MOST_NAMED, unknown_names
from worker.core.violations import Code, Violation
from worker.stream import Message

STAGES: Final = (
    ("users",),
    ("matches",),
    tuple(entity for entity in ENTITIES if entity not in ("users", "matches")),
)
"""Entities that are read or sent together: what records refer to comes before them."""

PRODUCER_HEADER: Final = "buddy-producer"
"""A header in which upstream may name itself. Nothing else interprets it."""
LONGEST_PRODUCER: Final = 64
_COLUMNS: Final = {
    name: frozenset(column.name for column in entity.columns) for name, entity in ENTITIES.items()
}
_REFERS_TO: Final = {Code.ORPHANED_USER_ID: "users", Code.ORPHANED_MATCH_ID: "matches"}
_MOST: Final = 2**62
"""More than any offset or partition number."""


_Moment = Annotated[datetime, msgspec.Meta(tz=True)]
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


class RejectionSeen(msgspec.Struct):
    """The parts of a rejection that are read; nothing here prints the record itself."""

    entity: str
    key: str | None
    rejected_at: _Moment
    source: Source
    violations: list[Violation]
    violations_omitted: int = 0
    unknown_names: tuple[str, ...] = ()
    """Fields of the record that have no column."""
    producer: str = ""
    """How the sender names itself; empty if it does not."""
    at: int = 0
    """When the broker appended the rejection, in milliseconds since 1970: a worker's clock may be
    wrong."""
    wanted: tuple[int, ...] = ()
    """The digests of the keys that the record refers to and that were missing: `key_digest`."""

    @property
    def judged(self) -> int:
        """The time of the round that rejected it, by its worker's clock, in milliseconds."""
        return _milliseconds(self.rejected_at)

    @property
    def kinds(self) -> tuple[tuple[str, str], ...]:
        """The distinct violations, each as its code and its field without list indices, sorted."""
        return tuple(sorted({(v.code.value, no_index(v.field)) for v in self.violations}))


class Settling(NamedTuple):
    """An accepted row or a deletion: it settles the earlier rejections of its key."""

    entity: str
    key: int
    """See `key_digest`."""
    at: int
    """When the broker appended it, in milliseconds since 1970."""
    partition: int
    offset: int
    """The coordinate of its record in the input of the entity."""
    deleted: bool
    judged: int
    """The time of the round that accepted it, by its worker's clock, in milliseconds."""
    unknown_names: tuple[str, ...] = ()
    """Fields of its record that have no column."""


class _Original(msgspec.Struct):
    record: dict[str, msgspec.Raw] | None = None
    headers: list[tuple[str, str]] = []


_seen = msgspec.json.Decoder(RejectionSeen)
_original = msgspec.json.Decoder(_Original)
_text = msgspec.json.Decoder(str)
_texts = msgspec.json.Decoder(list[Any])
_name_list = msgspec.json.Decoder(list[str])
_UNDECODABLE: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, ValueError)


def key_digest(entity: str, key: str) -> int:
    """A number of 64 bits, signed as SQLite has them, that stands for the key of an entity.

    Two of ten million keys share a digest in one of 300,000 stores. Then a rejection counts as
    settled that is open.
    """
    digest = blake2b(f"{entity}:{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def time_of(message: Message) -> int:
    """The time of a message, in the years 1970 to 9999.

    Where a topic has no append time it is its sender's, which may be any number.
    """
    return min(max(0, message.timestamp), LAST_MS)


def no_index(field: str) -> str:
    """The field of a violation without list indices: "attendees" for "attendees[3]"."""
    return field.split("[", maxsplit=1)[0]


def read_rejection(message: Message) -> RejectionSeen | None:
    """The rejection in a message; None if the message is none."""
    value = message.value or b""
    try:
        seen = _seen.decode(value)
        original = _original.decode(value)
    except _UNDECODABLE:
        return None
    numbers = seen.source.partition, seen.source.offset
    if seen.entity not in ENTITIES or not all(0 <= n < _MOST for n in numbers):
        return None
    seen.at = time_of(message)
    fields = original.record or {}
    seen.unknown_names = unknown_names(fields, _COLUMNS[seen.entity])
    seen.producer = _producer(original.headers)
    seen.wanted = tuple(_wanted(seen.violations, fields))
    return seen


def read_settling(message: Message) -> Settling | None:
    """The row or deletion in a message of an accepted topic; None if it does not say its source."""
    source = b""
    judged = 0
    unknown: tuple[str, ...] = ()
    for name, value in message.headers:
        if name == SOURCE_HEADER:
            source = value
        elif name == ACCEPTED_AT_HEADER:
            judged = _moment_of(value)
        elif name == UNKNOWN_HEADER:
            unknown = _names(value)
    _, _, coordinate = source.partition(b"/")
    number, _, position = coordinate.partition(b"/")
    if not (number.isdigit() and position.isdigit()):
        return None
    partition, offset = int(number), int(position)
    try:
        key = (message.key or b"").decode()
    except UnicodeDecodeError:
        return None
    if partition >= _MOST or offset >= _MOST:
        return None
    entity = message.topic.rpartition(".")[2]
    digest, at = key_digest(entity, key), time_of(message)
    return Settling(entity, digest, at, partition, offset, message.value is None, judged, unknown)


def _moment_of(header: bytes) -> int:
    """The time in a header, in milliseconds; 0 if it is not a worker's."""
    try:
        return _milliseconds(msgspec.convert(header.decode(), _Moment))
    except _UNDECODABLE:
        return 0


def _milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // _MILLISECOND


def _names(header: bytes) -> tuple[str, ...]:
    """The names in a header; none if it is not a worker's. They are bounded like a worker's."""
    try:
        found = _name_list.decode(header)
    except _UNDECODABLE:
        return ()
    return tuple(shown(name, LONGEST_NAME) for name in found[:MOST_NAMED])


def _producer(headers: Sequence[tuple[str, str]]) -> str:
    for name, value in headers:
        if name == PRODUCER_HEADER:
            try:
                text = msgspec.convert(value, bytes, strict=False).decode()
            except _UNDECODABLE:
                return ""
            return shown(text, LONGEST_PRODUCER)
    return ""


def _wanted(violations: Sequence[Violation], fields: dict[str, msgspec.Raw]) -> Iterator[int]:
    for violation in violations:
        entity = _REFERS_TO.get(violation.code)
        if entity is None or violation.field not in fields:
            continue
        try:
            id_ = read_uuid(_text.decode(fields[violation.field]))
        except _UNDECODABLE:
            continue
        if id_ is not None:
            yield key_digest(entity, id_)
