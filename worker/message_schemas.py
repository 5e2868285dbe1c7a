"""JSON Schema of the messages that are not records: rejections, announcements, requests … Pure.

Derived from the Structs that are written and read. The first sentence of a Struct's docstring is
its description. Some types say too little: a text may be a SHA-256. There the name of the field
gives the schema: a name has one meaning in all messages. No number is ever negative.
"""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import inspect

from schemas import ENTITIES, patterns
from schemas.json_schema import (
    DIALECT,
    URN,
    Schema,
    definitions,
    document,
    one_line,
    record_name,
    reference,
)
from worker.core.rejection import Rejection, Source
from worker.core.violations import MOST_REPORTED, Violation
from worker.desk.audit import ReplayAudit
from worker.exports.manifest import MANIFEST_FORMAT, Manifest
from worker.files.records import Place
from worker.sink.requests import Announcement, ExportRequest

MESSAGES: Final[dict[str, type[msgspec.Struct]]] = {
    "rejections": Rejection,
    "announcements": Announcement,
    "requests": ExportRequest,
    "manifests": Manifest,
    "replays": ReplayAudit,
}
"""The Struct of each kind of message, by the name that `buddy schema` takes."""

_ENTITY: Final[Schema] = {"type": "string", "enum": list(ENTITIES)}
_DAY: Final[Schema] = {
    "type": "string",
    "format": "date",
    "maxLength": 10,
    "pattern": patterns.DAY,
}
_BASE64: Final[Schema] = {"type": "string", "contentEncoding": "base64"}
_SHA256: Final[Schema] = {
    "type": "string",
    "minLength": 64,
    "maxLength": 64,
    "pattern": "^[0-9a-f]{64}$",
}
_COORDINATE: Final = one_line("^[^/]+/[0-9]+/[0-9]+$")
_MOMENT: Final = reference("RowTimestamp")
_EXPORT_ID: Final = reference("RowId")
_FIELDS: Final[dict[str, Schema]] = {
    "entity": _ENTITY,
    "entities": {"type": "array", "items": _ENTITY},
    "rejected_at": _MOMENT,
    "timestamp": _MOMENT,
    "at": _MOMENT,
    "export_date": _MOMENT,
    "requested_at": reference("Timestamp"),
    "export_id": _EXPORT_ID,
    "start": _DAY,
    "end": _DAY,
    "sha256": _SHA256,
    "manifest_sha256": _SHA256,
    "record_base64": _BASE64,
    "message_key_base64": _BASE64,
    "source": {"anyOf": [reference(Source.__name__), reference(Place.__name__)]},
    "headers": {
        "description": "name and value of each header, the value in base64",
        "type": "array",
        "items": {
            "type": "array",
            "items": {"type": "string"},
            "minItems": 2,
            "maxItems": 2,
        },
    },
    "record": {"description": "the original JSON, byte for byte"},
    "Rejection.violations": {
        "type": "array",
        "items": reference("Violation"),
        "minItems": 1,
        "maxItems": MOST_REPORTED,
    },
    "ReplayAudit.rejection": _COORDINATE,
    "ReplayAudit.origin": _COORDINATE,
    "Manifest.format": {"type": "integer", "const": MANIFEST_FORMAT},
    "Announcement.id": _EXPORT_ID,
    "Announcement.base": _EXPORT_ID,
    "ExportRequest.id": one_line("^[A-Za-z0-9][A-Za-z0-9._:-]*$", longest=100),
    "ExportRequest.incremental": one_line("^[A-Za-z0-9][A-Za-z0-9._-]*$", longest=100),
}
"""The schema of a field, by its name, or by its Struct's name and its own."""


def every_definition() -> dict[str, Schema]:
    """The definitions of records, rows and messages, by name."""
    found = definitions()
    waiting: list[type[msgspec.Struct]] = [Place, Source, Violation, *reversed(MESSAGES.values())]
    while waiting:
        struct = waiting.pop()
        if struct.__name__ not in found:
            found[struct.__name__] = _object(struct, waiting)
    return found


def message_schema(name: str) -> Schema:
    """The schema of a kind of message, as a document of its own. KeyError for an unknown name."""
    known = every_definition()
    return document(name, known[MESSAGES[name].__name__], known)


def whole_schema() -> Schema:
    """One document of all definitions.

    As a schema it describes the JSON document that `buddy send` and `buddy check` read. The
    document has an array of records for each entity, beside the metadata of an export.
    """
    arrays = {
        entity.name: {"type": "array", "items": reference(record_name(entity))}
        for entity in ENTITIES.values()
    }
    return {
        "$schema": DIALECT,
        "$id": URN,
        "title": "BuddyRecords",
        "description": "Records of all entities in one document, as the JSON export has them.",
        "type": "object",
        "properties": {"export_metadata": {"type": "object"}, **arrays},
        "additionalProperties": False,
        "$defs": every_definition(),
    }


def _object(struct: type[msgspec.Struct], waiting: list[type[msgspec.Struct]]) -> Schema:
    """The schema of a Struct. Nested Structs are added to `waiting`, to be defined as well."""
    info = inspect.type_info(struct)
    assert isinstance(info, inspect.StructType)
    omits = struct.__struct_config__.omit_defaults
    properties: Schema = {}
    required = []
    for field in info.fields:
        kinds = field.type.types if isinstance(field.type, inspect.UnionType) else (field.type,)
        said = _FIELDS.get(f"{struct.__name__}.{field.name}", _FIELDS.get(field.name))
        if said is None:
            found = [_value(kind, waiting) for kind in kinds if not _is_none(kind)]
        else:
            found = [said]
        if any(map(_is_none, kinds)):
            found.append({"type": "null"})
        properties[field.name] = found[0] if len(found) == 1 else {"anyOf": found}
        # msgspec reports a default of UNSET, which is never written, as no default.
        defaults = (field.default, field.default_factory)
        written = defaults != (msgspec.NODEFAULT, msgspec.NODEFAULT) and not omits
        if field.required or written:
            required.append(field.name)
    schema: Schema = {
        "title": struct.__name__,
        "description": (struct.__doc__ or "").partition(".")[0] + ".",
        "type": "object",
        "properties": properties,
        "required": required,
    }
    if info.forbid_unknown_fields:
        schema["additionalProperties"] = False
    return schema


def _is_none(kind: inspect.Type) -> bool:
    return isinstance(kind, inspect.NoneType)


def _value(  # noqa: C901 -- one case a type
    kind: inspect.Type, waiting: list[type[msgspec.Struct]], *, by_entity: bool = True
) -> Schema:
    match kind:
        case inspect.AnyType() | inspect.RawType():
            return {}
        case inspect.BoolType():
            return {"type": "boolean"}
        case inspect.IntType():  # counts, sizes, offsets
            return {"type": "integer", "minimum": 0}
        case inspect.StrType():
            return {"type": "string"}
        case inspect.DateType():
            return _DAY
        case inspect.DateTimeType():
            return _MOMENT
        case inspect.LiteralType(values=values):
            return {"type": "string", "enum": list(values)}
        case inspect.EnumType(cls=enum):
            return {"type": "string", "enum": [member.value for member in enum]}
        case inspect.StructType(cls=struct):
            waiting.append(struct)
            return reference(struct.__name__)
        case inspect.ListType(item_type=item) | inspect.VarTupleType(item_type=item):
            return {"type": "array", "items": _value(item, waiting)}
        case inspect.DictType(key_type=key, value_type=value):
            names: Schema = {"pattern": "^[0-9]+$"} if isinstance(key, inspect.IntType) else {}
            if by_entity:  # the outer key of every mapping is an entity
                names = {"enum": list(ENTITIES)}
            return {
                "type": "object",
                **({"propertyNames": {"type": "string", **names}} if names else {}),
                "additionalProperties": _value(value, waiting, by_entity=False),
            }
    raise TypeError(f"no schema for {kind}")
