"""The JSON Schema of an entity: what upstream may send, rather than what a canonical row is."""

from __future__ import annotations

from typing import Any

import msgspec

from schemas.registry import Entity

_ANY_CASE = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-4[0-9a-fA-F]{3}-[89abAB][0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"


def json_schema(entity: Entity) -> dict[str, Any]:
    """A schema (2020-12) with the entity's limits.

    Looser than the Structs where the contract is: UUIDs come in any case, unknown fields are
    dropped. Dates in the future, references and addresses are beyond a schema.
    """
    schema = msgspec.json.schema(entity.struct)
    for definition in schema["$defs"].values():
        definition.pop("additionalProperties", None)
        for field in definition["properties"].values():
            for variant in (field, *field.get("anyOf", ())):
                if variant.get("format") == "uuid":
                    variant["pattern"] = _ANY_CASE
    return schema
