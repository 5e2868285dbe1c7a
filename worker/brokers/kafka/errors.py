"""aiokafka's errors, sorted by what they mean to this project, and told in one line.

A line names what was attempted and on what (`Attempt`), why it failed, and what to do.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Collection, Iterator
from typing import Final

import msgspec
from aiokafka.errors import (
    AuthenticationFailedError,
    AuthenticationMethodNotSupported,
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalOperation,
    IllegalSaslStateError,
    InvalidTxnState,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    NodeNotReadyError,
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
    # A client whose metadata or state is gone trips over its own assumptions.
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

_MOST_NAMED: Final = 3

LOGIN_ADVICE: Final = "check sasl_mechanism, username, password or token_file"


class Attempt(msgspec.Struct, frozen=True):
    """Something that Kafka is asked to do: in words, and the rights that it takes.

    `words` continue "cannot …". `topic_right` is what each of `topics` needs; an error that names
    topics itself is believed.
    """

    words: str
    topics: tuple[str, ...] = ()
    topic_right: str = "DESCRIBE"
    group: str = ""
    group_right: str = "READ"
    writer: str = ""
    """The transactional id."""
    read: tuple[str, ...] = ()
    """Topics whose offsets are committed: an error about them names none."""


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
    """Ask for the first and last offsets."""
    return Attempt(f"find the offsets of {some_topics(topics)}", tuple(topics))


def creating(topics: Collection[str]) -> Attempt:
    """Create topics."""
    return Attempt(f"create {some_topics(topics)}", tuple(topics), "CREATE")


def joining(group: str, topic: str) -> Attempt:
    """Become and stay a member of a group."""
    return Attempt(f"join group {group}", (topic,), group=group)


def asking_group(group: str, topics: Collection[str]) -> Attempt:
    """Read what a group has committed."""
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
    """`topic a`, `topics a, b`, or the first few and how many more."""
    names = sorted(set(topics))
    shown = ", ".join(names[:_MOST_NAMED])
    more = f" and {len(names) - _MOST_NAMED} more" if len(names) > _MOST_NAMED else ""
    return f"topic{'' if len(names) == 1 else 's'} {shown}{more}"


def translate(attempt: Attempt, error: BaseException, address: str) -> BuddyError:
    """The exception of this project for a failure of aiokafka in that attempt.

    Never a ConfigurationError: a service that runs waits until the right is granted, the login
    accepted, the certificate renewed.
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
        # A topic that is written to would have been named.
        topics = named or attempt.read
    if topics and set(topics) <= set(attempt.read) - set(attempt.topics):
        return f"READ on {some_topics(topics)}"
    # What `words` say already is not said again. (Cluster: an idempotent producer asks first
    # whether it may write anywhere.)
    same = len(topics) > 1 and some_topics(topics) in attempt.words
    return f"{attempt.topic_right} on {'these topics' if same else some_topics(topics)}"


def _named(attempt: Attempt, error: BaseException) -> list[str]:
    return sorted(set(_names(error.args)) & {*attempt.topics, *attempt.read})


def _names(values: object) -> Iterator[str]:
    """Every text in nested collections: aiokafka puts names into its errors in many ways."""
    if isinstance(values, str):
        yield values
    elif isinstance(values, tuple | list | set | frozenset | dict):
        for value in values:
            yield from _names(value)


def refused(error: BaseException) -> str | None:
    """Why a broker that is there lets nobody in (login, certificates), and what to do; or None."""
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
    """What went wrong in one line, without the class names and objects of a library."""
    if isinstance(error, TimeoutError | RequestTimedOutError) and not _texts(error):
        text = "no answer in time"
    elif isinstance(error, KafkaConnectionError | NodeNotReadyError | asyncio.IncompleteReadError):
        text = "no connection"
    elif isinstance(error, InvalidTxnState):
        text = "the broker has ended the transaction"
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
    """What an error says, without the objects that come with it."""
    return " ".join(argument for argument in error.args if isinstance(argument, str))


def _words(name: str) -> str:
    """`NotEnoughReplicasError` as words: many errors carry nothing but their name."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name.removesuffix("Error")).lower()


def _most_telling(chain: list[BaseException]) -> BaseException:
    """What aiokafka did not expect, it wraps into a bare KafkaError with a text of its own."""
    return next((error for error in chain if type(error) is not KafkaError), chain[0])


def is_permanent(error: BaseException) -> bool:
    """Whether asking again at once cannot help."""
    return any(
        isinstance(cause, (BuddyError, *REFUSED_LOGIN, *_FORBIDDEN, ssl.SSLError))
        for cause in causes(error)
    )


def names_itself(attempt: Attempt, error: BaseException) -> bool:
    """Whether it is clear what is refused: else the broker can be asked about the topics."""
    return is_permanent(error) and not any(
        isinstance(cause, TopicAuthorizationFailedError) and not _named(attempt, cause)
        for cause in causes(error)
    )


def is_outage(error: BaseException) -> bool:
    """Whether the broker gave no answer at all, rather than one that says what is wrong."""
    if is_permanent(error):
        return False
    told = _most_telling(causes(error))
    return not isinstance(told, KafkaError) or told.retriable


def is_fence(error: BaseException) -> bool:
    """Whether the failure means that another producer of the same name has started."""
    return any(isinstance(cause, ProducerFenced) for cause in causes(error))


def causes(error: BaseException) -> list[BaseException]:
    """The error and what it was raised from, outermost first."""
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__
    return chain
