"""The rule of each kind of column: a JSON value in, the canonical value out, violations noted.

Only records that the fast decoder does not accept come here (`worker.core.decode`). The code
therefore favours readability and complete reports over speed. Rules: docs/contract.md, "Violations"
and "Canonical row".
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Final

import msgspec

from schemas import Column, Kind
from worker.core.violations import Code, Findings

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
NAIVE: Final = "has no UTC offset: read as UTC"
_TIMESTAMP = re.compile(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]+)?"
    r"(?:[Zz]|[+-](?:[01][0-9]|2[0-3]):?[0-5][0-9])?"
)
# A host label: ASCII letters and digits, non-ASCII except white space, and hyphens inside.
_LABEL = r"(?:[a-z0-9]|[^\x00-\x7f\s])(?:(?:[a-z0-9-]|[^\x00-\x7f\s])*(?:[a-z0-9]|[^\x00-\x7f\s]))?"
_EMAIL = re.compile(rf"[^\s@]{{1,64}}@{_LABEL}(?:\.{_LABEL})*")
_LONGEST_EMAIL: Final = 254

Rule = Callable[[Column, object, datetime, Findings], object]


def is_email(address: str) -> bool:
    """Whether a lower-cased text is an address: `local@host` as docs/contract.md defines it."""
    return len(address) <= _LONGEST_EMAIL and _EMAIL.fullmatch(address) is not None


plain_email = re.compile(r"[a-z0-9._+-]{1,64}@[a-z0-9]+(?:[.-][a-z0-9]+)+").fullmatch
"""Matches addresses of the common kind, in lower case: a cheap test before `is_email`. It does not
check the limit of 254 characters, which the Struct's field enforces."""


def read_uuid(text: str) -> str | None:
    """The UUID v4 in a text of 36 characters, in lower case; None if the text is not one."""
    lower = text.lower()
    # `lower` turns some non-ASCII characters into ASCII letters.
    return lower if text.isascii() and _UUID.fullmatch(lower) else None


def odd_uuids(texts: Sequence[str], first: int = 0) -> Iterator[int]:
    """The positions of the texts that `read_uuid` changes or refuses; usually few.

    Positions count from `first`.
    """
    if are_uuids(texts):
        return
    if len(texts) == 1:
        yield first
        return
    half = len(texts) // 2
    yield from odd_uuids(texts[:half], first)
    yield from odd_uuids(texts[half:], first + half)


def are_uuids(texts: Collection[str]) -> bool:
    """Whether `read_uuid` leaves all texts unchanged. Checks them as one joined text, for speed."""
    count = len(texts)
    joined = "".join(texts).encode()
    return (
        set(map(len, texts)) <= {36}
        and len(joined) == 36 * count
        and joined.translate(None, b"0123456789abcdef") == b"-" * (4 * count)
        and joined[8::36] == joined[13::36] == joined[18::36] == joined[23::36] == b"-" * count
        and joined[14::36] == b"4" * count
        and not joined[19::36].translate(None, b"89ab")
    )


def _expected(column: Column) -> str:
    """What a column accepts, in words for the sender of a missing or wrong value."""
    match column.kind:
        case Kind.UUID:
            return "expected a UUID of version 4, 36 characters long"
        case Kind.TIMESTAMP:
            return "expected a date and time such as 2024-01-15T10:00:00Z, in the years 1 to 9999"
        case Kind.EMAIL:
            return "expected an address such as name@example.org"
        case Kind.ENUM:
            return "expected one of " + ", ".join(column.values)
        case Kind.RATING:
            return "expected a number from 0.00 to 1.00"
        case Kind.INTEGER:
            return f"expected an integer from {column.lowest} to {column.highest}"
        case Kind.TEXT if column.longest is not None:
            return f"expected text of at most {column.longest} characters"
        case kind:
            return f"expected {kind.value}"


def _wrong_type(column: Column, expected: str, found: Findings) -> object:
    found.add(Code.WRONG_TYPE, column.name, f"expected {expected}")
    return None


def _uuid(column: Column, value: object, _latest: datetime, found: Findings) -> object:
    if not isinstance(value, str):
        return _wrong_type(column, "a string that holds a UUID", found)
    uuid = read_uuid(value)
    if uuid is None:
        found.add(Code.INVALID_UUID, column.name, _expected(column))
    return uuid


def _timestamp(column: Column, value: object, latest: datetime, found: Findings) -> object:
    if not isinstance(value, str):
        return _wrong_type(column, "a string that holds a timestamp", found)
    moment = _read_timestamp(value)
    if moment is None:
        found.add(Code.INVALID_TIMESTAMP, column.name, _expected(column))
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
        found.add(Code.NAIVE_TIMESTAMP, column.name, NAIVE)
    if moment > latest:
        found.add(Code.FUTURE_TIMESTAMP, column.name, "expected no time after the arrival")
    return moment


def _read_timestamp(text: str) -> datetime | None:
    """The time that a text spells: in UTC, or naive if the text has no UTC offset."""
    if _TIMESTAMP.fullmatch(text) is None:
        return None
    try:
        moment = msgspec.convert(text, datetime)
        return moment if moment.tzinfo is None else moment.astimezone(UTC)
    except (msgspec.ValidationError, OverflowError):  # no such date; outside the years 1 to 9999
        return None


def _text(column: Column, value: object, _latest: datetime, found: Findings) -> object:
    if not isinstance(value, str):
        return _wrong_type(column, "a string", found)
    if column.longest is not None and len(value) > column.longest:
        found.add(Code.TEXT_TOO_LONG, column.name, f"expected at most {column.longest} characters")
    return value


def _email(column: Column, value: object, _latest: datetime, found: Findings) -> object:
    if not isinstance(value, str):
        return _wrong_type(column, "a string that holds an e-mail address", found)
    address = value.lower()
    if not is_email(address):
        found.add(Code.INVALID_EMAIL, column.name, _expected(column))
    elif address != value:
        found.add(Code.EMAIL_LOWERCASED, column.name, "had upper-case letters: lower-cased")
    return address


def _enum(column: Column, value: object, _latest: datetime, found: Findings) -> object:
    if not isinstance(value, str):
        return _wrong_type(column, "a string", found)
    if value not in column.values:
        found.add(Code.INVALID_ENUM, column.name, _expected(column))
    return value


def _range(column: Column) -> str:
    return f"expected a number from {column.lowest} to {column.highest}"


def _is_integer(value: object) -> bool:
    """Whether the JSON literal was an integer; `Raw` is one with thousands of digits."""
    return isinstance(value, int | msgspec.Raw) and not isinstance(value, bool)


def _in_range(column: Column, value: object) -> bool:
    return (
        isinstance(value, int | float)
        and column.lowest is not None
        and column.highest is not None
        and column.lowest <= value <= column.highest
    )


def _integer(column: Column, value: object, _latest: datetime, found: Findings) -> object:
    if not _is_integer(value):
        return _wrong_type(column, "an integer", found)
    if not _in_range(column, value):
        found.add(Code.NUMBER_OUT_OF_RANGE, column.name, _range(column))
    return value


def _rating(column: Column, value: object, _latest: datetime, found: Findings) -> object:
    if not (_is_integer(value) or isinstance(value, float)):
        return _wrong_type(column, "a number", found)
    if not _in_range(column, value):
        found.add(Code.RATING_OUT_OF_RANGE, column.name, _expected(column))
        return None
    assert isinstance(value, int | float)
    return float(value) + 0.0  # -0.0 is written 0.0


def _texts(column: Column, value: object, _latest: datetime, found: Findings) -> object:
    if not isinstance(value, list):
        return _wrong_type(column, "an array of strings", found)
    for index, entry in enumerate(value):
        if not isinstance(entry, str):
            found.add(Code.WRONG_TYPE, f"{column.name}[{index}]", "expected a string")
    return value


def _integers(column: Column, value: object, _latest: datetime, found: Findings) -> object:
    if not isinstance(value, list):
        return _wrong_type(column, "an array of integers", found)
    for index, entry in enumerate(value):
        path = f"{column.name}[{index}]"
        if not _is_integer(entry):
            found.add(Code.WRONG_TYPE, path, "expected an integer")
        elif not _in_range(column, entry):
            found.add(Code.NUMBER_OUT_OF_RANGE, path, _range(column))
    return value


def _object(column: Column, value: object, _latest: datetime, found: Findings) -> object:
    if not isinstance(value, dict):
        return _wrong_type(column, "an object", found)
    if _overflows(value):
        found.add(
            Code.NUMBER_OUT_OF_RANGE,
            column.name,
            "expected decimal numbers within the range of a double",
        )
    return value


def _overflows(value: object) -> bool:
    """Whether any nested decimal number is beyond a double's range (it decodes as infinity)."""
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, float):
            if math.isinf(item):
                return True
        elif isinstance(item, dict):
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return False


RULES: Final[Mapping[Kind, Rule]] = MappingProxyType(
    {
        Kind.UUID: _uuid,
        Kind.TIMESTAMP: _timestamp,
        Kind.TEXT: _text,
        Kind.EMAIL: _email,
        Kind.ENUM: _enum,
        Kind.INTEGER: _integer,
        Kind.RATING: _rating,
        Kind.TEXTS: _texts,
        Kind.INTEGERS: _integers,
        Kind.OBJECT: _object,
    }
)


def check(column: Column, value: object, latest: datetime, found: Findings) -> object:
    """The canonical value of a column; None if the value is absent or wrong.

    Null and the empty string count as absent for every kind. Blank text counts as absent in a
    required column. `latest` is the latest time that is not in the future. Violations are added to
    `found`.
    """
    absent = value is None or value == ""
    if column.required and (absent or (isinstance(value, str) and value.isspace())):
        found.add(Code.MISSING_REQUIRED_FIELD, column.name, _expected(column))
        return None
    if absent:
        return None
    return RULES[column.kind](column, value, latest, found)
