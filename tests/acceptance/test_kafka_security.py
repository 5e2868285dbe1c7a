from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from tests.kafka_server import KafkaServer, running
from worker.brokers.kafka.broker import KafkaBroker
from worker.brokers.kafka.security import KafkaSecurity
from worker.errors import BrokerUnavailable, ConfigurationError
from worker.stream import Partition, ProducerRecord, Topic

pytestmark = [pytest.mark.kafka, pytest.mark.acceptance]

_PLAIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
_SCRAM = "org.apache.kafka.common.security.scram.ScramLoginModule required"
_PREFIX = "listener.name.clients"


@pytest.fixture(scope="module")
def secured() -> Iterator[KafkaServer]:
    server = KafkaServer(
        listener="SASL_PLAINTEXT",
        settings={
            "sasl.enabled.mechanisms": "PLAIN,SCRAM-SHA-512",
            f"{_PREFIX}.plain.sasl.jaas.config": f'{_PLAIN} user_buddy="open sesame";',
            f"{_PREFIX}.scram-sha-512.sasl.jaas.config": f"{_SCRAM};",
        },
        format_options=("--add-scram", "SCRAM-SHA-512=[name=scrammer,password=s-secret]"),
    )
    with running(server) as started:
        yield started


@pytest.mark.parametrize(
    ("mechanism", "username", "password"),
    [("PLAIN", "buddy", "open sesame"), ("SCRAM-SHA-512", "scrammer", "s-secret")],
)
async def test_every_kind_of_client_logs_in(
    secured: KafkaServer, mechanism: str, username: str, password: str
) -> None:
    security = KafkaSecurity(
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism=mechanism,  # type: ignore[arg-type]  # a Literal
        username=username,
        password=password,
    )
    broker = KafkaBroker(secured.address, security)
    await broker.open()
    try:
        topic = f"in-{username}"
        here = Partition(topic, 0)
        assert await broker.create([Topic(topic, 1)]) == [topic]
        assert await broker.publish([ProducerRecord(topic, b"k", b"published")]) == [(0, 0)]
        committer = await broker.committer(f"task-{username}", "group")
        assert await committer.commit([ProducerRecord(topic, b"k", b"committed")], {here: 1}) == [
            (0, 1)
        ]
        reader = broker.reader()
        reader.assign({here: 0})
        values: list[bytes | None] = []
        while len(values) < 2:
            values += [message.value for message in await reader.read(10, 5)]
        assert values == [b"published", b"committed"]
        member = await broker.join(f"group-{username}", topic)
        async with asyncio.timeout(30):
            while await member.assignment() != {0}:
                await reader.read(1, 0.01)
    finally:
        await broker.close()


async def test_a_wrong_password_is_one_clear_line_without_it(secured: KafkaServer) -> None:
    security = KafkaSecurity(
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        username="buddy",
        password="wrong-secret",
    )
    broker = KafkaBroker(secured.address, security)
    with pytest.raises(ConfigurationError, match="refuses the login") as caught:
        await broker.open()
    await broker.close()
    text = str(caught.value)
    assert "wrong-secret" not in text
    assert "\n" not in text


async def test_no_login_where_one_is_needed_does_not_hang(secured: KafkaServer) -> None:
    broker = KafkaBroker(secured.address)
    with pytest.raises(BrokerUnavailable, match="may want TLS or a login"):
        await broker.open()
    await broker.close()


async def test_a_broker_that_is_not_there_is_one_clear_line() -> None:
    broker = KafkaBroker("127.0.0.1:1")
    with pytest.raises(BrokerUnavailable) as caught:
        await broker.open()
    await broker.close()
    assert str(caught.value).startswith("Kafka at 127.0.0.1:1 cannot be reached: Connect")
    assert str(caught.value).endswith("start it or name another with --broker")
