"""The Metadata request of our own, byte by byte, and brokers that are too old for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import TopicAuthorizationFailedError
from aiokafka.protocol.metadata import MetadataResponse_v5

from worker.brokers.kafka import metadata as kafka_metadata
from worker.brokers.kafka.metadata import Described, look

_ID = bytes(range(16))
_UNKNOWN, _FORBIDDEN, _NO_LEADER = 3, 29, 5


class _Client:
    """Answers like a broker that speaks these versions of Metadata, two brokers in all."""

    def __init__(
        self,
        newest: int,
        *topics: tuple[int, str, bytes, list[int]],
        operations: int = -(2**31),
    ) -> None:
        self.cluster = SimpleNamespace(
            brokers=lambda: [SimpleNamespace(nodeId=2), SimpleNamespace(nodeId=1)]
        )
        self._newest = newest
        self._topics = topics
        self._operations = operations
        self.sent: list[Any] = []
        self.asked: list[int | None] = []

    async def send(self, node: int | None, request: Any) -> Any:
        self.asked.append(node)
        prepared = request.prepare({3: (0, self._newest)})
        self.sent.append(prepared)
        return prepared.RESPONSE_TYPE.decode(
            self._old() if prepared.API_VERSION == 5 else self._new()
        )

    def _old(self) -> bytes:
        topics: list[object] = [
            (error, name, False, [(0, q, leader, [1], [1], []) for q, leader in enumerate(leaders)])
            for error, name, _, leaders in self._topics
        ]
        encoded: bytes = MetadataResponse_v5(0, [(1, "a", 9092, None)], "c", 1, topics).encode()
        return encoded

    def _new(self) -> bytes:
        nothing = b"\0"  # no tags, or null
        broker = b"\0\0\0\1" + b"\x02a" + b"\0\0\x23\x84" + nothing + nothing
        body = b"\0\0\0\0" + b"\x02" + broker + b"\x02c" + b"\0\0\0\1"
        body += bytes([len(self._topics) + 1])
        for error, name, identity, leaders in self._topics:
            body += error.to_bytes(2) + bytes([len(name) + 1]) + name.encode() + identity + b"\0"
            body += bytes([len(leaders) + 1])
            for number, leader in enumerate(leaders):
                body += b"\0\0" + number.to_bytes(4) + leader.to_bytes(4, signed=True) + bytes(4)
                body += b"\x03" + bytes(8) + b"\x02" + bytes(4) + b"\x01" + nothing
            body += self._operations.to_bytes(4, signed=True) + nothing
        return body + nothing


def _admin(client: _Client) -> Any:
    return SimpleNamespace(_client=client)


async def test_topics_are_told_with_their_identity_partitions_and_leaders() -> None:
    client = _Client(13, (0, "one", _ID, [1, 2]), (_NO_LEADER, "two", _ID[::-1], [1, -1]))
    assert await look(_admin(client), ["one", "two"]) == {
        "one": Described("AAECAwQFBgcICQoLDA0ODw", 2, True),
        "two": Described("Dw4NDAsKCQgHBgUEAwIBAA", 2, False),
    }


async def test_what_is_asked_creates_no_topic_and_goes_to_one_broker() -> None:
    client = _Client(13)
    assert await look(_admin(client), ["a"]) == {}
    assert await look(_admin(client), ["a"]) == {}
    assert client.asked == [1, 1]
    assert client.sent[0].encode() == b"\x02" + bytes(16) + b"\x02a" + b"\0" + b"\0\0\0"


async def test_a_broker_without_topic_ids_gives_empty_identities() -> None:
    client = _Client(9, (0, "one", _ID, [1, 2]), (_UNKNOWN, "gone", _ID, []))
    assert await look(_admin(client), ["one", "gone"]) == {"one": Described("", 2, True)}
    assert client.sent[0].encode() == b"\0\0\0\2\0\3one\0\4gone\0"


async def test_a_cluster_that_keeps_no_ids_gives_empty_identities() -> None:
    client = _Client(12, (0, "one", bytes(16), [1]))
    assert await look(_admin(client), ["one"]) == {"one": Described("", 1, True)}


@pytest.mark.parametrize("newest", [9, 13])
async def test_missing_and_hidden_topics_are_told_apart(newest: int) -> None:
    missing = _Client(newest, (_UNKNOWN, "gone", bytes(16), []), (0, "one", _ID, [1]))
    assert (await look(_admin(missing), ["gone", "one"])).keys() == {"one"}
    mine = [(_FORBIDDEN, name, bytes(16), list[int]()) for name in ("mine", "also")]
    hidden = _Client(newest, *mine, (0, "one", _ID, [1]))
    with pytest.raises(TopicAuthorizationFailedError) as caught:
        await look(_admin(hidden), ["mine", "one"])
    assert caught.value.args == ("also", "mine")


async def test_the_rights_of_this_user_are_told_where_asked_for() -> None:
    client = _Client(13, (0, "one", _ID, [1]), operations=1 << 3 | 1 << 8)
    one = (await look(_admin(client), ["one"], rights=True))["one"]
    assert [one.allows(right) for right in ("READ", "WRITE", "DESCRIBE")] == [True, False, True]
    assert client.sent[0].encode().endswith(b"\0\1\0")
    old = _Client(9, (0, "one", _ID, [1]))
    assert (await look(_admin(old), ["one"], rights=True))["one"].allows("WRITE")


async def test_nothing_asked_is_nothing_sent() -> None:
    client = _Client(13)
    assert await look(_admin(client), []) == {}
    assert client.sent == []


def test_the_newest_version_is_the_one_that_is_used() -> None:
    request = kafka_metadata._TopicsRequest(["a"], rights=False)
    assert request.prepare({3: (0, 13)}).API_VERSION == 11
    assert request.prepare({3: (0, 11)}).API_VERSION == 11
    assert request.prepare({3: (0, 10)}).API_VERSION == 5
