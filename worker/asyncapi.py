"""AsyncAPI 3 of the public topics: what may be sent where, and what comes back. Pure."""

from __future__ import annotations

from typing import Any, Final

from schemas import ENTITIES, Entity, patterns
from schemas.json_schema import Schema, key_schema, one_line, record_name, reference, row_name
from worker import __version__
from worker.core.outbox import (
    ACCEPTED_AT_HEADER,
    SOURCE_HEADER,
    UNKNOWN_HEADER,
    WARNINGS_HEADER,
)
from worker.core.topics import Names, wanted
from worker.core.violations import WARNINGS
from worker.message_schemas import every_definition
from worker.stream import Topic

_BINDING: Final = "0.5.0"
_SOURCE: Final[Schema] = {
    "description": "the input record: topic/partition/offset",
    **one_line("^[^/]+/[0-9]+/[0-9]+$"),
}
_WARNING: Final = "(?:" + "|".join(sorted(WARNINGS)) + ")"
_REJECTION_HEADERS: Final[Schema] = {
    "type": "object",
    "properties": {SOURCE_HEADER: _SOURCE},
    "required": [SOURCE_HEADER],
}
_ROW_HEADERS: Final[Schema] = {
    "type": "object",
    "properties": {
        SOURCE_HEADER: _SOURCE,
        ACCEPTED_AT_HEADER: reference("RowTimestamp"),
        WARNINGS_HEADER: {
            "description": "codes of warnings, comma-separated",
            **one_line(patterns.anchored(f"{_WARNING}(?:,{_WARNING})*")),
        },
        UNKNOWN_HEADER: {
            "description": "names of fields of the record that have no column, as a JSON array",
            "type": "string",
        },
    },
    "required": [SOURCE_HEADER, ACCEPTED_AT_HEADER],
}


def asyncapi(names: Names, record_limit: int) -> dict[str, Any]:
    """The document for the topics with these names. `record_limit` is in bytes."""
    topics = wanted(names, 1, record_limit)
    messages: dict[str, Schema] = {}
    channels: dict[str, Schema] = {}
    operations: dict[str, Schema] = {}

    def channel(name: str, topic: str, action: str, summary: str, *held: str) -> None:
        channels[name] = {
            "address": topic,
            "title": summary,
            "messages": {message: _at("components", "messages", message) for message in held},
            "bindings": {"kafka": _binding(topics[topic])},
        }
        operations[name] = {
            "action": action,
            "channel": _at("channels", name),
            "summary": summary,
            "messages": [_at("channels", name, "messages", message) for message in held],
        }

    messages["Rejection"] = _message(
        "Rejection", "A rejected record, with every violation", headers=_REJECTION_HEADERS
    )
    messages["ExportRequest"] = _message("ExportRequest", "A request for an export")
    messages["ReplayAudit"] = _message("ReplayAudit", "A rejected record that was sent again")
    messages["Announcement"] = _message("Announcement", "What became of a request")
    for entity in ENTITIES.values():
        messages |= _of_entity(entity)
        name, record, row = entity.name, record_name(entity), row_name(entity)
        channel(
            f"in.{name}",
            names.input(name),
            "receive",
            f"Records of {name}, and deletions",
            record,
            f"{record}Deletion",
        )
        channel(
            f"accepted.{name}",
            names.accepted(name),
            "send",
            f"Accepted rows of {name}, and deletions",
            row,
            f"{row}Deletion",
        )
        channel(
            f"rejected.{name}", names.rejected(name), "send", f"Rejections of {name}", "Rejection"
        )
    channel(
        "export-requests",
        names.export_requests,
        "receive",
        "Requests for exports",
        "ExportRequest",
    )
    channel("exports", names.exports, "send", "Announcements of exports", "Announcement")
    channel(
        "replays", names.replays, "send", "Rejected records that were sent again", "ReplayAudit"
    )
    operations["export-requests"]["reply"] = {"channel": _at("channels", "exports")}
    document = {
        "asyncapi": "3.0.0",
        "id": "urn:buddy-stream:asyncapi",
        "info": {
            "title": "Buddy Stream",
            "version": __version__,
            "description": "Validates a stream of Buddy Program records and cuts exports of it. "
            "Actions are those of Buddy Stream: it receives what you send.",
        },
        "defaultContentType": "application/json",
        "channels": channels,
        "operations": operations,
        "components": {"messages": messages, "schemas": every_definition()},
    }
    moved = _moved(document)
    assert isinstance(moved, dict)
    return moved


def _of_entity(entity: Entity) -> dict[str, Schema]:
    """Records, rows and their deletions."""
    record, row = record_name(entity), row_name(entity)
    sent = key_schema(entity, canonical=False)
    published = key_schema(entity, canonical=True)
    return {
        record: _message(record, f"One record of {entity.name}; the key may be absent", key=sent),
        f"{record}Deletion": _message(
            None, f"Null under a key deletes that row of {entity.name}", key=sent
        ),
        row: _message(
            row, f"One row of {entity.name}: the latest of its key counts", _ROW_HEADERS, published
        ),
        f"{row}Deletion": _message(
            None, f"Null: that row of {entity.name} is deleted", _ROW_HEADERS, published
        ),
    }


def _message(
    payload: str | None, summary: str, headers: Schema | None = None, key: Schema | None = None
) -> Schema:
    """A message whose payload is that definition, or null."""
    message: Schema = {
        "summary": summary,
        "payload": {"type": "null"} if payload is None else reference(payload),
    }
    if headers is not None:
        message["headers"] = headers
    if key is not None:
        message["bindings"] = {"kafka": {"key": key, "bindingVersion": _BINDING}}
    return message


def _binding(topic: Topic) -> Schema:
    """The settings with which `buddy topics create` creates the topic."""
    configuration: Schema = {"cleanup.policy": ["compact" if topic.compacted else "delete"]}
    if topic.retention_ms is not None:
        configuration["retention.ms"] = topic.retention_ms
    configuration["max.message.bytes"] = topic.max_message_bytes
    return {
        "topic": topic.name,
        "topicConfiguration": configuration,
        "bindingVersion": _BINDING,
    }


def _at(*path: str) -> Schema:
    return {"$ref": "#/" + "/".join(path)}


def _moved(value: object) -> object:
    """The same, with references to definitions where AsyncAPI keeps them."""
    if isinstance(value, dict):
        return {
            key: inner.replace("#/$defs/", "#/components/schemas/")
            if key == "$ref" and isinstance(inner, str)
            else _moved(inner)
            for key, inner in value.items()
        }
    return [_moved(inner) for inner in value] if isinstance(value, list) else value
