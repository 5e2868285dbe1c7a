"""`buddy schema`: JSON Schema of records and messages, AsyncAPI of the public topics."""

from __future__ import annotations

import json
from typing import Any

import click

from schemas import ENTITIES, json_schema
from worker.asyncapi import asyncapi
from worker.cli.console import Context, OneOf
from worker.errors import UsageError
from worker.message_schemas import MESSAGES, message_schema, whole_schema

_NAMES = (*ENTITIES, *MESSAGES)


@click.command("schema")
@click.argument("name", required=False, metavar="[NAME]", type=OneOf("a schema", _NAMES))
@click.option(
    "--format",
    "kind",
    type=OneOf("a format", ["json-schema", "asyncapi", "openapi"]),
    default="json-schema",
    help="JSON Schema 2020-12 (default), AsyncAPI 3 of the public topics, OpenAPI 3.1 of the API.",
)
@click.pass_obj
def schema_command(context: Context, name: str | None, kind: str) -> int:
    """Print the schema of NAME, an entity or a kind of message.

    Without NAME, print all schemas in one document.
    """
    if kind != "json-schema" and name is not None:
        raise UsageError(f"{kind} describes everything in one document: leave the name out")
    # ASCII only, so that any terminal shows which characters a pattern holds.
    click.echo(json.dumps(_document(context, name, kind), indent=2))
    return 0


def _document(context: Context, name: str | None, kind: str) -> dict[str, Any]:
    if kind == "asyncapi":
        return asyncapi(context.names, context.settings.max_record_bytes)
    if kind == "openapi":
        from worker.http.openapi import openapi

        return openapi()
    if name is None:
        return whole_schema()
    return json_schema(ENTITIES[name]) if name in ENTITIES else message_schema(name)
