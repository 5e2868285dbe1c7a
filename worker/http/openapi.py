"""OpenAPI 3.1 of the API, from the table of its operations and the types that it answers."""

from __future__ import annotations

import re
from http import HTTPStatus
from typing import Any, Final

import msgspec

from worker import __version__
from worker.http.operations import ENTITY, JSON, OPERATIONS, Body, Operation, Parameter
from worker.sink.requests import ExportRequest

_REFERENCE: Final = "#/components/schemas/{name}"
_IN_PATH: Final = re.compile(r"\{(\w+)\}")
_ANY: Final[dict[str, dict[str, Any]]] = {JSON: {"type": ["object", "array"]}}
_DAY: Final = {"type": ["string", "null"], "format": "date"}
_REQUEST: Final[dict[str, Any]] = {
    "id": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9._:-]{0,99}$"},
    "entities": {"type": "array", "items": ENTITY},
    "start": _DAY,
    "end": _DAY,
    "incremental": {"type": ["string", "null"], "pattern": "^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$"},
}
"""Fields of a request for an export that its types say too little about. It needs no id here."""
_PARAMETERS: Final[dict[str, dict[str, Any]]] = {
    "entity": ENTITY,
    "key": {"type": "string", "description": "the key of the row; a composite key is a:b"},
    "name": {"type": "string", "description": "the directory of an export"},
}


class ProblemDetails(msgspec.Struct, frozen=True):
    """An error, as RFC 9457 has it. Some have further members."""

    type: str
    title: str
    status: int
    code: str
    detail: str


def openapi() -> dict[str, Any]:
    """The document."""
    bodies = [
        body
        for operation in OPERATIONS
        for body in (*operation.answers.values(), operation.body)
        if body is not None
    ]
    structs = {struct for body in bodies for struct in body.structs}
    ordered = [ProblemDetails, *sorted(structs, key=lambda struct: struct.__name__)]
    _, components = msgspec.json.schema_components(ordered, ref_template=_REFERENCE)
    request = components[ExportRequest.__name__]
    request["required"] = []
    request["properties"] |= _REQUEST
    paths: dict[str, dict[str, Any]] = {}
    for operation in OPERATIONS:
        described = _operation(operation)
        paths.setdefault(operation.path, {})[operation.method.lower()] = described
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Buddy Stream",
            "version": __version__,
            "description": "Records in, verdicts and exports out.",
        },
        "paths": paths,
        "components": {
            "schemas": {name: _tidy(schema) for name, schema in components.items()},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    found: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "parameters": [
            *({"name": name, "in": "path", "required": True,
               "schema": _PARAMETERS.get(name, {"type": "string"})}
              for name in _IN_PATH.findall(operation.path)),
            *(_parameter(parameter) for parameter in operation.parameters),
        ],
        "responses": {
            **{str(status): _answer(status, body) for status, body in operation.answers.items()},
            "default": {
                "description": "a problem",
                "content": {"application/problem+json": {"schema": _schema(ProblemDetails)}},
            },
        },
    }  # fmt: skip
    if operation.role is not None:
        found["description"] = f"Needs the role `{operation.role}`."
        found["security"] = [{"token": []}, {}]
    if operation.body is not None:
        found["requestBody"] = {
            "required": operation.body.is_required,
            "content": _content(operation.body),
        }
    return found


def _parameter(parameter: Parameter) -> dict[str, Any]:
    schema = parameter.schema
    if parameter.repeatable:
        schema = {"type": "array", "items": schema}
    return {
        "name": parameter.name,
        "in": "header" if parameter.is_header else "query",
        "description": parameter.description,
        "schema": schema,
    }


def _answer(status: int, body: Body) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if body.kinds:
        answer["content"] = _content(body)
    return answer


def _content(body: Body) -> dict[str, Any]:
    if body.structs:
        found = [_schema(struct) for struct in body.structs]
        schema = found[0] if len(found) == 1 else {"anyOf": found}
        return {kind: {"schema": schema} for kind in body.kinds}
    return {kind: {"schema": _ANY.get(kind, {"type": "string"})} for kind in body.kinds}


def _schema(struct: type[Any]) -> dict[str, str]:
    return {"$ref": _REFERENCE.format(name=struct.__name__)}


def _tidy(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the first sentence of a docstring as its description."""
    if "description" not in schema:
        return schema
    return {**schema, "description": schema["description"].partition(".")[0] + "."}
