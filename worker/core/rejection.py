"""The JSON form of a rejection. docs/contract.md, "A rejection"."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Iterator
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Final

import msgspec

from worker.core.decode import Invalid
from worker.core.violations import Violation
from worker.stream import Headers, Message

REPLAYS_HEADER: Final = "buddy-replays"
_HEADERS_OMITTED: Final = "buddy-headers-omitted"
"""In the copy of a parked record: how many of its headers were too large to be kept."""
_NULL: Final = msgspec.Raw(b"null")
_BLANK: Final = b" \t\r\n"
_FIRST_MS: Final = -62_135_596_800_000
LAST_MS: Final = 253_402_300_799_999
"""The first and the last millisecond of the years 1 to 9999."""
_DIGITS: Final = 5
"""The most digits of a number in a header."""


class Source(msgspec.Struct, frozen=True):
    """The coordinates of a record."""

    topic: str
    partition: int
    offset: int
    timestamp: str


class OmittedRecord(msgspec.Struct, frozen=True):
    """What is left of a record that even the enlarged message limit refuses."""

    bytes: int
    sha256: str


class Rejection(msgspec.Struct, frozen=True, kw_only=True):
    """A record with at least one error. Fields that are msgspec.UNSET are omitted.

    `record` is the original JSON, byte for byte. `record_base64` holds the original bytes where
    `record` alone cannot restore them.
    """

    entity: str
    key: str | None
    rejected_at: str
    source: Any
    violations: tuple[Violation, ...]
    violations_omitted: int = 0
    record: msgspec.Raw = _NULL
    record_base64: str | msgspec.UnsetType = msgspec.UNSET
    record_omitted: OmittedRecord | msgspec.UnsetType = msgspec.UNSET
    message_key_base64: str | None = None
    headers: list[tuple[str, str]] = msgspec.field(default_factory=list)
    headers_omitted: int | msgspec.UnsetType = msgspec.UNSET
    replays: int = 0

    @property
    def is_whole(self) -> bool:
        """Whether it holds the record and its headers."""
        return self.record_omitted is msgspec.UNSET and self.headers_omitted is msgspec.UNSET


_encode = msgspec.json.Encoder().encode


def timestamp(milliseconds: int) -> str:
    """A time in the canonical form of timestamps."""
    # A producer's clock may be arbitrarily wrong: clamp to the years 1 to 9999.
    moment = datetime.fromtimestamp(min(max(milliseconds, _FIRST_MS), LAST_MS) / 1000, UTC)
    text = moment.isoformat(timespec="microseconds" if moment.microsecond else "seconds")
    return text.replace("+00:00", "Z")


def original(rejection: Rejection) -> bytes | None:
    """The record exactly as it was sent; None for a deletion, or if the record was omitted."""
    if isinstance(rejection.record_base64, str):
        return b64decode(rejection.record_base64)
    record = bytes(rejection.record)
    return None if record == bytes(_NULL) else record


def replays_of(headers: Headers) -> int:
    """How often a record has been replayed, according to its headers."""
    return _number(headers, REPLAYS_HEADER)


def smallest_headers(headers: Headers) -> Headers:
    """What a rejection must know of headers that are too large to be kept, in a few bytes."""
    kept: list[tuple[str, bytes]] = [(_HEADERS_OMITTED, b"%d" % min(len(headers), 10**_DIGITS - 1))]
    if replays := replays_of(headers):
        kept.append((REPLAYS_HEADER, b"%d" % replays))
    return tuple(kept)


def _number(headers: Headers, wanted: str) -> int:
    for name, value in headers:
        if name == wanted and value.isdigit() and len(value) <= _DIGITS:
            return int(value)
    return 0


def reject(
    entity: str,
    message: Message,
    invalid: Invalid,
    now_ms: int,
    limit: int,
    source: object = None,
    omitted: OmittedRecord | None = None,
) -> tuple[bytes, bool]:
    """The rejection of one message as JSON, and whether its record or its headers were omitted.

    The JSON has at most `limit` bytes, unless even its smallest form is larger. Content that does
    not fit is dropped in this order:

    1. The JSON of a record whose bytes are included as well.
    2. The headers.
    3. The record: its size and SHA-256 replace it. The headers return if they fit.
    4. The headers, then the message key, then all violations but the first.

    `source` replaces the message's coordinates if the message comes from no broker. `omitted` means
    that the message's value is only the start of the record.
    """
    rejection = Rejection(
        entity=entity,
        key=None if invalid.key is None else invalid.key.decode(),
        rejected_at=timestamp(now_ms),
        source=source
        or Source(message.topic, message.partition, message.offset, timestamp(message.timestamp)),
        violations=invalid.violations,
        violations_omitted=invalid.omitted,
        message_key_base64=None if message.key is None else b64encode(message.key).decode(),
        headers=[(name, b64encode(value).decode()) for name, value in message.headers],
        replays=replays_of(message.headers),
    )
    if dropped := _number(message.headers, _HEADERS_OMITTED):
        rejection = msgspec.structs.replace(rejection, headers_omitted=dropped)
    is_json = not invalid.malformed
    for small in _ever_smaller(rejection, message.value, omitted, is_json=is_json):
        encoded = _encode(small)
        if len(encoded) <= limit:
            break
    return encoded, not small.is_whole


def _ever_smaller(
    rejection: Rejection, value: bytes | None, omitted: OmittedRecord | None, *, is_json: bool
) -> Iterator[Rejection]:
    """The complete rejection, then smaller and smaller forms."""
    replace = msgspec.structs.replace
    if omitted is None:
        if value is None:
            yield rejection
            value = b""
        else:
            text = b64encode(value).decode()
            if is_json and value == value.strip(_BLANK):
                whole = replace(rejection, record=msgspec.Raw(value))
            else:
                whole = replace(rejection, record_base64=text)
                if is_json:
                    yield replace(whole, record=msgspec.Raw(value))
            yield whole
            yield _without_headers(whole)
        omitted = OmittedRecord(len(value), sha256(value).hexdigest())
    small = replace(rejection, record_omitted=omitted)
    yield small
    small = _without_headers(small)
    yield small
    small = replace(small, message_key_base64=None)
    yield small
    more = len(small.violations[1:])
    yield replace(
        small,
        violations=small.violations[:1],
        violations_omitted=small.violations_omitted + more,
    )


def _without_headers(rejection: Rejection) -> Rejection:
    if not rejection.headers:
        return rejection
    count = len(rejection.headers)
    return msgspec.structs.replace(rejection, headers=[], headers_omitted=count)
