"""JSON Schema (2020-12) of the entities: input records and published rows.

A record's schema agrees with the verdicts as far as JSON Schema can express the rules.
docs/schemas.md lists the differences. The schemas use only keywords with the same meaning in draft
7, the dialect of AsyncAPI. For the same reason `$ref` has no sibling keywords.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final, assert_never

from schemas import patterns
from schemas.registry import ENTITIES, Column, Entity, Kind

Schema = dict[str, Any]

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
URN: Final = "urn:buddy-stream:schema"
_HERE: Final = "#/$defs/"
_IDS: Final = {None: "Id", "users": "UserId", "matches": "MatchId"}
_ABSENT: Final = "Absent"


def json_schema(entity: Entity) -> Schema:
    """The schema of the entity's input records, as a document of its own.

    It is looser than the schema of a row where the contract is looser. UUIDs come in any case, and
    null and the empty string count as absent. Unknown fields are allowed: the worker drops them.
    """
    return document(entity.name, definitions()[record_name(entity)], definitions())


def document(name: str, root: Schema, known: Mapping[str, Schema]) -> Schema:
    """A schema with an `$id`, and all definitions that it refers to, directly or indirectly."""
    used: dict[str, Schema] = {}
    waiting = [*_references(root)]
    while waiting:
        wanted = waiting.pop()
        if wanted not in used:
            used[wanted] = known[wanted]
            waiting += _references(known[wanted])
    inner = {name: known[name] for name in known if name in used}
    return {"$schema": DIALECT, "$id": f"{URN}:{name}", **root, "$defs": inner}


def definitions() -> dict[str, Schema]:
    """All definitions by name: shared types, records (`User`), rows (`UserRow`)."""
    found = {
        _ABSENT: {
            "description": "null and the empty string count as absent",
            "enum": ["", None],
        },
        **_shared(canonical=False),
        **_shared(canonical=True),
    }
    for entity in ENTITIES.values():
        found[record_name(entity)] = _object(entity, canonical=False)
    for entity in ENTITIES.values():
        found[row_name(entity)] = _object(entity, canonical=True)
    return found


def record_name(entity: Entity) -> str:
    """The name of the definition of the entity's input records."""
    return entity.struct.__name__


def row_name(entity: Entity) -> str:
    """The name of the definition of the entity's published rows."""
    return f"{entity.struct.__name__}Row"


def reference(name: str) -> Schema:
    """A `$ref` to a definition."""
    return {"$ref": _HERE + name}


def key_schema(entity: Entity, *, canonical: bool) -> Schema:
    """The schema of a message key as text."""
    uuid = patterns.LOWER_UUID if canonical else patterns.UUID
    number = "[1-9][0-9]{0,15}" if canonical else "[0-9]{1,16}"
    parts = [uuid if entity.column(name).kind is Kind.UUID else number for name in entity.key]
    return {"description": ":".join(entity.key), **one_line(patterns.anchored(":".join(parts)))}


def _references(schema: object) -> Iterator[str]:
    if isinstance(schema, dict):
        target = schema.get("$ref")
        if isinstance(target, str):
            yield target.removeprefix(_HERE)
        for inner in schema.values():
            yield from _references(inner)
    elif isinstance(schema, list):
        for inner in schema:
            yield from _references(inner)


def _shared(*, canonical: bool) -> dict[str, Schema]:
    """The types that several columns share; a row's types are named `Row…`."""
    uuid = {
        "type": "string",
        "minLength": 36,
        "maxLength": 36,
        "pattern": patterns.anchored(patterns.LOWER_UUID if canonical else patterns.UUID),
        "format": "uuid",
    }
    prefix = "Row" if canonical else ""
    types: dict[str, Schema] = {
        f"{prefix}{name}": {"description": _about(Kind.UUID, refers_to), **uuid}
        for refers_to, name in _IDS.items()
    }
    moment = one_line(patterns.UTC_TIMESTAMP if canonical else patterns.TIMESTAMP)
    if canonical:  # a record's offset may be absent (a warning), but `date-time` requires one
        moment["format"] = "date-time"
    email = one_line(patterns.LOWER_EMAIL if canonical else patterns.EMAIL, longest=254)
    return types | {
        f"{prefix}Timestamp": {"description": _about(Kind.TIMESTAMP), **moment},
        f"{prefix}Email": {"description": _about(Kind.EMAIL), **email},
    }


def one_line(pattern: str, *, longest: int | None = None) -> Schema:
    """Text that matches an anchored pattern as a whole, in every regex dialect."""
    return {
        "type": "string",
        **({} if longest is None else {"maxLength": longest}),
        "pattern": pattern,
        "not": {"type": "string", "pattern": patterns.LINE_BREAK},
    }


def _about(kind: Kind, refers_to: str | None = None) -> str:
    """The description that the columns of this kind share."""
    return next(
        column.description
        for entity in ENTITIES.values()
        for column in entity.columns
        if column.kind is kind and column.refers_to == refers_to
    )


def _object(entity: Entity, *, canonical: bool) -> Schema:
    about = (entity.struct.__doc__ or "").strip()
    return {
        "title": row_name(entity) if canonical else record_name(entity),
        "description": f"{about} Accepted, in canonical form." if canonical else about,
        "type": "object",
        "properties": {
            column.name: _column(column, canonical=canonical) for column in entity.columns
        },
        "required": [column.name for column in entity.columns if column.required],
    }


def _column(column: Column, *, canonical: bool) -> Schema:
    value = _value(column, canonical=canonical)
    if not column.required and not canonical:
        if value == {"type": "string"}:  # includes the empty string
            value = {"type": ["string", "null"]}
        else:
            value = {"anyOf": [value, reference(_ABSENT)]}
    if "$ref" in value or not column.description:
        return value
    return {"description": column.description, **value}


def _value(column: Column, *, canonical: bool) -> Schema:
    """The schema of a present value."""
    prefix = "Row" if canonical else ""
    limits = {"minimum": column.lowest, "maximum": column.highest}
    match column.kind:
        case Kind.UUID:
            return reference(prefix + _IDS[column.refers_to])
        case Kind.TIMESTAMP:
            return reference(f"{prefix}Timestamp")
        case Kind.EMAIL:
            return reference(f"{prefix}Email")
        case Kind.TEXT:
            return {"type": "string", **_text_limits(column, canonical=canonical)}
        case Kind.ENUM:
            return {"type": "string", "enum": list(column.values)}
        case Kind.INTEGER:
            return {"type": "integer", **limits}
        case Kind.RATING:
            return {"type": "number", **limits}
        case Kind.TEXTS:
            return {"type": "array", "items": {"type": "string"}}
        case Kind.INTEGERS:
            return {"type": "array", "items": {"type": "integer", **limits}}
        case Kind.OBJECT:
            return {"type": "object"}
        case _:
            assert_never(column.kind)


def _text_limits(column: Column, *, canonical: bool) -> Schema:
    limits: Schema = {}
    if column.longest is not None:
        limits["maxLength"] = column.longest
    if column.required:
        limits["pattern"] = patterns.NOT_BLANK
    elif canonical:
        limits["minLength"] = 1
    return limits
