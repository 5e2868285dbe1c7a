"""The AsyncAPI document: valid by the official schema, and of all public topics."""

from __future__ import annotations

import gzip
import json
from typing import Any, Final

import pytest
from jsonschema import Draft7Validator

from schemas import ENTITIES
from tests.paths import ROOT
from worker.asyncapi import asyncapi
from worker.core.outbox import WARNINGS_HEADER
from worker.core.topics import Names, wanted
from worker.core.violations import WARNINGS

OFFICIAL: Final = ROOT / "tests" / "asyncapi" / "asyncapi-3.0.0.json.gz"
LIMIT: Final = 1024 * 1024
NAMES: Final = Names("mine")
DOCUMENT: Final = asyncapi(NAMES, LIMIT)


@pytest.fixture(scope="module")
def official() -> Draft7Validator:
    return Draft7Validator(json.loads(gzip.decompress(OFFICIAL.read_bytes())))


def test_it_is_valid_by_the_official_schema(official: Draft7Validator) -> None:
    official.validate(DOCUMENT)


@pytest.mark.parametrize(
    "broken",
    [
        {"channels": {"a": {"adress": "a"}}},
        {"operations": {"a": {"action": "publish", "channel": {"$ref": "#/channels/exports"}}}},
        {"components": {"schemas": {"User": {"type": "objekt"}}}},
        {"info": {"title": "a"}},
    ],
)
def test_the_official_schema_would_refuse(
    official: Draft7Validator, broken: dict[str, Any]
) -> None:
    assert not official.is_valid(DOCUMENT | broken)


def test_every_public_topic_is_described_as_it_is_created() -> None:
    topics = {n: t for n, t in wanted(NAMES, 1, LIMIT).items() if ".internal." not in n}
    described = {channel["address"]: channel for channel in DOCUMENT["channels"].values()}
    assert described.keys() == topics.keys()
    for name, topic in topics.items():
        said = described[name]["bindings"]["kafka"]["topicConfiguration"]
        assert said["max.message.bytes"] == topic.max_message_bytes
        assert said.get("retention.ms") == topic.retention_ms
        assert (said["cleanup.policy"] == ["compact"]) == topic.compacted


def test_actions_are_those_of_the_program() -> None:
    operations = DOCUMENT["operations"].values()
    received = {o["channel"]["$ref"] for o in operations if o["action"] == "receive"}
    inputs = {f"#/channels/in.{entity}" for entity in ENTITIES}
    assert received == inputs | {"#/channels/export-requests"}


def test_every_reference_leads_somewhere() -> None:
    def walk(value: object) -> None:
        if isinstance(value, dict):
            if "$ref" in value:
                target: Any = DOCUMENT
                for part in value["$ref"].removeprefix("#/").split("/"):
                    target = target[part]
            for inner in value.values():
                walk(inner)
        elif isinstance(value, list):
            for inner in value:
                walk(inner)

    walk(DOCUMENT)


def test_keys_and_warnings() -> None:
    messages = DOCUMENT["components"]["messages"]
    key = Draft7Validator(messages["Milestone"]["bindings"]["kafka"]["key"])
    user = "550E8400-E29B-41D4-A716-446655440000"
    assert key.is_valid(f"42:{user}")
    assert not key.is_valid(user)
    row_key = Draft7Validator(messages["MilestoneRow"]["bindings"]["kafka"]["key"])
    assert row_key.is_valid(f"42:{user.lower()}")
    assert not row_key.is_valid(f"42:{user}")
    assert not row_key.is_valid(f"042:{user.lower()}")
    warnings = Draft7Validator(messages["UserRow"]["headers"]["properties"][WARNINGS_HEADER])
    assert warnings.is_valid(",".join(sorted(WARNINGS)))
    assert not warnings.is_valid("wrong_type")
