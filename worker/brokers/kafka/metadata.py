"""Existence and identity of topics: Kafka's Metadata request with topic ids.

aiokafka supports version 5 at most, which has no topic ids. The request names its topics and never
creates them. A list of all topics would omit those that the user may not describe, so a missing
right would look like a missing topic.
"""

from __future__ import annotations

import base64
import struct
from collections.abc import Collection
from io import BytesIO
from typing import Any, Final

import msgspec
from aiokafka.errors import (
    LeaderNotAvailableError,
    NoError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.abstract import AbstractType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest_v5
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Schema,
    TaggedFields,
    UnsignedVarInt32,
)

_API_KEY: Final = 3
_NO_ID: Final = bytes(16)
"""In a request: look up by name. In a response: the cluster has no topic ids."""

_OPERATIONS: Final = {"READ": 3, "WRITE": 4, "CREATE": 5, "DESCRIBE": 8, "DESCRIBE_CONFIGS": 10}
_NOT_TOLD: Final = -(2**31)
_PRESENT: Final = (NoError, LeaderNotAvailableError)


class Described(msgspec.Struct, frozen=True):
    """A broker's description of one topic. `identity` is empty if the cluster has no topic ids."""

    identity: str
    partitions: int
    led: bool
    """Whether every partition has a leader."""
    operations: int = -1
    """The operations that this user may perform, as bits by Kafka's numbers. All bits are set if
    the broker was not asked or is too old to tell."""

    def allows(self, right: str) -> bool:
        """Whether this user has that right."""
        return bool(self.operations >> _OPERATIONS[right] & 1)


class _Uuid(AbstractType):  # type: ignore[misc]  # aiokafka has no types
    @classmethod
    def encode(cls, value: bytes) -> bytes:
        return value

    @classmethod
    def decode(cls, data: BytesIO) -> bytes:
        return data.read(16)


class _Leader(AbstractType):  # type: ignore[misc]  # aiokafka has no types
    """Decodes only the leader of a partition: decoding every field costs three times more."""

    _HEAD = struct.Struct(">hiii")  # error, number, leader, epoch of the leader

    @classmethod
    def encode(cls, value: int) -> bytes:
        raise NotImplementedError

    @classmethod
    def decode(cls, data: BytesIO) -> int:
        leader: int = cls._HEAD.unpack(data.read(cls._HEAD.size))[2]
        for _ in ("replicas", "in sync", "offline"):
            data.seek(4 * (UnsignedVarInt32.decode(data) - 1), 1)
        TaggedFields.decode(data)
        return leader


class _MetadataResponse(Response):  # type: ignore[misc]  # aiokafka has no types
    API_KEY = _API_KEY
    API_VERSION = 11
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", CompactString()),
                ("port", Int32),
                ("rack", CompactString()),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", CompactString()),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("topic", CompactString()),
                ("topic_id", _Uuid),
                ("is_internal", Boolean),
                ("leaders", CompactArray(_Leader)),
                ("authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataRequest(RequestStruct):  # type: ignore[misc]  # aiokafka has no types
    """Version 11, of Kafka 2.8: the first with reliable topic ids."""

    FLEXIBLE_VERSION = True
    API_KEY = _API_KEY
    API_VERSION = 11
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(("topic_id", _Uuid), ("name", CompactString()), ("tags", TaggedFields)),
        ),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _TopicsRequest(Request[MetadataRequest_v5 | _MetadataRequest]):  # type: ignore[misc]
    API_KEY = _API_KEY

    def __init__(self, names: Collection[str], *, rights: bool) -> None:
        self._names = list(names)
        self._rights = rights

    def build(self, version: type[Any]) -> Any:
        if version is MetadataRequest_v5:
            return version(topics=self._names, allow_auto_topic_creation=False)
        return version(
            topics=[(_NO_ID, name, {}) for name in self._names],
            allow_auto_topic_creation=False,
            include_topic_authorized_operations=self._rights,
            tags={},
        )


async def look(admin: Any, names: Collection[str], *, rights: bool = False) -> dict[str, Described]:
    """Describe the named topics that exist, in one request; with `rights`, also the user's rights.

    Raises aiokafka's errors. `TopicAuthorizationFailedError` names the topics that this user may
    not describe.
    """
    if not names:
        return {}
    client = admin._client  # noqa: SLF001 -- the admin's own methods ask for no ids
    # Always ask the same broker: another may lag behind and report a topic's earlier identity.
    node = min((broker.nodeId for broker in client.cluster.brokers()), default=None)
    response = await client.send(node, _TopicsRequest(names, rights=rights))
    found = {}
    hidden = []
    for topic in response.to_object()["topics"]:
        name, error = topic["topic"], for_code(topic["error_code"])
        if error is TopicAuthorizationFailedError:
            hidden.append(name)
        elif error in _PRESENT:
            found[name] = _described(topic)
        elif error is not UnknownTopicOrPartitionError:
            raise error(name)
    if hidden:
        raise TopicAuthorizationFailedError(*sorted(hidden))
    return found


def _described(topic: dict[str, Any]) -> Described:
    leaders = topic.get("leaders")
    if leaders is None:  # version 5
        leaders = [partition["leader"] for partition in topic["partitions"]]
    identity = topic.get("topic_id", _NO_ID)
    operations = topic.get("authorized_operations", _NOT_TOLD)
    return Described(
        # The form in which Kafka's own tools print a topic id.
        identity=""
        if identity == _NO_ID
        else base64.urlsafe_b64encode(identity).decode().rstrip("="),
        partitions=len(leaders),
        led=bool(leaders) and min(leaders) >= 0,
        operations=-1 if operations == _NOT_TOLD else operations,
    )
