"""Faulty records, each wrong in one known way, and the codes that the worker must report for them.

Rules:
- Each kind of fault has one function. The function copies a good record, gives the copy its own
  primary key and address, and spoils it. It also names the expected codes. The good record stays
  unchanged.
- A spoiled record has the references of the good record, so nothing but the fault is wrong.
- Two faults are left out: a record over the size limit, and one nested 100,000 levels deep. They
  cost the demo more than they show. No input causes `internal_error`.
"""

import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from random import Random
from typing import Final

from worker.demo.bad_values import (
    INVALID_EMAILS,
    INVALID_ENUMS,
    INVALID_TIMES,
    OUT_OF_RANGE,
    WRONG_TYPE,
)
from worker.demo.record import (
    ENTITIES,
    FIELDS,
    KEY_FIELDS,
    USER_REFERENCES,
    Record,
    Row,
    encode,
    key_of,
    uuid4,
)

Fault = Callable[[Random, str, Row, datetime], Record]

_TEXT_FIELD: Final = {  # the fields for encoding faults; a match has no free text
    "users": "first_name",
    "events": "description",
    "event_attendance": "event_title",
    "skill_sessions": "skill_name",
    "checkins": "notes",
    "feedback": "feedback_text",
    "milestones": "milestone_title",
}
_RAW: Final = "@raw@"


def _fresh(rng: Random, entity: str, good: Row) -> Row:
    """Copy a good record, with a primary key (and address) that no other record has."""
    row = dict(good)
    if entity == "milestones":  # above every id of the programme's catalogue
        row["milestone_id"] = rng.randrange(1_000_000, 1_000_000_000)
    else:
        row[KEY_FIELDS[entity][0]] = uuid4(rng)
    if entity == "users":
        row["email"] = f"{_token(rng)}@example.com"
    return row


def _token(rng: Random) -> str:
    return f"u{rng.getrandbits(48):012x}"


def _fields(entity: str, *types: str) -> list[str]:
    return [name for name, type_ in FIELDS[entity].items() if type_.rstrip("!") in types]


def _having(*types: str) -> tuple[str, ...]:
    return tuple(entity for entity in ENTITIES if _fields(entity, *types))


def _spoiled(entity: str, row: Row, field: str, value: object, *expect: str) -> Record:
    """Set one field. If the field is part of the key, the record has no readable key."""
    row[field] = value
    key = None if field in KEY_FIELDS[entity] else key_of(entity, row)
    return Record(entity, key, encode(row), expect)


def _with_raw(row: Row, field: str, raw: bytes, *, inside: bool = False) -> bytes:
    """Encode a row with `raw` as the value of one field, or inside an object as that value."""
    row[field] = {"answer": _RAW} if inside else _RAW
    return encode(row).replace(f'"{_RAW}"'.encode(), raw)


def _malformed(entity: str, value: bytes) -> Record:
    return Record(entity, None, value, ("malformed_record",))


# Malformed: the bytes are not a record.


def truncated(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    whole = encode(_fresh(rng, entity, good))
    return _malformed(entity, whole[: rng.randrange(1, len(whole))])


def not_json(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    whole = encode(_fresh(rng, entity, good))
    quoted = whole.replace(b'"', b"'")
    return _malformed(entity, rng.choice((whole + whole, whole[:-1] + b",}", quoted, b"ping")))


def not_utf8(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    row = _fresh(rng, entity, good)
    latin1 = rng.choice(("Øyvind", "José", "Zoë")).encode("latin-1")
    return _malformed(entity, _with_raw(row, _TEXT_FIELD[entity], b'"' + latin1 + b'"'))


def byte_order_mark(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    return _malformed(entity, b"\xef\xbb\xbf" + encode(_fresh(rng, entity, good)))


def not_a_number(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    field = rng.choice(_fields(entity, "rating", "positive", "count", "object"))
    raw = rng.choice((b"NaN", b"Infinity", b"-Infinity"))
    inside = "object" in FIELDS[entity][field]
    return _malformed(entity, _with_raw(_fresh(rng, entity, good), field, raw, inside=inside))


def not_an_object(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    whole = encode(_fresh(rng, entity, good))
    return _malformed(entity, rng.choice((b"[" + whole + b"]", b"null", b'"record"', b"42")))


def empty_value(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    return _malformed(entity, rng.choice((b"", b" ", b"\n")))


def lone_surrogate(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    row = _fresh(rng, entity, good)
    raw = rng.choice((rb'"Hei \ud83d"', rb'"\udc00"', rb'"a\ude00\ud83db"'))
    return _malformed(entity, _with_raw(row, _TEXT_FIELD[entity], raw))


# One field is wrong.


def missing_required_field(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    row = _fresh(rng, entity, good)
    field = rng.choice([name for name, type_ in FIELDS[entity].items() if type_.endswith("!")])
    blank = ("  ",) if FIELDS[entity][field] in ("name!", "text!") else ()
    absent = object()
    value = rng.choice((absent, None, "", *blank))
    if value is not absent:
        return _spoiled(entity, row, field, value, "missing_required_field")
    del row[field]
    key = None if field in KEY_FIELDS[entity] else key_of(entity, row)
    return Record(entity, key, encode(row), ("missing_required_field",))


def wrong_type(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    field = rng.choice([name for name in FIELDS[entity] if name not in KEY_FIELDS[entity]])
    value = rng.choice(WRONG_TYPE[FIELDS[entity][field].rstrip("!")])
    return _spoiled(entity, _fresh(rng, entity, good), field, value, "wrong_type")


def invalid_uuid(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    field = rng.choice(_fields(entity, "uuid"))
    valid = uuid4(rng)
    values = (
        valid.replace("-", ""), f"{{{valid}}}", f"urn:uuid:{valid}", valid[:-1], f" {valid}",
        f"{valid[:-1]}g", "user-17", "00000000-0000-0000-0000-000000000000",
        f"{valid[:19]}c{valid[20:]}",
    )  # fmt: skip
    return _spoiled(entity, _fresh(rng, entity, good), field, rng.choice(values), "invalid_uuid")


def uuid_version(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    field = rng.choice(_fields(entity, "uuid"))
    value = str(uuid.UUID(int=rng.getrandbits(128), version=rng.choice((1, 3, 5))))
    return _spoiled(entity, _fresh(rng, entity, good), field, value, "invalid_uuid")


def invalid_timestamp(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    field, value = rng.choice(_fields(entity, "time")), rng.choice(INVALID_TIMES)
    return _spoiled(entity, _fresh(rng, entity, good), field, value, "invalid_timestamp")


def future_timestamp(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    field = rng.choice(_fields(entity, "time"))
    # Far enough ahead to be in the future however long the demo runs.
    later = now + timedelta(days=rng.randrange(30, 3000), seconds=rng.randrange(86_400))
    value = rng.choice((f"{later:%Y-%m-%dT%H:%M:%SZ}", "9999-12-31T23:59:59Z"))
    return _spoiled(entity, _fresh(rng, entity, good), field, value, "future_timestamp")


def invalid_enum(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    field, value = rng.choice(_fields(entity, "enum")), rng.choice(INVALID_ENUMS)
    return _spoiled(entity, _fresh(rng, entity, good), field, value, "invalid_enum")


def rating_out_of_range(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    field = rng.choice(_fields(entity, "rating"))
    value = rng.choice((1.01, -0.01, 5, 4.5, -1, 85, 1.0000001))
    return _spoiled(entity, _fresh(rng, entity, good), field, value, "rating_out_of_range")


def number_out_of_range(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    types = tuple(OUT_OF_RANGE)
    field = rng.choice([f for f in _fields(entity, *types) if f not in KEY_FIELDS[entity]])
    value = rng.choice(OUT_OF_RANGE[FIELDS[entity][field].rstrip("!")])
    return _spoiled(entity, _fresh(rng, entity, good), field, value, "number_out_of_range")


def object_number_out_of_range(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    row = _fresh(rng, entity, good)
    field, raw = rng.choice(_fields(entity, "object")), rng.choice((b"1e999", b"-2.5E400"))
    value = _with_raw(row, field, raw, inside=True)
    return Record(entity, key_of(entity, row), value, ("number_out_of_range",))


def text_too_long(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    field = rng.choice(_fields(entity, "name"))
    value = rng.choice("aåЖ宮😀") * rng.choice((101, 102, 300))
    return _spoiled(entity, _fresh(rng, entity, good), field, value, "text_too_long")


def invalid_email(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    value = rng.choice(INVALID_EMAILS).format(_token(rng))
    return _spoiled(entity, _fresh(rng, entity, good), "email", value, "invalid_email")


def several_violations(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    row = _fresh(rng, entity, good)
    if entity == "users":
        row |= {"email": "nobody", "last_name": None, "role": "Mentor", "joined_at": "today"}
        expect: tuple[str, ...] = (
            "invalid_email",
            "missing_required_field",
            "invalid_enum",
            "invalid_timestamp",
        )
    else:
        row |= {"duration_minutes": "60", "format": "zoom", "teacher_rating": 4.5}
        expect = ("wrong_type", "invalid_enum", "rating_out_of_range")
    return Record(entity, key_of(entity, row), encode(row), expect)


# The key, the address or a reference is wrong: the value alone does not show the fault.


def contradicting_key(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    row, other = _fresh(rng, entity, good), _fresh(rng, entity, good)
    return Record(entity, key_of(entity, other), encode(row), ("invalid_key",))


def unreadable_key(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    row, key = _fresh(rng, entity, good), rng.choice(("key-1", "42", "::", "undefined"))
    return Record(entity, key, encode(row), ("invalid_key",))


def deletion_without_key(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    return Record(entity, None, None, ("invalid_key",))


def deletion_of_unreadable_key(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    return Record(entity, rng.choice(("key-1", "42", "::")), None, ("invalid_key",))


def duplicate_email(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    """Let a new user claim the address of `good`; send the claim long after `good`."""
    row = _fresh(rng, entity, good)
    return _spoiled(entity, row, "email", good["email"], "duplicate_email")


def orphaned_user_id(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    row = _fresh(rng, entity, good)
    row[rng.choice([name for name in FIELDS[entity] if name in USER_REFERENCES])] = uuid4(rng)
    return Record(entity, key_of(entity, row), encode(row), ("orphaned_user_id",))


# Accepted, with or without a warning.


def orphaned_match_id(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    row = _fresh(rng, entity, good)
    # Attendees never wait for their users; the match does, and here there is no match.
    row.pop("attendees", None)
    return _spoiled(entity, row, "match_id", uuid4(rng), "orphaned_match_id")


def orphaned_attendee(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    guests = rng.choice(([uuid4(rng)], ["user-1", "user-2"], ["Kari (guest)"]))
    return _spoiled(entity, _fresh(rng, entity, good), "attendees", guests, "orphaned_attendee")


def naive_timestamp(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    field = rng.choice(_fields(entity, "time"))
    past = now - timedelta(days=rng.randrange(2, 600), seconds=rng.randrange(86_400))
    value = past.strftime(rng.choice(("%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S.%f")))
    return _spoiled(entity, _fresh(rng, entity, good), field, value, "naive_timestamp")


def email_lowercased(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    row = _fresh(rng, entity, good)
    address = str(row["email"])
    value = rng.choice((address.upper(), address.capitalize(), address.replace("com", "Com")))
    return _spoiled(entity, row, "email", value, "email_lowercased")


def unknown_field(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    name, value = rng.choice((("phone", None), ("crm_id", 90125), ("_meta", {"v": [1, "x"]})))
    return _spoiled(entity, _fresh(rng, entity, good), name, value)


def uppercase_uuid(rng: Random, entity: str, good: Row, now: datetime) -> Record:
    row = _fresh(rng, entity, good)
    for field in _fields(entity, "uuid"):
        if field in row:
            row[field] = str(row[field]).upper()
    return Record(entity, key_of(entity, row).lower(), encode(row))


_TEXTUAL: Final = tuple(_TEXT_FIELD)
_NUMERIC: Final = _having("rating", "positive", "count", "object")
_TO_USERS: Final = ("matches", "event_attendance", "skill_sessions", "milestones")
_TO_MATCHES: Final = ("events", "event_attendance", "skill_sessions", "checkins", "feedback")
_USERS: Final = ("users",)

_TABLE: Final[Mapping[str, tuple[Fault, tuple[str, ...]]]] = {
    "truncated": (truncated, ENTITIES),
    "not_json": (not_json, ENTITIES),
    "not_utf8": (not_utf8, _TEXTUAL),
    "byte_order_mark": (byte_order_mark, ENTITIES),
    "not_a_number": (not_a_number, _NUMERIC),
    "not_an_object": (not_an_object, ENTITIES),
    "empty_value": (empty_value, ENTITIES),
    "lone_surrogate": (lone_surrogate, _TEXTUAL),
    "missing_required_field": (missing_required_field, ENTITIES),
    "wrong_type": (wrong_type, ENTITIES),
    "invalid_uuid": (invalid_uuid, ENTITIES),
    "uuid_version": (uuid_version, ENTITIES),
    "invalid_timestamp": (invalid_timestamp, ENTITIES),
    "future_timestamp": (future_timestamp, ENTITIES),
    "invalid_enum": (invalid_enum, _having("enum")),
    "rating_out_of_range": (rating_out_of_range, _having("rating")),
    "number_out_of_range": (number_out_of_range, _having("positive", "count", "goals")),
    "object_number_out_of_range": (object_number_out_of_range, _having("object")),
    "text_too_long": (text_too_long, _USERS),
    "invalid_email": (invalid_email, _USERS),
    "several_violations": (several_violations, ("users", "skill_sessions")),
    "contradicting_key": (contradicting_key, ENTITIES),
    "unreadable_key": (unreadable_key, ENTITIES),
    "deletion_without_key": (deletion_without_key, ENTITIES),
    "deletion_of_unreadable_key": (deletion_of_unreadable_key, ENTITIES),
    "duplicate_email": (duplicate_email, _USERS),
    "orphaned_user_id": (orphaned_user_id, _TO_USERS),
    "orphaned_match_id": (orphaned_match_id, _TO_MATCHES),
    "orphaned_attendee": (orphaned_attendee, ("events",)),
    "naive_timestamp": (naive_timestamp, ENTITIES),
    "email_lowercased": (email_lowercased, _USERS),
    "unknown_field": (unknown_field, ENTITIES),
    "uppercase_uuid": (uppercase_uuid, ENTITIES),
}

KINDS: Final = tuple(_TABLE)


def entities_of(kind: str) -> tuple[str, ...]:
    """Return the entities in which this kind of fault can occur."""
    return _TABLE[kind][1]


def make(kind: str, rng: Random, entity: str, good: Row, now: datetime) -> Record:
    """Spoil a copy of the good record `good`, which stays unchanged.

    `entity` is one of `entities_of(kind)`; `now` is the time at which the demo runs.
    """
    return _TABLE[kind][0](rng, entity, good, now)
