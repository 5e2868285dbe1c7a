"""What aiokafka does not say is found out: why there is no connection, which topic is refused."""

from __future__ import annotations

import asyncio
import ssl
import subprocess
import sys
from collections.abc import Collection
from typing import Any

import pytest
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    InvalidTxnState,
    KafkaConnectionError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
)

from worker.brokers.kafka import broker as kafka
from worker.brokers.kafka.broker import KafkaBroker
from worker.brokers.kafka.errors import committing, joining, reading, writing
from worker.brokers.kafka.member import KafkaMember
from worker.brokers.kafka.metadata import Described
from worker.brokers.kafka.security import KafkaSecurity
from worker.brokers.kafka.wire import Wire
from worker.errors import BrokerUnavailable, ConfigurationError, MissingTopic

READ, WRITE = 1 << 3, 1 << 4


def certificate() -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, "certificate verify failed")
    error.verify_message = "certificate has expired"
    return error


@pytest.fixture
def wire() -> Wire:
    return Wire("kafka:9092", KafkaSecurity(), "test")


def knocking(wire: Wire, error: BaseException | None, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Whoever connects by hand finds this; the hosts that were tried."""
    tried: list[str] = []

    async def knock(host: str, _port: int) -> None:
        tried.append(host)
        if error is not None:
            raise error

    monkeypatch.setattr(wire, "_knock", knock)
    return tried


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (SaslAuthenticationFailed("wrong password"), "refuses the login: wrong password"),
        (certificate(), "certificate has expired; renew the broker's certificate"),
    ],
)
async def test_a_refusal_ends_the_start_and_is_waited_out_later(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, error: BaseException, says: str
) -> None:
    knocking(wire, error, monkeypatch)
    with pytest.raises(ConfigurationError, match=says):
        await wire.probe()
    failure = await wire.failure(reading(["a"]), KafkaConnectionError("Unable to bootstrap"))
    assert type(failure) is BrokerUnavailable
    assert str(failure).startswith("cannot read topic a: Kafka at kafka:9092 ")
    assert says in str(failure)


async def test_many_who_fail_at_once_are_one_login(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = knocking(wire, SaslAuthenticationFailed("no"), monkeypatch)
    silence = TimeoutError()
    failures = await asyncio.gather(*(wire.failure(writing(["a"]), silence) for _ in range(20)))
    assert tried == ["kafka"]
    assert len(set(map(str, failures))) == 1


async def test_a_broker_that_lets_us_in_leaves_the_failure_as_it_is(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    knocking(wire, None, monkeypatch)
    failure = await wire.failure(writing(["a"]), TimeoutError("no answer for 10 s"))
    assert str(failure).startswith("cannot write to topic a: no answer for 10 s; check that Kafka")


def broker_that_sees(
    monkeypatch: pytest.MonkeyPatch, seen: dict[str, Described] | Exception
) -> KafkaBroker:
    """A broker whose server describes these topics and no others."""
    broker = KafkaBroker("kafka:9092")
    knocking(broker._wire, None, monkeypatch)

    async def look(_admin: Any, names: Collection[str], *, rights: bool = False) -> Any:
        if isinstance(seen, Exception):
            raise seen
        return {name: topic for name, topic in seen.items() if name in names}

    async def ask(_attempt: Any, question: Any) -> Any:
        try:
            return await question(None)
        except TopicAuthorizationFailedError as error:
            raise await broker._wire.failure(_attempt, error) from error

    monkeypatch.setattr(kafka, "look", look)
    monkeypatch.setattr(broker._admin, "ask", ask)
    return broker


COMMIT = committing("p-task-0", "p-worker", ["out", "log"], ["in"])


@pytest.mark.parametrize(
    ("operations", "right"),
    [
        ({"out": READ, "log": READ | WRITE, "in": READ}, "WRITE on topic out"),
        ({"out": WRITE, "log": WRITE, "in": WRITE}, "READ on topic in"),
    ],
)
@pytest.mark.parametrize("error", [InvalidTxnState(), TopicAuthorizationFailedError()])
async def test_a_topic_that_the_error_does_not_name_is_found(
    monkeypatch: pytest.MonkeyPatch,
    operations: dict[str, int],
    right: str,
    error: Exception,
) -> None:
    seen = {name: Described("id", 1, True, allowed) for name, allowed in operations.items()}
    failure = await broker_that_sees(monkeypatch, seen)._diagnose(COMMIT, error)
    assert str(failure) == (f"cannot commit as p-task-0: Kafka refuses it; grant this user {right}")


async def test_a_topic_that_has_gone_or_is_hidden_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    there = {"out": Described("id", 1, True), "log": Described("id", 1, True)}
    gone = await broker_that_sees(monkeypatch, there)._diagnose(COMMIT, TimeoutError())
    assert type(gone) is MissingTopic
    assert "topic in does not exist" in str(gone)
    hidden = TopicAuthorizationFailedError("in")
    failure = await broker_that_sees(monkeypatch, hidden)._diagnose(COMMIT, TimeoutError())
    assert "grant this user DESCRIBE on topic in" in str(failure)


class _Consumer:
    def pause(self, *_: Any) -> None:
        """Nothing is read."""


async def test_a_member_that_is_refused_says_so_until_the_group_has_it(wire: Wire) -> None:
    member = KafkaMember(wire, "g", "t")
    member._problem = await wire.failure(joining("g", "t"), GroupAuthorizationFailedError("g"))
    for _ in range(3):
        with pytest.raises(BrokerUnavailable, match="grant this user READ on group g"):
            await member.assignment()
    member._consumer = _Consumer()
    member.on_partitions_assigned([])
    assert await member.assignment() == frozenset()


async def test_a_member_that_the_group_does_not_take_in_says_so(
    wire: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    knocking(wire, None, monkeypatch)
    member = KafkaMember(wire, "g", "t")
    member._consumer = _Consumer()
    member.on_partitions_revoked([])
    assert await member.assignment() == frozenset()
    assert member._outside is not None
    member._outside -= 26
    with pytest.raises(BrokerUnavailable, match="cannot join group g: no answer for 26 s"):
        await member.assignment()
    member.on_partitions_assigned([])
    assert await member.assignment() == frozenset()


def test_libraries_print_nothing_beside_our_lines() -> None:
    code = (
        "import logging; from worker import log; log.silence_libraries();"
        "logging.getLogger('aiokafka').error('Unable connect to');"
        "logging.getLogger('asyncio').error('Future exception was never retrieved')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stderr == b""
