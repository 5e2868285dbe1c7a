"""Topics that are missing, or not as the rest relies on: refused at the start, with what to do."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.acceptance.kit import Buddy
from worker.brokers.kafka.topics import new_topic
from worker.core.topics import wanted

pytestmark = [pytest.mark.acceptance, pytest.mark.kafka]

SETTINGS = 3


@pytest.fixture
def buddy(kafka_address: str, tmp_path: Path) -> Iterator[Buddy]:
    """On Kafka, its topics not made yet."""
    made = Buddy(tmp_path, f"kafka://{kafka_address}", f"t{uuid.uuid4().hex[:10]}")
    yield made
    made.stop_all()


async def create(address: str, topics: list[NewTopic]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=address)
    await admin.start()
    try:
        await admin.create_topics(topics)
    finally:
        await admin.close()


@pytest.mark.parametrize(
    "command", ["run", "sink", "status", "rejections summary", "export", "send"]
)
def test_topics_that_are_missing(buddy: Buddy, command: str) -> None:
    (buddy.directory / "users.ndjson").write_bytes(b"{}\n")
    words = [*command.split(), *(["users.ndjson", "--wait"] if command == "send" else [])]
    ended = buddy.start(*words).end()
    assert ended.code == SETTINGS, f"{ended}"
    line = ended.err.splitlines()[-1]
    assert "buddy topics create" in line


@pytest.mark.parametrize(
    ("entity", "settings", "partitions", "says"),
    [
        ("in.users", {"message.timestamp.type": "CreateTime"}, 2, "LogAppendTime"),
        ("accepted.users", {"cleanup.policy": "delete"}, 2, "cleanup.policy=compact"),
        ("rejected.users", {"max.message.bytes": "2048"}, 2, "max.message.bytes="),
        ("in.matches", {}, 3, "partitions"),
    ],
)
async def test_a_topic_that_is_not_as_it_must_be(
    buddy: Buddy,
    kafka_address: str,
    entity: str,
    settings: dict[str, str],
    partitions: int,
    says: str,
) -> None:
    """Made by somebody else's hand: `topics create` leaves it as it is, and says so."""
    name = f"{buddy.names.prefix}.{entity}"
    right = wanted(buddy.names, 2, 1024 * 1024)[name]
    made = new_topic(right)
    odd = NewTopic(name, partitions, 1, topic_configs={**made.topic_configs, **settings})
    # The number of partitions follows the inputs that are there, `in.users` before the others.
    users = wanted(buddy.names, 2, 1024 * 1024)[buddy.names.input("users")]
    await create(kafka_address, [odd] if name == users.name else [odd, new_topic(users)])
    created = buddy.run("topics", "create", "--partitions", "2").complained(SETTINGS)
    assert name in created
    assert says in created
    ended = buddy.start("run").end()
    assert ended.code == SETTINGS, f"{ended}"
    line = ended.err.splitlines()[-1]
    assert name in line
    assert says in line
