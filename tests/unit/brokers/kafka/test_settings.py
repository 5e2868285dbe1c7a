from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterable
from io import StringIO
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import msgspec
import pytest
from aiokafka.errors import AuthenticationFailedError
from aiokafka.producer.message_accumulator import BatchBuilder
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.unit.files_kit import improper
from worker.brokers.kafka.batches import BATCH_BYTES, BATCH_MESSAGES, check, pack, place
from worker.brokers.kafka.broker import KafkaBroker
from worker.brokers.kafka.security import KafkaSecurity, TokenFile
from worker.brokers.kafka.topics import new_topic, topic_from
from worker.brokers.kafka.wire import BATCH_CEILING
from worker.brokers.partitioner import Rotation, partition_for
from worker.errors import ConfigurationError, MessageRefused, MissingTopic
from worker.stream import Partition, ProducerRecord, Topic

LOGIN = {"username": "buddy", "password": "secret-1"}


class Producer:
    """As much of a producer as batches need."""

    def create_batch(self) -> Any:
        return BatchBuilder(BATCH_CEILING, 0)


# --- Security ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"security_protocol": "SSL"},
        {"security_protocol": "SSL", "ca_file": "ca", "cert_file": "c", "key_file": "k"},
        {"security_protocol": "SSL", "cert_file": "both-in-one", "key_password": "secret-2"},
        {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "ca_file": "ca", **LOGIN},
        {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "SCRAM-SHA-256", **LOGIN},
        {"security_protocol": "SASL_SSL", "sasl_mechanism": "SCRAM-SHA-512", **LOGIN},
        {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER", "token_file": "t"},
    ],
)
def test_combinations_that_work(settings: dict[str, str]) -> None:
    assert msgspec.convert(settings, KafkaSecurity) == KafkaSecurity(**settings)  # type: ignore[arg-type]  # Literals


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"username": "u"}, "username does not go with PLAINTEXT"),
        ({"sasl_mechanism": "PLAIN", **LOGIN}, "sasl_mechanism does not go with PLAIN"),
        ({"ca_file": "ca"}, "ca_file does not go with PLAINTEXT"),
        ({"security_protocol": "SSL", "password": "p"}, "password does not go with SSL"),
        ({"security_protocol": "SSL", "key_file": "k"}, "key_file needs cert_file"),
        ({"security_protocol": "SSL", "key_password": "p"}, "key_password needs cert_file"),
        ({"security_protocol": "SASL_SSL"}, "SASL_SSL needs sasl_mechanism"),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "PLAIN", "username": "u"},
            "PLAIN needs username and password",
        ),
        (
            {"security_protocol": "SASL_SSL", "sasl_mechanism": "OAUTHBEARER"},
            "OAUTHBEARER needs token_file",
        ),
        (
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "OAUTHBEARER",
                "token_file": "t",
                **LOGIN,
            },
            "username does not go with OAUTHBEARER",
        ),
        (
            {
                "security_protocol": "SASL_SSL",
                "sasl_mechanism": "SCRAM-SHA-512",
                "token_file": "t",
                **LOGIN,
            },
            "token_file does not go with SCRAM-SHA-512",
        ),
        (
            {
                "security_protocol": "SASL_PLAINTEXT",
                "sasl_mechanism": "PLAIN",
                "ca_file": "ca",
                **LOGIN,
            },
            "ca_file does not go with PLAIN",
        ),
    ],
)
def test_combinations_that_cannot_work_are_refused_in_one_line(
    settings: dict[str, str], problem: str
) -> None:
    with pytest.raises(ConfigurationError, match=problem) as caught:
        msgspec.convert(settings, KafkaSecurity)
    assert "\n" not in str(caught.value)


def test_secrets_are_never_shown() -> None:
    security = KafkaSecurity(
        security_protocol="SASL_SSL",
        sasl_mechanism="PLAIN",
        cert_file="c",
        key_password="secret-2",
        **LOGIN,
    )
    console = Console(file=StringIO(), width=500)
    console.print(security)
    assert isinstance(console.file, StringIO)
    for shown in (repr(security), str(security), f"{security}", console.file.getvalue()):
        assert "secret" not in shown
        assert "username='buddy'" in shown
        assert "'***'" in shown


def test_what_clients_are_given() -> None:
    assert KafkaSecurity().client_arguments() == {"security_protocol": "PLAINTEXT"}
    plain = KafkaSecurity(security_protocol="SASL_PLAINTEXT", sasl_mechanism="PLAIN", **LOGIN)
    assert plain.client_arguments() == {
        "security_protocol": "SASL_PLAINTEXT",
        "sasl_mechanism": "PLAIN",
        "sasl_plain_username": "buddy",
        "sasl_plain_password": "secret-1",
    }
    tls = KafkaSecurity(security_protocol="SSL").client_arguments()
    assert tls["ssl_context"].check_hostname
    token = KafkaSecurity(
        security_protocol="SASL_SSL", sasl_mechanism="OAUTHBEARER", token_file="t"
    ).client_arguments()
    assert isinstance(token["sasl_oauth_token_provider"], TokenFile)


@pytest.mark.parametrize("content", [None, "no certificate"])
@pytest.mark.parametrize("field", ["ca_file", "cert_file"])
def test_certificates_that_cannot_be_used(tmp_path: Path, field: str, content: str | None) -> None:
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_text(content)
    security = msgspec.convert({"security_protocol": "SSL", field: str(path)}, KafkaSecurity)
    with pytest.raises(ConfigurationError, match=f"{field} .*cannot be used") as caught:
        security.client_arguments()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("password", "which"), [(None, "missing"), ("x", "wrong")])
def test_a_key_that_needs_another_password_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, password: str | None, which: str
) -> None:
    """OpenSSL gives no reason, as for a file that is no PEM."""
    (tmp_path / "both.pem").touch()
    error = ssl.SSLError(9, "[SSL] PEM lib")
    error.reason = ""
    context = Mock(load_cert_chain=Mock(side_effect=error))
    monkeypatch.setattr(ssl, "create_default_context", lambda **_: context)
    file = str(tmp_path / "both.pem")
    security = KafkaSecurity(security_protocol="SSL", cert_file=file, key_password=password)
    with pytest.raises(ConfigurationError, match=f"no PEM in it, or key_password is {which}$"):
        security.client_arguments()


@pytest.mark.parametrize("field", ["ca_file", "cert_file", "key_file"])
def test_a_pipe_in_place_of_a_certificate_is_not_waited_for(tmp_path: Path, field: str) -> None:
    path = improper(tmp_path / "pipe", "pipe")
    (tmp_path / "cert.pem").write_text("")
    given = {"security_protocol": "SSL", "cert_file": str(tmp_path / "cert.pem"), field: str(path)}
    security = msgspec.convert(given, KafkaSecurity)
    with pytest.raises(ConfigurationError, match="cannot be used: it is no regular file"):
        security.client_arguments()


async def test_a_pipe_in_place_of_a_token_fails_the_login(tmp_path: Path) -> None:
    path = improper(tmp_path / "pipe", "pipe")
    with pytest.raises(AuthenticationFailedError, match="it is no regular file"):
        await TokenFile(str(path)).token()


async def test_a_token_is_read_again_each_time(tmp_path: Path) -> None:
    path = tmp_path / "token"
    tokens = TokenFile(str(path))
    for token in ("first", "second"):
        path.write_text(f"{token}\n")
        assert await tokens.token() == token


@pytest.mark.parametrize("content", [None, b"", b" \n", b"\xff", b"two\nlines"])
async def test_a_token_that_is_not_there_fails_the_login(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(AuthenticationFailedError, match="token_file"):
        await TokenFile(str(path)).token()


async def test_an_address_that_is_none() -> None:
    for address in ("host:port", "host:9092,other:x"):
        broker = KafkaBroker(address)
        with pytest.raises(ConfigurationError, match="no Kafka address"):
            await broker.open()
        await broker.close()


# --- Topics -----------------------------------------------------------------------------------


@given(
    st.builds(
        Topic,
        name=st.just("t"),
        partitions=st.integers(1, 100),
        compacted=st.booleans(),
        append_time=st.booleans(),
        retention_ms=st.none() | st.integers(0, 10**12),
        delete_retention_ms=st.integers(0, 10**12),
        max_message_bytes=st.integers(1, 10**8),
    )
)
def test_the_settings_of_a_topic_come_back(topic: Topic) -> None:
    made = new_topic(topic)
    assert topic_from(made.name, made.num_partitions, made.topic_configs) == topic


def test_without_deletion_nothing_expires_whatever_the_retention() -> None:
    settings = dict(new_topic(Topic("t", 1, compacted=True)).topic_configs)
    assert topic_from("t", 1, settings | {"retention.ms": "5"}).retention_ms is None


# --- Batches ----------------------------------------------------------------------------------

TOPICS = {
    "in": Topic("in", 3),
    "small": Topic("small", 1, max_message_bytes=1_000),
    "table": Topic("table", 2, compacted=True),
}


def test_messages_go_where_kafkas_partitioner_puts_them() -> None:
    keys = [b"%d" % number for number in range(50)]
    messages = [ProducerRecord("in", key, b"v") for key in keys]
    messages += [ProducerRecord("in", b"k", b"v", partition=2), ProducerRecord("table", b"k", None)]
    placed = place(messages, TOPICS, Rotation())
    numbers = {index: p for p, indices in placed.items() for index in indices}
    for index, key in enumerate(keys):
        assert numbers[index] == Partition("in", partition_for(key, 3))
    assert numbers[50] == Partition("in", 2)
    assert numbers[51] == Partition("table", partition_for(b"k", 2))
    assert all(indices == sorted(indices) for indices in placed.values())


def test_messages_without_a_key_stay_together_and_move_on_with_the_next_call() -> None:
    rotation = Rotation()
    messages = [ProducerRecord("in", None, b"v")] * 4
    used = [next(iter(place(messages, TOPICS, rotation).items())) for _ in range(3)]
    assert all(indices == [0, 1, 2, 3] for _, indices in used)
    assert {partition.number for partition, _ in used} == {0, 1, 2}


@pytest.mark.parametrize("number", [-1, 3])
def test_a_partition_that_the_topic_does_not_have(number: int) -> None:
    with pytest.raises(MissingTopic):
        place([ProducerRecord("in", b"k", b"v", partition=number)], TOPICS, Rotation())


def test_messages_that_are_too_large_are_named() -> None:
    fits, large = (
        ProducerRecord("small", b"k", b"v" * 900),
        ProducerRecord("small", b"k", b"v" * 1_000),
    )
    with pytest.raises(MessageRefused, match="too large for small") as caught:
        check(
            [ProducerRecord("in", b"k", b"v" * 5_000), fits, large, fits, large], TOPICS, Producer()
        )
    assert list(caught.value.refused) == [2, 4]


def test_a_compacted_topic_takes_no_message_without_a_key() -> None:
    with pytest.raises(MessageRefused) as caught:
        check(
            [ProducerRecord("table", b"", b"v"), ProducerRecord("table", None, b"v")],
            TOPICS,
            Producer(),
        )
    assert list(caught.value.refused) == [1]


SIZES = st.integers(0, 1_200)
NAMES = st.text(max_size=20)


@given(
    key=st.none() | st.binary(max_size=50),
    size=SIZES,
    headers=st.lists(st.tuples(NAMES, st.binary(max_size=20)), max_size=3),
)
def test_refused_exactly_where_the_batch_would_be_above_the_limit(
    key: bytes | None, size: int, headers: list[tuple[str, bytes]]
) -> None:
    message = ProducerRecord("small", key, b"v" * size, tuple(headers))
    batch = Producer().create_batch()
    batch.append(timestamp=10**12, key=key, value=message.value, headers=headers)
    fits = batch.size() <= 1_000
    try:
        sizes = check([message], TOPICS, Producer())
    except MessageRefused:
        assert not fits
    else:
        assert fits
        assert sizes[0] >= batch.size() - 61


@given(st.lists(st.tuples(st.sampled_from(["in", "small"]), SIZES.filter(lambda n: n < 800))))
def test_batches_hold_every_message_once_in_order_and_within_the_limit(
    plan: list[tuple[str, int]],
) -> None:
    messages = [ProducerRecord(topic, b"k", b"v" * size) for topic, size in plan]
    batches = pack(messages, TOPICS, Rotation(), Producer())
    found = sorted(index for some in batches.values() for b in some for index in b.indices)
    assert found == list(range(len(messages)))
    for partition, some in batches.items():
        inside = [index for batch in some for index in batch.indices]
        assert inside == sorted(inside)
        for batch in some:
            assert batch.size <= TOPICS[partition.topic].max_message_bytes
            assert batch.builder.record_count() == len(batch.indices)


def test_a_batch_is_cut_by_bytes_and_by_number() -> None:
    many = [ProducerRecord("in", b"k", b"")] * (BATCH_MESSAGES + 1)
    (cut,) = pack(many, TOPICS, Rotation(), Producer()).values()
    assert [len(batch.indices) for batch in cut] == [BATCH_MESSAGES, 1]
    large = [ProducerRecord("in", b"k", b"v" * size) for size in (10, BATCH_BYTES, 10, 10)]
    (cut,) = pack(large, TOPICS, Rotation(), Producer()).values()
    assert [batch.indices for batch in cut] == [[0], [1], [2, 3]]


async def test_many_who_write_to_topics_for_the_first_time_are_one_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broker = KafkaBroker("localhost:1")
    asked: list[set[str]] = []

    async def topics(names: Iterable[str]) -> dict[str, Topic]:
        asked.append(set(names))
        await asyncio.sleep(0)
        found = {name: Topic(name, 4) for name in names if name != "none"}
        broker._known.update(found)
        return found

    monkeypatch.setattr(broker, "topics", topics)
    await asyncio.gather(*(broker._describe({"one", "two"}) for _ in range(50)))
    await broker._describe({"two", "three"})
    assert asked == [{"one", "two"}, {"three"}]
    with pytest.raises(MissingTopic, match="topic none does not exist"):
        await broker._describe({"one", "none"})
    await broker.close()
