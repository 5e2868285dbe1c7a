"""The OpenAPI document of the API: valid, complete, and what the command prints."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner
from openapi_spec_validator import OpenAPIV31SpecValidator

from schemas import ENTITIES
from worker.cli.main import cli
from worker.http.openapi import openapi
from worker.http.operations import OPERATIONS

DOCUMENT = json.loads(json.dumps(openapi()))


def test_it_is_valid() -> None:
    OpenAPIV31SpecValidator(DOCUMENT).validate()


def test_each_operation_stands_there_once() -> None:
    assert len({operation.name for operation in OPERATIONS}) == len(OPERATIONS)
    described = {
        (method.upper(), path): found["operationId"]
        for path, methods in DOCUMENT["paths"].items()
        for method, found in methods.items()
    }
    assert described == {(one.method, one.path): one.name for one in OPERATIONS}


def test_entities_are_named() -> None:
    (entity, *_) = DOCUMENT["paths"]["/v1/records/{entity}"]["post"]["parameters"]
    assert entity["schema"]["enum"] == list(ENTITIES)


def test_what_a_header_says_is_no_parameter_of_the_query() -> None:
    (*_, wait, key, producer) = DOCUMENT["paths"]["/v1/records/{entity}"]["post"]["parameters"]
    assert (wait["name"], wait["in"]) == ("wait", "query")
    assert (key["name"], key["in"]) == ("Idempotency-Key", "header")
    assert (producer["name"], producer["in"]) == ("buddy-producer", "header")


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda one: one.name)
def test_whoever_needs_a_token_is_told_so(operation: object) -> None:
    one = next(found for found in OPERATIONS if found is operation)
    described = DOCUMENT["paths"][one.path][one.method.lower()]
    assert ("security" in described) == (one.role is not None)
    assert one.role is None or f"`{one.role}`" in described["description"]


def test_the_command_prints_it() -> None:
    found = CliRunner().invoke(cli, ["schema", "--format", "openapi"], standalone_mode=False)
    assert json.loads(found.output) == DOCUMENT
