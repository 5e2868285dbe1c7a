"""Classifies aiokafka's errors, and explains each of them in one line.

A line names the operation and its target (`Attempt`), the cause, and the remedy.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Collection, Iterator, Mapping
from typing import Final

import msgspec
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalOperation,
    IllegalSaslStateError,
    InvalidProducerIdMapping,
    InvalidSessionTimeoutError,
    InvalidTransactionTimeout,
    InvalidTxnState,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
    OffsetMetadataTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    RecordListTooLargeError,
    RequestTimedOutError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnsupportedSaslMechanismError,
)

from worker.errors import BrokerUnavailable, BuddyError

FAILURES: Final = (
    KafkaError,
    IllegalOperation,
    OSError,  # includes TimeoutError and ssl.SSLError
    asyncio.IncompleteReadError,
    # A client that has lost its metadata or state fails on its own assumptions.
    AssertionError,
    AttributeError,
)
REFUSED_LOGIN: Final = (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
    UnsupportedSaslMechanismError,
)
_FORBIDDEN: Final = (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
TOO_LARGE: Final = (MessageSizeTooLargeError, RecordListTooLargeError)

TRANSACTION_MILLISECONDS: Final = 15_000
"""The longest time that a worker frozen in a transaction blocks readers of its partitions."""
SESSION_MILLISECONDS: Final = 6_000
"""How long a dead member keeps its partitions. A false eviction is harmless; a long wait is not."""
OFFSETS_NOTE: Final = "buddy-stream"
"""Committed with each offset. Offsets without it are another program's, or set by a person."""
_REMEDIES: Final[Mapping[type[KafkaError], str]] = {
    InvalidTransactionTimeout: (
        f"set transaction.max.timeout.ms of Kafka to {TRANSACTION_MILLISECONDS} or more"
    ),
    OffsetMetadataTooLargeError: (
        f"set offset.metadata.max.bytes of Kafka to {len(OFFSETS_NOTE)} or more"
    ),
    InvalidSessionTimeoutError: (
        f"set group.min.session.timeout.ms of Kafka to {SESSION_MILLISECONDS} or less,"
        f" and group.max.session.timeout.ms to {SESSION_MILLISECONDS} or more"
    ),
    InvalidProducerIdMapping: "nothing is lost, and the service begins anew by itself",
}
"""By the error: which setting of the brokers does not suit this program, or that none is wrong."""

_MOST_NAMED: Final = 3

LOGIN_ADVICE: Final = "check sasl_mechanism, username, password or token_file"


class Attempt(msgspec.Struct, frozen=True):
    """An operation on Kafka: its description, and the rights that it needs.

    `words` continue "cannot …". `topic_right` is the right needed on each of `topics`. If an error
    names some of the topics itself, the message names only those.
    """

    words: str
    topics: tuple[str, ...] = ()
    topic_right: str = "DESCRIBE"
    group: str = ""
    group_right: str = "READ"
    writer: str = ""
    """The transactional id."""
    read: tuple[str, ...] = ()
    """Topics whose offsets are committed; an error about one of these names no topic."""


def reading(topics: Collection[str]) -> Attempt:
    """Fetch messages."""
    return Attempt(f"read {some_topics(topics)}", tuple(topics), "READ")


def writing(topics: Collection[str]) -> Attempt:
    """Produce messages."""
    return Attempt(f"write to {some_topics(topics)}", tuple(topics), "WRITE")


def describing(topics: Collection[str]) -> Attempt:
    """Find out whether topics exist, and how many partitions they have."""
    return Attempt(f"describe {some_topics(topics)}", tuple(topics))


def describing_settings(topics: Collection[str]) -> Attempt:
    """Find out how topics are configured."""
    words = f"read the settings of {some_topics(topics)}"
    return Attempt(words, tuple(topics), "DESCRIBE_CONFIGS")


def measuring(topics: Collection[str]) -> Attempt:
    """Find out the first and last offsets."""
    return Attempt(f"find the offsets of {some_topics(topics)}", tuple(topics))


def creating(topics: Collection[str]) -> Attempt:
    """Create topics."""
    return Attempt(f"create {some_topics(topics)}", tuple(topics), "CREATE")


def joining(group: str, topic: str) -> Attempt:
    """Become and stay a member of a group."""
    return Attempt(f"join group {group}", (topic,), group=group)


def asking_group(group: str, topics: Collection[str]) -> Attempt:
    """Read the committed offsets of a group."""
    words = f"read the committed offsets of group {group}"
    return Attempt(words, tuple(topics), group=group, group_right="DESCRIBE")


def describing_group(group: str) -> Attempt:
    """Find out who is in a group."""
    return Attempt(f"describe group {group}", group=group, group_right="DESCRIBE")


def fencing(writer: str) -> Attempt:
    """Start the producer of a transactional id."""
    return Attempt(f"start the writer {writer}", writer=writer)


def committing(writer: str, group: str, written: Collection[str], read: Collection[str]) -> Attempt:
    """Write in a transaction, offsets included."""
    return Attempt(
        f"commit as {writer}",
        tuple(written),
        "WRITE",
        group=group,
        writer=writer,
        read=tuple(read),
    )


def some_topics(topics: Collection[str]) -> str:
    """`topic a`, `topics a, b`, or the first few and the number of the others."""
    names = sorted(set(topics))
    shown = ", ".join(names[:_MOST_NAMED])
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"topic{'' if len(names) == 1 else 's'} {shown}{more}"


def translate(attempt: Attempt, error: BaseException, address: str) -> BuddyError:
    """The exception of `worker.errors` for a failure of aiokafka in this attempt.

    A `BuddyError` among the causes is returned as it is. Any other failure is `BrokerUnavailable`,
    never `ConfigurationError`: a running service waits until the right is granted, the login
    accepted or the certificate renewed.
    """
    chain = causes(error)
    for cause in chain:
        if isinstance(cause, BuddyError):
            return cause
    return BrokerUnavailable(f"cannot {attempt.words}: {_reason(attempt, chain, address)}")


def _reason(attempt: Attempt, chain: list[BaseException], address: str) -> str:
    for cause in chain:
        if isinstance(cause, _FORBIDDEN):
            return f"Kafka refuses it; grant this user {_right(attempt, cause)}"
        for kind, remedy in _REMEDIES.items():
            if isinstance(cause, kind):
                return f"{explain(cause)}; {remedy}"
        refusal = refused(cause)
        if refusal is not None:
            return f"Kafka at {address} {refusal}"
    text = explain(_most_telling(chain))
    if is_outage(chain[0]):
        return f"{text}; check that Kafka at {address} is running and reachable"
    return f"{text}; see the log of Kafka at {address}"


def _right(attempt: Attempt, error: BaseException) -> str:
    if isinstance(error, GroupAuthorizationFailedError):
        return f"{attempt.group_right} on group {attempt.group}"
    if isinstance(error, TransactionalIdAuthorizationFailed):
        return f"WRITE on transactional id {attempt.writer}"
    named = _named(attempt, error)
    topics = named or attempt.topics
    if isinstance(error, TopicAuthorizationFailedError) and attempt.read:
        # An error about a topic that is written to names the topic.
        topics = named or attempt.read
    if topics and set(topics) <= set(attempt.read) - set(attempt.topics):
        return f"READ on {some_topics(topics)}"
    # Do not repeat topics that `words` already name. (A cluster error ends up here as well: an
    # idempotent producer first asks whether it may write at all.)
    same = len(topics) > 1 and some_topics(topics) in attempt.words
    return f"{attempt.topic_right} on {'these topics' if same else some_topics(topics)}"


def _named(attempt: Attempt, error: BaseException) -> list[str]:
    return sorted(set(_names(error.args)) & {*attempt.topics, *attempt.read})


def _names(values: object) -> Iterator[str]:
    """Every string in nested collections: aiokafka puts names into its errors in many ways."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, tuple | list | set | frozenset | dict):
        for value in values:
            yield from _names(value)


def refused(error: BaseException) -> str | None:
    """Why a reachable broker rejects this client (login, certificates), and the remedy; or None."""
    if isinstance(error, REFUSED_LOGIN):
        return f"refuses the login: {explain(error)}; {LOGIN_ADVICE}"
    if isinstance(error, ssl.SSLCertVerificationError):
        reason = (error.verify_message or explain(error)).rstrip(".")
        if "match" in reason or "not valid for" in reason:
            advice = "name the broker as its certificate does (--broker and advertised.listeners)"
        elif "expired" in reason or "not yet valid" in reason:
            advice = "renew the broker's certificate"
        else:
            advice = "name the certificate of the authority that signed it in ca_file"
        return f"has a certificate that is not accepted: {reason}; {advice}"
    if isinstance(error, ssl.SSLError):
        reason = (error.reason or "TLS failed").lower().replace("_", " ")
        if "alert" in reason or "certificate" in reason:
            return f"does not accept this client: {reason}; check cert_file and key_file"
        return f"does not speak TLS on this port ({reason}); check security_protocol and the port"
    return None


def explain(error: BaseException) -> str:
    """The cause in one line, without the class names and objects of a library."""
    if isinstance(error, TimeoutError | RequestTimedOutError) and not _texts(error):
        text = "no answer in time"
    elif isinstance(error, KafkaConnectionError | NodeNotReadyError | asyncio.IncompleteReadError):
        text = "no connection"
    elif isinstance(error, InvalidTxnState):
        text = "the broker has ended the transaction"
    elif isinstance(error, InvalidProducerIdMapping):
        text = "its name has expired unused (transactional.id.expiration.ms)"
    elif isinstance(error, OutOfOrderSequenceNumber):
        text = "a partition has lost messages that this process has written to it"
    elif isinstance(error, KafkaError):
        text = _texts(error) or _words(type(error).__name__)
    elif isinstance(error, OSError) and error.strerror:
        # asyncio joins the failures of several addresses into one long text.
        text = error.strerror.split(" [", maxsplit=1)[0]
    elif isinstance(error, AssertionError | AttributeError | IllegalOperation):
        text = "the client has lost its connection"
    else:
        text = str(error) or type(error).__name__
    return " ".join(text.split())


def _texts(error: BaseException) -> str:
    """The string arguments of an error, without other objects."""
    return " ".join(argument for argument in error.args if isinstance(argument, str))


def _words(name: str) -> str:
    """`NotEnoughReplicasError` as words: many errors carry only their name."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix("Error")).lower()


def _most_telling(chain: list[BaseException]) -> BaseException:
    """The first specific error: aiokafka wraps unexpected errors in a bare KafkaError."""
    return next((error for error in chain if type(error) is not KafkaError), chain[0])


def is_permanent(error: BaseException) -> bool:
    """Whether an immediate retry cannot help."""
    return any(
        isinstance(cause, (BuddyError, *REFUSED_LOGIN, *_FORBIDDEN, ssl.SSLError))
        for cause in causes(error)
    )


def names_itself(attempt: Attempt, error: BaseException) -> bool:
    """Whether the error tells what is refused; if not, the broker can be asked about topics."""
    return is_permanent(error) and not any(
        isinstance(cause, TopicAuthorizationFailedError) and not _named(attempt, cause)
        for cause in causes(error)
    )


def is_outage(error: BaseException) -> bool:
    """Whether the broker is away: it gave no answer, or only a retriable error."""
    if is_permanent(error):
        return False
    told = _most_telling(causes(error))
    return not isinstance(told, KafkaError) or told.retriable


def is_fence(error: BaseException) -> bool:
    """Whether the failure means that another producer of the same name has started."""
    return any(isinstance(cause, ProducerFenced) for cause in causes(error))


def causes(error: BaseException) -> list[BaseException]:
    """The error and its chain of causes, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__
    return chain
