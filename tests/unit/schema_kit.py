"""Values drawn from a JSON Schema: what the schemas of `schemas.json_schema` use, nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st

Schema = Mapping[str, Any]
Values = st.SearchStrategy[Any]

# No surrogates: a record that holds one is malformed.
ALPHABET = st.characters(codec="utf-8")
TEXT = st.text(ALPHABET)
_WORDS = {"description", "title", "format"}
JSON: Values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def drawn_from(schema: Schema, definitions: Mapping[str, Schema]) -> Values:
    """Values that the schema allows. NotImplementedError for a keyword that is not known here."""
    rest = {key: value for key, value in schema.items() if key not in _WORDS}
    if "$ref" in rest:
        return drawn_from(definitions[rest["$ref"].removeprefix("#/$defs/")], definitions)
    if "anyOf" in rest:
        return st.one_of([drawn_from(inner, definitions) for inner in rest["anyOf"]])
    if "enum" in rest:
        return st.sampled_from(rest["enum"])
    match rest.pop("type"):
        case "string":
            return _strings(rest)
        case ["string", "null"]:
            return st.none() | _strings(rest)
        case "integer":
            return st.integers(rest.pop("minimum"), rest.pop("maximum"))
        case "number":
            lowest, highest = rest.pop("minimum"), rest.pop("maximum")
            return st.floats(lowest, highest) | st.integers(lowest, highest)
        case "array":
            return st.lists(drawn_from(rest.pop("items"), definitions), max_size=5)
        case "object":
            return _objects(rest, definitions)
        case other:
            raise NotImplementedError(other)


def _strings(rest: dict[str, Any]) -> Values:
    shortest, longest = rest.pop("minLength", 0), rest.pop("maxLength", None)
    pattern = rest.pop("pattern", None)
    excluded = rest.pop("not", None)
    assert not rest, f"not known here: {rest}"
    if pattern is None:
        return st.text(ALPHABET, min_size=shortest, max_size=longest)
    found: Values = st.from_regex(pattern, alphabet=ALPHABET)
    if excluded is not None:  # a line break, which `$` may allow
        found = found.map(str.rstrip)
    return found.filter(lambda text: longest is None or shortest <= len(text) <= longest)


def _objects(rest: dict[str, Any], definitions: Mapping[str, Schema]) -> Values:
    properties = rest.pop("properties", None)
    required = set(rest.pop("required", ()))
    assert not rest, f"not known here: {rest}"
    if properties is None:
        return st.dictionaries(TEXT, JSON, max_size=3)
    values = {name: drawn_from(inner, definitions) for name, inner in properties.items()}
    return st.fixed_dictionaries(
        {name: value for name, value in values.items() if name in required},
        optional={name: value for name, value in values.items() if name not in required},
    )
