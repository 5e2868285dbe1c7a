"""Every failure of aiokafka is one line with operation, resource and what to do."""

from __future__ import annotations

import asyncio
import ssl
from types import SimpleNamespace

import pytest
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalOperation,
    InvalidProducerIdMapping,
    InvalidSessionTimeoutError,
    InvalidTransactionTimeout,
    InvalidTxnState,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    NoError,
    NotEnoughReplicasError,
    OffsetMetadataTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    RequestTimedOutError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
from aiokafka.structs import TopicPartition

from worker.brokers.kafka.errors import (
    Attempt,
    asking_group,
    committing,
    creating,
    describing,
    describing_settings,
    explain,
    fencing,
    is_fence,
    is_outage,
    is_permanent,
    joining,
    measuring,
    names_itself,
    reading,
    refused,
    some_topics,
    translate,
    writing,
)
from worker.errors import BrokerUnavailable, MissingTopic

COMMIT = committing(
    "p-task-3", "p-worker", ["p.accepted.users", "p.rejected.users"], ["p.in.users"]
)


def wrapped(cause: BaseException) -> KafkaError:
    """As aiokafka wraps what it did not expect."""
    error = KafkaError("Unexpected error during batch delivery")
    error.__cause__ = cause
    return error


def line(attempt: Attempt, error: BaseException) -> str:
    failure = translate(attempt, error, "kafka:9092")
    assert type(failure) is BrokerUnavailable
    text = str(failure)
    assert "\n" not in text
    assert "Error" not in text
    assert "<" not in text
    return text


@pytest.mark.parametrize(
    ("attempt", "error", "says"),
    [
        (
            reading(["a"]),
            TopicAuthorizationFailedError("a"),
            "cannot read topic a: Kafka refuses it; grant this user READ on topic a",
        ),
        (
            reading(["b", "a"]),
            TopicAuthorizationFailedError("b"),
            "cannot read topics a, b: Kafka refuses it; grant this user READ on topic b",
        ),
        (
            writing(["a", "b"]),
            TopicAuthorizationFailedError({"a", "b"}),
            "cannot write to topics a, b: Kafka refuses it; grant this user WRITE on these topics",
        ),
        (
            writing(["a"]),
            wrapped(ClusterAuthorizationFailedError()),
            "cannot write to topic a: Kafka refuses it; grant this user WRITE on topic a",
        ),
        (
            measuring(["a"]),
            TopicAuthorizationFailedError(TopicPartition("a", 1)),
            (
                "cannot find the offsets of topic a: Kafka refuses it;"
                " grant this user DESCRIBE on topic a"
            ),
        ),
        (
            describing(["a"]),
            TopicAuthorizationFailedError("a"),
            "cannot describe topic a: Kafka refuses it; grant this user DESCRIBE on topic a",
        ),
        (
            describing_settings(["a"]),
            TopicAuthorizationFailedError("a"),
            (
                "cannot read the settings of topic a: Kafka refuses it;"
                " grant this user DESCRIBE_CONFIGS on topic a"
            ),
        ),
        (
            creating(["a"]),
            TopicAuthorizationFailedError("a"),
            "cannot create topic a: Kafka refuses it; grant this user CREATE on topic a",
        ),
        (
            joining("g", "a"),
            wrapped(GroupAuthorizationFailedError("g")),
            "cannot join group g: Kafka refuses it; grant this user READ on group g",
        ),
        (
            asking_group("g", ["a"]),
            GroupAuthorizationFailedError("Unable to get coordinator id for g"),
            (
                "cannot read the committed offsets of group g: Kafka refuses it;"
                " grant this user DESCRIBE on group g"
            ),
        ),
        (
            fencing("w"),
            TransactionalIdAuthorizationFailed("w"),
            (
                "cannot start the writer w: Kafka refuses it;"
                " grant this user WRITE on transactional id w"
            ),
        ),
        (
            COMMIT,
            wrapped(TransactionalIdAuthorizationFailed()),
            (
                "cannot commit as p-task-3: Kafka refuses it;"
                " grant this user WRITE on transactional id p-task-3"
            ),
        ),
        (
            COMMIT,
            TopicAuthorizationFailedError({"p.rejected.users"}),
            (
                "cannot commit as p-task-3: Kafka refuses it;"
                " grant this user WRITE on topic p.rejected.users"
            ),
        ),
        (
            COMMIT,
            TopicAuthorizationFailedError(),
            "cannot commit as p-task-3: Kafka refuses it; grant this user READ on topic p.in.users",
        ),
        (
            COMMIT,
            TopicAuthorizationFailedError("p.in.users"),
            "cannot commit as p-task-3: Kafka refuses it; grant this user READ on topic p.in.users",
        ),
        (
            COMMIT,
            GroupAuthorizationFailedError("p-worker"),
            "cannot commit as p-task-3: Kafka refuses it; grant this user READ on group p-worker",
        ),
        (
            COMMIT,
            OutOfOrderSequenceNumber(),
            (
                "cannot commit as p-task-3: a partition has lost messages that this process has"
                " written to it; see the log of Kafka at kafka:9092"
            ),
        ),
        (
            COMMIT,
            InvalidTxnState(),
            (
                "cannot commit as p-task-3: the broker has ended the transaction;"
                " see the log of Kafka at kafka:9092"
            ),
        ),
        (
            reading(["a"]),
            TimeoutError("no answer for 10 s"),
            (
                "cannot read topic a: no answer for 10 s;"
                " check that Kafka at kafka:9092 is running and reachable"
            ),
        ),
        (
            writing(["a"]),
            wrapped(SaslAuthenticationFailed("wrong password")),
            (
                "cannot write to topic a: Kafka at kafka:9092 refuses the login: wrong password;"
                " check sasl_mechanism, username, password or token_file"
            ),
        ),
        (
            fencing("buddy-sink"),
            InvalidTransactionTimeout(),
            (
                "cannot start the writer buddy-sink: invalid transaction timeout;"
                " set transaction.max.timeout.ms of Kafka to 15000 or more"
            ),
        ),
        (
            committing("buddy-task-1", "g", ["a"], ["b"]),
            wrapped(OffsetMetadataTooLargeError()),
            (
                "cannot commit as buddy-task-1: offset metadata too large;"
                " set offset.metadata.max.bytes of Kafka to 12 or more"
            ),
        ),
        (
            joining("buddy-worker", "a"),
            InvalidSessionTimeoutError(),
            (
                "cannot join group buddy-worker: invalid session timeout;"
                " set group.min.session.timeout.ms of Kafka to 6000 or less,"
                " and group.max.session.timeout.ms to 6000 or more"
            ),
        ),
        (
            COMMIT,
            wrapped(InvalidProducerIdMapping()),
            (
                "cannot commit as p-task-3: its name has expired unused"
                " (transactional.id.expiration.ms);"
                " nothing is lost, and the service begins anew by itself"
            ),
        ),
        (
            writing(["a"]),
            NotEnoughReplicasError(),
            (
                "cannot write to topic a: not enough replicas;"
                " check that Kafka at kafka:9092 is running and reachable"
            ),
        ),
    ],
)
def test_a_line_names_operation_resource_and_what_to_do(
    attempt: Attempt, error: BaseException, says: str
) -> None:
    assert line(attempt, error) == says


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (TimeoutError(), "no answer in time"),
        (RequestTimedOutError(), "no answer in time"),
        (ConnectionRefusedError(111, "Connect call failed ('::1', 1)"), "Connect call failed"),
        (KafkaConnectionError("Unable to bootstrap from [(...)]"), "no connection"),
        (NodeNotReadyError("Attempt to send a request to node"), "no connection"),
        (asyncio.IncompleteReadError(b"", 4), "no connection"),
        (AttributeError("'NoneType' object has no attribute 'nodeId'"), "the client has lost"),
        (AssertionError(), "the client has lost its connection"),
        (IllegalOperation("Not in the middle"), "the client has lost its connection"),
        (KafkaError("two\nlines"), "two lines"),
        (SaslAuthenticationFailed(SimpleNamespace()), "sasl authentication failed"),
    ],
)
def test_errors_are_explained_without_the_objects_of_a_library(
    error: BaseException, says: str
) -> None:
    assert explain(error).startswith(says)
    assert line(reading(["a"]), error).startswith("cannot read topic a: ")


def certificate(message: str) -> ssl.SSLCertVerificationError:
    error = ssl.SSLCertVerificationError(1, f"certificate verify failed: {message}")
    error.verify_message = message
    return error


def alert(reason: str) -> ssl.SSLError:
    error = ssl.SSLError(1, reason)
    error.reason = reason
    return error


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (certificate("certificate has expired"), "has expired; renew the broker's certificate"),
        (certificate("self-signed certificate"), "ca_file"),
        (certificate("unable to get local issuer certificate"), "ca_file"),
        (certificate("Hostname mismatch, certificate is not valid for 'k'"), "name the broker as"),
        (certificate("IP address mismatch, certificate is not valid for '::1'"), "--broker"),
        (alert("TLSV13_ALERT_CERTIFICATE_REQUIRED"), "certificate required; check cert_file"),
        (alert("TLSV1_ALERT_UNKNOWN_CA"), "does not accept this client: tlsv1 alert unknown ca"),
        (alert("WRONG_VERSION_NUMBER"), "does not speak TLS on this port"),
    ],
)
def test_a_fault_of_tls_says_what_is_wrong_and_which_setting(
    error: ssl.SSLError, says: str
) -> None:
    assert says in (refused(error) or "")
    told = line(reading(["a"]), wrapped(error))
    assert says in told
    assert "start it" not in told


def test_errors_are_told_apart_by_what_they_were_raised_from() -> None:
    assert is_fence(wrapped(ProducerFenced()))
    assert not is_fence(wrapped(TimeoutError()))
    assert is_permanent(wrapped(TopicAuthorizationFailedError("t")))
    assert is_permanent(certificate("certificate has expired"))
    assert not is_permanent(KafkaConnectionError())
    assert is_outage(wrapped(TimeoutError()))
    assert is_outage(KafkaConnectionError())
    assert not is_outage(wrapped(SaslAuthenticationFailed("no")))
    assert not is_outage(NoError("Unable to get offset info"))
    assert names_itself(COMMIT, TopicAuthorizationFailedError("p.in.users"))
    assert not names_itself(COMMIT, TopicAuthorizationFailedError())
    assert not names_itself(COMMIT, InvalidTxnState())
    own = MissingTopic("gone")
    assert translate(reading(["t"]), wrapped(own), "k") is own


def test_many_topics_are_named_by_the_first_few() -> None:
    assert some_topics(["a"]) == "topic a"
    assert some_topics(["c", "a", "b", "a"]) == "topics a, b, c"
    assert some_topics([f"{n:02}" for n in range(32)]) == "topics 00, 01, 02 and 29 more"
