"""Judges one record alone: bytes in, a canonical row or all its violations out.

The fast path is one msgspec decode into the entity's Struct, and a few checks that types cannot
express. A record that fails one of them is judged field by field (`worker.core.rules`). This slow
path alone decides what is wrong, so the two paths need not agree on details.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from operator import attrgetter
from typing import Any, Final

import msgspec

from schemas import ENTITIES, Entity, Kind
from schemas.fields import Row
from worker.core.keys import form_of, key_of, read_key
from worker.core.known import address_digest
from worker.core.malformed import json_type, not_json, not_utf8
from worker.core.rules import NAIVE, check, plain_email
from worker.core.unknown import unknown_names
from worker.core.violations import Code, Findings, Violation, violation

DEFAULT_LIMIT: Final = 1024 * 1024
_LONGEST_PYTHON_INTEGER = 4000  # digits; int() refuses more than 4300


class Decoded(msgspec.Struct, frozen=True, gc=False):
    """A record without errors in its own fields; its references are not judged yet.

    `users` and `matches` are the ids that the record refers to, in the order of its decoder's
    `user_fields` and `match_fields`. An absent optional reference is empty bytes.
    """

    key: bytes
    row: bytes
    users: tuple[bytes, ...] = ()
    matches: tuple[bytes, ...] = ()
    address: bytes | None = None
    attendees: tuple[str, ...] = ()
    warnings: tuple[Violation, ...] = ()
    unknown_fields: int = 0
    unknown_names: tuple[str, ...] = ()
    """The names of the first unknown fields, safe to show."""


class Deletion(msgspec.Struct, frozen=True):
    """A null value with a readable key."""

    key: bytes


class Invalid(msgspec.Struct, frozen=True):
    """A record with at least one error; `key` is None if neither record nor message tells it."""

    key: bytes | None
    violations: tuple[Violation, ...]
    omitted: int = 0
    malformed: bool = False
    unknown_names: tuple[str, ...] = ()


DecodeResult = Decoded | Deletion | Invalid


class MalformedError(ValueError):
    """Not a readable JSON object. Never leaves this module."""


_END_OF_TIME: Final = datetime.max.replace(tzinfo=UTC)

_anything = msgspec.json.Decoder()
_encode = msgspec.json.Encoder().encode


class RecordDecoder:
    """Decodes the records of one entity."""

    def __init__(self, entity: Entity, limit: int = DEFAULT_LIMIT) -> None:
        """Records of more than `limit` bytes are malformed."""
        self.entity = entity
        self.limit = limit
        # Numbers such as 1E15 are longer in canonical form, so rows have a limit as well.
        self.longest_row = limit * 4 // 3
        self._too_long = f"expected at most {self.longest_row} bytes in canonical form"
        self._struct = msgspec.json.Decoder(entity.struct).decode
        columns = entity.columns
        self._columns = frozenset(column.name for column in columns)
        self._key_form = form_of(entity)
        self._other_key = f"expected the message key to be the record's {self._key_form}"
        self._moments = [c.name for c in columns if c.kind is Kind.TIMESTAMP]
        self._timestamps = _all_of(self._moments)
        self._texts = _some_of(c.name for c in columns if c.kind is Kind.TEXT and c.required)
        self._optional_texts = [c.name for c in columns if c.kind is Kind.TEXT and not c.required]
        self._ratings = _some_of(c.name for c in columns if c.kind is Kind.RATING)
        self.key_of: Callable[[Any], bytes] = _key(entity)
        """Reads the canonical key of a row."""
        self.user_fields = tuple(c.name for c in columns if c.refers_to == "users")
        self.match_fields = tuple(c.name for c in columns if c.refers_to == "matches")
        self.relations = _relations(entity, self.user_fields, self.match_fields)
        self.has_address = any(column.kind is Kind.EMAIL for column in columns)

    def decode(self, value: bytes | None, key: bytes | None, latest: datetime) -> DecodeResult:
        """Judge one message alone. `latest` is the latest time that is not in the future.

        Never raises because of a record's content.
        """
        if value is None:
            return self._deletion(key)
        if len(value) > self.limit:
            return self._malformed(f"expected at most {self.limit} bytes", key)
        naive: list[str] = []
        try:
            row = self._fast(value, latest, naive)
            if row is None:
                return self._slow(value, key, latest)
            encoded = _encode(row)
            if len(encoded) > self.longest_row:
                return self._malformed(self._too_long, key)
        except RecursionError:
            return self._malformed("nested too deep", key)
        except MalformedError as error:
            return self._malformed(str(error), key)
        canonical = self.key_of(row)
        if key is not None and key != canonical and read_key(self.entity, key) != canonical:
            return Invalid(canonical, (violation(Code.INVALID_KEY, "", self._other_key),))
        users, matches, address, attendees = self.relations(row)
        warnings = tuple([violation(Code.NAIVE_TIMESTAMP, name, NAIVE) for name in naive])
        return Decoded(canonical, encoded, users, matches, address, attendees, warnings)

    def _fast(self, value: bytes, latest: datetime, naive: list[str]) -> Row | None:
        """The record as a Struct in canonical form if it passes the fast checks, else None.

        Adds the names of fields without an offset to `naive`: they are read as UTC.
        """
        try:
            row: Row = self._struct(value)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            return None
        if b'""' in value:  # an empty string counts as absent
            self._drop_empty(row)
        for moment in self._timestamps(row):
            if moment is not None and (moment.tzinfo is not UTC or moment > latest):
                if not self._to_utc(row, latest, naive):
                    return None
                break
        if self._texts is not None:
            for text in self._texts(row):
                if not text or text.isspace():
                    return None
        if self._ratings is not None and 0 in self._ratings(row):  # may be -0.0
            return None
        if self.has_address and not plain_email(row.email):  # type: ignore[attr-defined]
            return None
        return row

    def canonical(self, value: bytes) -> Row | None:
        """The row with these bytes as its canonical form; None if there is no such row.

        Bytes are canonical if judging leaves them unchanged. The arrival time plays no role.
        """
        try:
            row = self._fast(value, _END_OF_TIME, [])
            if row is None:
                judged = self._by_field(value, None, _END_OF_TIME)
                if isinstance(judged, Invalid):
                    return None
                row = judged[0]
            return row if _encode(row) == value else None
        except (MalformedError, RecursionError):
            return None

    def _drop_empty(self, row: Row) -> None:
        for name in self._optional_texts:
            if getattr(row, name) == "":
                setattr(row, name, None)

    def _to_utc(self, row: Row, latest: datetime, naive: list[str]) -> bool:
        """Convert the row's times to UTC; False if one of them is out of range or too late."""
        for name in self._moments:
            moment = getattr(row, name)
            if moment is None:
                continue
            if moment.tzinfo is None:
                moment = moment.replace(tzinfo=UTC)
                naive.append(name)
            if moment > latest:
                return False
            try:
                setattr(row, name, moment.astimezone(UTC))
            except OverflowError:
                return False
        return True

    def _slow(self, value: bytes, key: bytes | None, latest: datetime) -> Decoded | Invalid:
        """Judge field by field: every violation, or the row if none is an error."""
        judged = self._by_field(value, key, latest)
        if isinstance(judged, Invalid):
            return judged
        row, warnings, unknown, names = judged
        encoded = _encode(row)
        if len(encoded) > self.longest_row:
            raise MalformedError(self._too_long)
        key = self.key_of(row)
        return Decoded(key, encoded, *self.relations(row), warnings, unknown, names)

    def _by_field(
        self, value: bytes, key: bytes | None, latest: datetime
    ) -> Invalid | tuple[Row, tuple[Violation, ...], int, tuple[str, ...]]:
        """All violations; or the row, its warnings, and number and names of unknown fields."""
        record = parse(value)
        found = Findings()
        values: dict[str, Any] = {}
        known = 0
        for column in self.entity.columns:
            known += column.name in record
            checked = check(column, record.get(column.name), latest, found)
            if checked is not None:
                values[column.name] = checked
        own_key = self._checked_key(values, found)
        message_key = None if key is None else read_key(self.entity, key)
        if key is not None and (
            message_key is None or (own_key is not None and own_key != message_key)
        ):
            found.add_first(Code.INVALID_KEY, "", self._other_key)
        unknown = len(record) - known
        names = unknown_names(record, self._columns) if unknown else ()
        violations = tuple(found.violations)
        if found.errors:
            own_key = own_key or message_key
            return Invalid(own_key, violations, found.omitted, unknown_names=names)
        return self.entity.struct(**values), violations, unknown, names

    def _checked_key(self, values: dict[str, Any], found: Findings) -> bytes | None:
        """The record's own key; None if a part of the key is missing or has an error."""
        wrong = {v.field for v in found.violations if v.severity == "error"}
        return None if wrong & set(self.entity.key) else key_of(self.entity, values)

    def _deletion(self, key: bytes | None) -> Deletion | Invalid:
        if key is None:
            message = f"expected the message key that names the row to delete: {self._key_form}"
            return Invalid(None, (violation(Code.INVALID_KEY, "", message),))
        canonical = read_key(self.entity, key)
        if canonical is None:
            message = f"expected the key of a row: {self._key_form}"
            return Invalid(None, (violation(Code.INVALID_KEY, "", message),))
        return Deletion(canonical)

    def _malformed(self, message: str, key: bytes | None) -> Invalid:
        canonical = None if key is None else read_key(self.entity, key)
        found = (violation(Code.MALFORMED_RECORD, "", message),)
        return Invalid(canonical, found, malformed=True)


@cache
def decoders(limit: int = DEFAULT_LIMIT) -> Mapping[str, RecordDecoder]:
    """A decoder for each entity, by name, in the order of the specification.

    Decoders keep nothing of the records, so all tasks share them.
    """
    return {name: RecordDecoder(entity, limit) for name, entity in ENTITIES.items()}


def parse(value: bytes) -> dict[str, Any]:
    """The JSON object in the bytes; the last of duplicate keys counts.

    Decimal numbers beyond a double's range become infinite. Integers of thousands of digits become
    `msgspec.Raw`. Raises MalformedError, and RecursionError if nested too deeply.
    """
    if not value:
        raise MalformedError("expected a JSON object, found nothing")
    try:
        text = value.decode()
    except UnicodeDecodeError as error:
        raise MalformedError(not_utf8(value, error)) from None
    try:
        record = _anything.decode(value)
    except msgspec.ValidationError:  # well-formed so far, but msgspec refuses a number
        record = _parse_extreme(text)
    except msgspec.MsgspecError:
        raise MalformedError(not_json(text)) from None
    if not isinstance(record, dict):
        raise MalformedError(f"expected a JSON object, found {json_type(record)}")
    return record


def _parse_extreme(text: str) -> object:
    try:
        if "\\u" in text:  # the json module lets lone surrogates through; the encoder does not
            # Parse objects as pairs, to check the values of earlier duplicate keys too.
            pairs: Any = list
            hooks: Any = {"parse_int": str, "parse_float": str, "object_pairs_hook": pairs}
            _encode(json.loads(text, parse_constant=_refuse, **hooks))
        return json.loads(text, parse_int=_parse_integer, parse_constant=_refuse)
    except ValueError:  # UnicodeEncodeError too
        raise MalformedError(not_json(text)) from None


def _parse_integer(digits: str) -> object:
    return int(digits) if len(digits) <= _LONGEST_PYTHON_INTEGER else msgspec.Raw(digits.encode())


def _refuse(constant: str) -> object:
    raise ValueError(constant)


def _all_of(names: Iterable[str]) -> Callable[[Any], tuple[Any, ...]]:
    """A function that reads the named attributes as a tuple, for any number of names."""
    match tuple(names):
        case ():
            return lambda _row: ()
        case (name,):
            one = attrgetter(name)
            return lambda row: (one(row),)
        case several:
            return attrgetter(*several)


def _some_of(names: Iterable[str]) -> Callable[[Any], tuple[Any, ...]] | None:
    """As `_all_of`; None if there are no names, which saves a call per record."""
    known = tuple(names)
    return _all_of(known) if known else None


def _key(entity: Entity) -> Callable[[Any], bytes]:
    """A function that reads the canonical key of a row."""
    if len(entity.key) == 1:
        one: Callable[[Any], str] = attrgetter(entity.key[0])
        return lambda row: one(row).encode()
    first, second = map(attrgetter, entity.key)
    return lambda row: f"{first(row)}:{second(row)}".encode()


_Relations = tuple[tuple[bytes, ...], tuple[bytes, ...], bytes | None, tuple[str, ...]]


def _relations(
    entity: Entity, user_fields: tuple[str, ...], match_fields: tuple[str, ...]
) -> Callable[[Any], _Relations]:
    """A function that reads a row's relations: users, matches, its address, its attendees.

    One function per shape, so that no row pays for relations that its entity lacks.
    """
    if any(column.kind is Kind.EMAIL for column in entity.columns):
        return lambda row: ((), (), address_digest(row.email), ())
    users, matches = _ids(user_fields), _ids(match_fields)
    attendees = next((column.name for column in entity.columns if column.names), None)
    if attendees is not None:
        named = attrgetter(attendees)
        return lambda row: (users(row), matches(row), None, tuple(named(row) or ()))
    if not match_fields:
        return lambda row: (users(row), (), None, ())
    if not user_fields:
        return lambda row: ((), matches(row), None, ())
    return lambda row: (users(row), matches(row), None, ())


def _ids(names: tuple[str, ...]) -> Callable[[Any], tuple[bytes, ...]]:
    """A function that reads the named references as index ids, empty where absent."""
    fromhex = bytes.fromhex
    if len(names) == 1:
        one = attrgetter(*names)

        def single(row: Any) -> tuple[bytes, ...]:
            uuid = one(row)
            return (fromhex(uuid.replace("-", "")) if uuid else b"",)

        return single
    get = _all_of(names)
    return lambda row: tuple([fromhex(u.replace("-", "")) if u else b"" for u in get(row)])


def latest_moment(arrival_ms: int, skew_seconds: float) -> datetime:
    """The latest time that is not in the future for a record with this arrival time."""
    return datetime.fromtimestamp(max(arrival_ms, 0) / 1000 + skew_seconds, UTC)
